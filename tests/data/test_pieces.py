"""Long documents are tokenized in pieces, and their ids are of the same text."""

from __future__ import annotations

import gzip
import itertools
import json
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stream_pretrain.data.rows import pieces
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.mlm import Mlm
from stream_pretrain.data.rows.pieces import PIECE_CHARACTERS, piece_edges, uncut_pattern
from tests.corpora import documents, json_lines, word_tokenizer
from tests.data.plans import lane, plan_for, row_of

HALF = PIECE_CHARACTERS // 2
REPORTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "reports"


def test_a_short_document_is_one_piece() -> None:
    assert piece_edges("") == [0, 0]
    assert piece_edges("word " * 10) == [0, 50]
    assert piece_edges("x" * PIECE_CHARACTERS) == [0, PIECE_CHARACTERS]


def test_a_long_document_is_cut_in_front_of_the_last_white_space_of_a_piece() -> None:
    text = "x" * 50_000 + " " + "y" * 10_000 + "\u3000" + "z" * 10_000 + " end"
    assert piece_edges(text) == [0, 60_001, len(text)]


def test_a_run_of_white_space_stays_whole_and_so_does_a_word_with_what_closes_it() -> None:
    text = "x" * 50_000 + "\r\n\r\n" + "y" * 10_000 + "}\n\n" + "z" * 10_000
    assert piece_edges(text) == [0, 50_000, len(text)]
    assert piece_edges("x" * 60_000 + ";  " + "z" * 10_000)[1] == 60_001


def test_white_space_in_the_first_half_of_a_piece_is_no_place_to_cut() -> None:
    early = "x" * (HALF - 1) + " " + "y" * PIECE_CHARACTERS
    assert piece_edges(early) == [0, PIECE_CHARACTERS, len(early)]
    first_of_second_half = "x" * (HALF + 1) + " " + "y" * PIECE_CHARACTERS
    assert piece_edges(first_of_second_half) == [0, HALF + 1, HALF + 1 + PIECE_CHARACTERS, len(first_of_second_half)]


def test_a_document_without_white_space_is_cut_in_front_of_signs_behind_ideographs_or_anywhere() -> None:
    assert piece_edges("x" * 60_000 + "," + "y" * 10_000)[1] == 60_000
    assert piece_edges("x" * 60_000 + "文" + "y" * 10_000)[1] == 60_001
    assert piece_edges("x" * 150_000) == [0, 65_536, 131_072, 150_000]


@pytest.mark.parametrize(
    ("unit", "last"),
    [
        ("e\u0301", "\u0301"),
        ("ก\u0e49\u0e33", "\u0e33"),
        (unicodedata.normalize("NFD", "각"), "\u11a8"),
        ("\u0928\u093c", "\u093c"),
        ("👩\u200d🔬", "🔬"),
        ("👍\U0001f3fd", "\U0001f3fd"),
        ("🇩🇪x", "🇪x"),
        ("文\ufe00", "\ufe00"),
        ("\r\n", "\n"),
    ],
)
def test_characters_that_belong_together_are_not_parted(unit: str, last: str) -> None:
    for shift in range(len(unit)):
        text = "x" * shift + unit * 40_000
        for cut in piece_edges(text)[1:-1]:
            assert text[cut - 1] in last
            for form in ("NFC", "NFD", "NFKC", "NFKD"):
                left, right = text[cut - 20 : cut], text[cut : cut + 20]
                parts = unicodedata.normalize(form, left) + unicodedata.normalize(form, right)
                assert unicodedata.normalize(form, left + right) == parts


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from(["x", " ", "\n", "word ", "語", "e\u0301", "; "]), st.integers(0, 90_000)), max_size=5)
)
def test_pieces_cover_the_text_and_none_is_long(parts: list[tuple[str, int]]) -> None:
    text = "".join(part * count for part, count in parts)
    edges = piece_edges(text)
    assert (edges[0], edges[-1]) == (0, len(text))
    sizes = np.diff(edges)
    assert all(HALF < size <= PIECE_CHARACTERS for size in sizes[:-1])
    assert sizes[-1] <= PIECE_CHARACTERS
    assert piece_edges(text + "more")[: len(edges) - 1] == edges[:-1], "a cut does not depend on what comes far behind it"


@pytest.mark.parametrize(
    ("token", "text", "cut"),
    [
        (AddedToken("New York", normalized=False), "x" * 65_530 + " New York is" + "y" * 100, 65_531),
        (AddedToken("[DRUG]", normalized=False), "x" * 65_533 + "[DRUG]" + "y" * 100, 65_533),
        (AddedToken("[DRUG]", normalized=False), "[DRUG]" * 20_000, 65_526),
        (AddedToken("DRUG", normalized=False, rstrip=True), "x" * 65_520 + "DRUG   a" + "y" * 100, 65_520),
        (AddedToken("DRUG", normalized=False, lstrip=True), "x" * 65_530 + "   DRUG" + "y" * 100, 65_530),
        (AddedToken("DRUG", normalized=False, single_word=True), "x" * 65_530 + " aDRUG" + "y" * 100, 65_530),
        (AddedToken("il-6"), "x" * 65_533 + "IL-6" + "y" * 100, 65_533),
    ],
)
def test_a_token_that_is_recognised_in_a_text_is_not_cut(token: AddedToken, text: str, cut: int) -> None:
    assert piece_edges(text, uncut_pattern([token]))[1] == cut


# --- Tokenizers that put a space in front of a text ------------------------------------------------------------------


