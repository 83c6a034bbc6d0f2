"""Special tokens of the user's own are text in a document, or tokens where the user says so; those of the model are text."""

from __future__ import annotations

import itertools
import json
from typing import Literal

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stream_pretrain.config import ObjectiveConfig
from stream_pretrain.data.randomness import Hashed
from stream_pretrain.data.rows import pieces
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.masking import Masks
from stream_pretrain.data.rows.packing import assemble, place
from stream_pretrain.data.rows.tokenizer_file import without_pieces
from stream_pretrain.data.rows.vocabulary import Vocabulary
from tests.corpora import VOCABULARY, word_tokenizer

OWN = [AddedToken("[DRUG]", special=True), AddedToken("[GENE]", special=True, lstrip=True, rstrip=True)]
DRUG, GENE = len(VOCABULARY), len(VOCABULARY) + 1


def bert() -> PreTrainedTokenizerFast:
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": OWN})
    assert tokenizer.convert_tokens_to_ids(["[DRUG]", "[GENE]"]) == [DRUG, GENE]
    return tokenizer


def gpt2() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE({token: i for i, token in enumerate(["<|endoftext|>", "<pad>", *alphabet])}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<|endoftext|>", pad_token="<pad>", mask_token="<mask>"
    )
    single = AddedToken("DRUG", special=True, single_word=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [*OWN, single]})
    return tokenizer


def tokens_of(tokenizer: PreTrainedTokenizerFast, text: str, special_tokens: Literal["text", "keep"]) -> list[str]:
    encoder = Encoder.of(tokenizer, special_tokens)
    tokens: list[str] = tokenizer.convert_ids_to_tokens(encoder.build().encode([text])[0].tolist())
    return tokens


def test_they_are_text_by_default_which_is_said() -> None:
    assert "[DRUG]" not in tokens_of(bert(), "bara [DRUG] cost", "text")
    assert Encoder.of(bert()).notes == (
        "special tokens in documents are read as text: [DRUG], [GENE]; --data.special-tokens keep reads them as tokens",
    )
    assert Encoder.of(word_tokenizer()).notes == ()


def test_many_are_not_all_named() -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [f"[X{i}]" for i in range(40)]})
    assert "[X0], [X1], [X2], [X3], [X4] and 35 more;" in Encoder.of(tokenizer).notes[0]


def test_kept_ones_are_tokens_and_those_of_the_model_are_text() -> None:
    text = "bara [DRUG] cost[DRUG]bara [MASK] [SEP] [CLS] [PAD] [UNK] cost [GENE] bara"
    found = tokens_of(bert(), text, "keep")
    assert found[:4] == ["bara", "[DRUG]", "cost", "[DRUG]"]
    assert found[-3:] == ["cost", "[GENE]", "bara"]
    assert not {"[MASK]", "[SEP]", "[CLS]", "[PAD]"} & set(found)
    assert Encoder.of(bert(), "keep").notes == (
        "special tokens in documents are tokens, never drawn as a random replacement: [DRUG], [GENE]",
    )


def test_bytes_keep_them_too_with_the_spaces_they_take_in_and_only_as_words_where_they_say_so() -> None:
    found = tokens_of(gpt2(), "a [DRUG] b [GENE] DRUG DRUGS <|endoftext|><pad><mask>", "keep")
    assert found[:8] == ["a", "Ġ", "[DRUG]", "Ġ", "b", "[GENE]", "DRUG", "Ġ"]
    assert found.count("DRUG") == 1
    assert not {"<|endoftext|>", "<pad>", "<mask>"} & set(found)


def test_the_text_around_them_has_the_ids_it_has_without_them() -> None:
    """BERT's normalizer is not done by a table then, with the same result."""
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.add_special_tokens({"additional_special_tokens": OWN})
    text = "Bara CÔST bara\u0301 中 x.y"
    plain = tokens_of(tokenizer, text, "text")
    assert tokens_of(tokenizer, f"{text} [DRUG] {text}", "keep") == [*plain, "[DRUG]", *plain]


def test_a_mask_token_that_is_listed_with_them_stays_text() -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[MASK]", "[DRUG]"]})
    encoder = Encoder.of(tokenizer, "keep")
    assert encoder.kept == (DRUG,)
    assert VOCABULARY.index("[MASK]") not in encoder.build().encode(["bara [MASK] [DRUG]"])[0]


def test_without_any_of_ones_own_there_is_nothing_to_keep_which_is_said() -> None:
    encoder = Encoder.of(word_tokenizer(), "keep")
    assert encoder.kept == ()
    assert "--data.special-tokens keep changes nothing" in encoder.notes[0]


def test_pieces_of_a_long_document_do_not_part_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 32)
    tokenizer = Encoder.of(bert(), "keep").build()
    for shift in range(32):
        text = "b" * shift + "[DRUG]" * 20
        edges = tokenizer.piece_edges(text)
        parts = [text[first:stop] for first, stop in itertools.pairwise(edges)]
        assert tokenizer.encode(parts, [True] * len(parts))[0].tolist().count(DRUG) == 20