def byte_level(*, add_prefix_space: bool, strip: bool = False) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, "ba", "Ġba"])}, [("b", "a"), ("Ġ", "ba")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    if strip:
        tokenizer.normalizer = normalizers.Strip()
    return tokenizer


def sentence_piece(pre_tokenizer: pre_tokenizers.PreTokenizer | None) -> Tokenizer:
    vocabulary = ["<unk>", "▁", "▁ba", "ba", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.Unigram([(piece, -float(i)) for i, piece in enumerate(vocabulary)], unk_id=0, byte_fallback=True)
    )
    if pre_tokenizer is None:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizer
    space = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def metaspace(scheme: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme)


PREFIXING: dict[str, Callable[[], Tokenizer]] = {
    "byte level": lambda: byte_level(add_prefix_space=False),
    "byte level, prefixed": lambda: byte_level(add_prefix_space=True),
    "byte level, stripped": lambda: byte_level(add_prefix_space=False, strip=True),
    "prepended": lambda: sentence_piece(None),
    "metaspace first": lambda: sentence_piece(metaspace("first")),
    "metaspace always": lambda: sentence_piece(metaspace("always")),
    "metaspace never": lambda: sentence_piece(metaspace("never")),
    "every word": lambda: sentence_piece(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace("always")])),
}
LONG_TEXTS = {
    "words": "ba abba cab " * 20,
    "lines": "ba\n" + "baba\n\n" * 40 + "end",
    "one word": "ba" * 100,
    "thai": "สวัสดีชาวโลก" * 20,
    "composed": "e\u0301" * 100,
}


def ids_of(encoder: Encoder, text: str) -> list[int]:
    tokenizer = encoder.build()
    parts = [text[first:stop] for first, stop in itertools.pairwise(tokenizer.piece_edges(text))]
    assert len(parts) > 1
    ids, lengths = tokenizer.encode(parts, [number > 0 for number in range(len(parts))])
    assert len(lengths) == len(parts)
    return ids.tolist()


@pytest.mark.parametrize("text", LONG_TEXTS)
@pytest.mark.parametrize("name", PREFIXING)
def test_the_ids_of_the_pieces_are_those_of_the_document(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 64)
    plain = PREFIXING[name]()
    encoder = Encoder.of(PreTrainedTokenizerFast(tokenizer_object=plain))
    ids = ids_of(encoder, LONG_TEXTS[text])
    whole = plain.encode(LONG_TEXTS[text], add_special_tokens=False).ids
    assert plain.decode(ids) == plain.decode(whole)
    assert ids == whole


def test_words_cut_at_white_space_have_the_same_tokens() -> None:
    text = " ".join(documents(60))
    while len(text) < 3 * PIECE_CHARACTERS:
        text += " " + text
    encoder = Encoder.of(word_tokenizer())
    assert ids_of(encoder, text) == encoder.build().encode([text])[0].tolist()


def test_word_pieces_without_white_space_are_cut_at_signs_and_ideographs() -> None:
    tokenizer = word_tokenizer()
    encoder = Encoder.of(tokenizer)
    for text in ("bara,cost;" * 10_000, "bara文cost字" * 10_000):
        assert ids_of(encoder, text) == encoder.build().encode([text])[0].tolist()


def test_a_lane_reads_a_long_document_as_it_is(tmp_path: Path) -> None:
    """Three bytes, and tokens, a character: less than a character is asked for where a group lacks a token or two."""
    text = "สวัสดีชาวโลก" * 6_000
    (tmp_path / "s.jsonl").write_bytes(json_lines([text]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=PREFIXING["prepended"]())
    assert text_of_lane(tmp_path, tokenizer) == text


@pytest.mark.skipif(not REPORTS.exists(), reason="no shared data beside the checkout")
@pytest.mark.parametrize("kind", ["words", "thai", "x"])
def test_long_documents_of_reports_decode_to_themselves(kind: str) -> None:
    (path,) = (REPORTS / "long_docs" / kind).glob("*.gz")
    texts = [json.loads(line)["text"] for line in gzip.decompress(path.read_bytes()).splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(REPORTS / "tokenizers" / "llama_tok")
    assert text_of_lane(path.parent, tokenizer) == "".join(texts)


def text_of_lane(folder: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """What a lane reads of a corpus of one document, in its order."""
    plan = plan_for(
        folder, lanes=1, window_bytes=1 << 22, max_epochs=1, sequence_length=512, packing="concat", global_batch_size=1
    )
    plan = replace(plan, encoder=Mlm.framed(Encoder.of(tokenizer)))
    reading = lane(plan, 0)
    ids: list[int] = []
    while (found := row_of(reading)) is not None:
        _, group, row, _ = found
        (segment,) = np.flatnonzero(group.rows.segment_row == row)
        ids += group.rows.input_ids[row, : group.rows.segment_length[segment]].tolist()
    framing = {*plan.encoder.prefix, *plan.encoder.suffix}
    text: str = tokenizer.backend_tokenizer.decode([i for i in ids if i not in framing], skip_special_tokens=False)
    return text


def test_a_group_that_lacks_less_than_a_character_reads_one(tmp_path: Path) -> None:
    """With three tokens a character, a token or two that a row lacks are no character when rounded down."""
    (tmp_path / "s.jsonl").write_bytes(json_lines(["ส"] * 400))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=PREFIXING["metaspace never"]())
    plan = plan_for(tmp_path, lanes=1, max_epochs=1, sequence_length=65, global_batch_size=1)
    alone = lane(replace(plan, encoder=Mlm.framed(Encoder.of(tokenizer))), 0)
    while row_of(alone) is not None:
        pass
    assert alone.cursors[0].documents == 400