def test_kept_ones_are_masked_and_predicted_and_never_replace_another() -> None:
    tokenizer = bert()
    kept = Encoder.of(tokenizer, "keep").kept
    vocabulary = Vocabulary.of(tokenizer, "whole_word", kept)
    assert not vocabulary.special[[DRUG, GENE]].any()
    assert not {DRUG, GENE} & set(vocabulary.drawable.tolist())
    assert Vocabulary.of(tokenizer).special[[DRUG, GENE]].all()
    placements, _ = place([60], 0, 1, 64, 2, "best_fit")
    bara = VOCABULARY.index("bara")
    rows = assemble(placements, np.array([bara, DRUG] * 30, dtype=np.int32), np.array([0, 60]), 64, (2,), (3,), 0)
    objective = ObjectiveConfig(mask_rate=0.5, mask_share=0.0, random_share=1.0, selection="whole_word")
    labelled = Masks.of(rows, vocabulary, objective, Hashed((0,))).label(range(1), 0.5)
    assert DRUG in labelled.labels
    changed = labelled.input_ids != rows.input_ids
    assert changed.sum() > 20
    assert DRUG not in labelled.input_ids[changed]


def test_a_kept_one_is_a_word_of_its_own() -> None:
    tokenizer = gpt2()
    encoder = Encoder.of(tokenizer, "keep")
    vocabulary = Vocabulary.of(tokenizer, "whole_word", encoder.kept)
    ids = encoder.build().encode(["(([DRUG]))"])[0]
    assert vocabulary.begins_word(ids).tolist() == [True, False, True, True, False]


def sentence_piece(model: models.Model) -> PreTrainedTokenizerFast:
    plain = Tokenizer(model)
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, **names)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_id_0>"]})
    return tokenizer


NAMES = ["<unk>", "<s>", "</s>", "<pad>", "<mask>", "<extra_id_0>"]
SIGNS = ["\u2581", *"<>/_0123456789abcdefghijklmnopqrstuvwxyz", "</", "s>"]
UNIGRAM = models.Unigram([*((name, 0.0) for name in NAMES), *((sign, -5.0) for sign in SIGNS)], unk_id=0)
BPE = models.BPE(
    {piece: number for number, piece in enumerate([*NAMES, *SIGNS])},
    [("<", "/"), ("s", ">"), ("</", "s>"), ("<", "s>")],
    unk_token="<unk>",
    fuse_unk=True,
)


@pytest.mark.parametrize("model", [UNIGRAM, BPE], ids=["unigram", "bpe"])
def test_special_tokens_that_are_pieces_of_the_model_are_text_too(model: models.Model) -> None:
    tokenizer = sentence_piece(model)
    text = "a<s>b</s> <pad> <mask><mask> <extra_id_0>"
    plain = tokenizer.backend_tokenizer
    plain.encode_special_tokens = True
    assert {1, 2} <= set(plain.encode(text, add_special_tokens=False).ids), "the model makes them of their text"
    plain.encode_special_tokens = False
    ids = Encoder.of(tokenizer).build().encode([text])[0].tolist()
    assert not set(ids) & set(range(6))
    assert plain.decode(ids).replace("\u2581", " ").replace(" ", "") == text.replace(" ", "")
    kept = Encoder.of(tokenizer, "keep")
    assert [i for i in kept.build().encode([text])[0].tolist() if i < 6] == [5]
    assert kept.document_end == (2,)
    ordinary = "abc <x> ./ a/b <sx"
    expected = plain.encode(ordinary, add_special_tokens=False).ids
    assert Encoder.of(tokenizer).build().encode([ordinary])[0].tolist() == expected


@pytest.mark.parametrize("prefix", ["", "##"])
def test_merges_that_lead_to_a_special_token_go_and_so_do_those_that_use_it(prefix: str) -> None:
    behind = [f"{prefix}{sign}" for sign in "s>xb"]
    vocabulary = {piece: number for number, piece in enumerate(["a", *"<s>xb", "<s", "<s>", "<s>x", "ab", *behind])}
    merges = [["<", behind[0]], ["<s", behind[1]], ["<s>", behind[2]], ["a", behind[3]]]
    plain = Tokenizer(models.BPE(vocabulary, [(first, second) for first, second in merges], continuing_subword_prefix=prefix))
    plain.add_special_tokens(["<s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="<s>")
    ids = Encoder.of(tokenizer).build().encode(["ab", "<s>x"])[0].tolist()
    assert ids == [vocabulary[piece] for piece in ("ab", "<s", behind[1], behind[2])]
    file = json.loads(plain.to_str())
    file["model"]["merges"] = [" ".join(merge) for merge in merges]  # as earlier versions of `tokenizers` wrote them
    left = json.loads(without_pieces(json.dumps(file), ["<s>"]))["model"]["merges"]
    assert left == [" ".join(merges[0]), " ".join(merges[3])]


def test_a_mask_token_that_its_file_does_not_call_special_is_text() -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([AddedToken("[BLANK]", normalized=False)])
    tokenizer._special_tokens_map["mask_token"] = "[BLANK]"
    assert tokenizer.mask_token_id == DRUG
    assert DRUG not in Encoder.of(tokenizer).build().encode(["bara [BLANK]"])[0]
