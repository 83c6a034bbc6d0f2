"""A document has the same ids at every reading: nothing draws at random, and no upgrade changes them unseen."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stream_pretrain.data.rows import tokenizers_engine
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.tokenizer_probe import note_on_engine, probe_texts, probed, refuse_mismatch
from stream_pretrain.errors import CheckpointError, ModelError
from tests.corpora import word_tokenizer

REPORTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "reports"


def byte_level(dropout: float | None = None) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<eos>", *alphabet, "ba", "baba"])}
    plain = Tokenizer(models.BPE(vocabulary, [("b", "a"), ("ba", "ba")], dropout=dropout))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>")


def readings(encoder: Encoder, text: str) -> set[tuple[int, ...]]:
    tokenizer = encoder.build()
    return {tuple(tokenizer.encode([text])[0].tolist()) for _ in range(20)}


def test_bpe_that_forgets_merges_at_random_does_so_no_more_and_is_exported_as_it_came() -> None:
    tokenizer = byte_level(dropout=0.3)
    assert len({tuple(tokenizer("ba" * 20)["input_ids"]) for _ in range(20)}) > 1
    encoder = Encoder.of(tokenizer)
    assert readings(encoder, "ba" * 20) == readings(Encoder.of(byte_level()), "ba" * 20)
    assert readings(encoder, "ba" * 20) == {(258,) * 10}
    (note,) = encoder.notes
    assert "dropout 0.3 is random and switched off" in note
    assert json.loads(tokenizer.backend_tokenizer.to_str())["model"]["dropout"] == pytest.approx(0.3)
    probed(encoder, "here")
    assert Encoder.of(byte_level(dropout=0.0)).notes == ()


@pytest.mark.parametrize("setting", ["dropout", "alpha", "nbest_size"])
def test_whatever_a_file_calls_drawing_at_random_is_switched_off(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tokenizers` 0.23 samples with Unigram, and writes neither setting."""
    tokenizer = byte_level()
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"][setting] = 0.25

    class Backend:
        def to_str(self) -> str:
            return json.dumps(content)

    monkeypatch.setattr(type(tokenizer), "backend_tokenizer", Backend())
    encoder = Encoder.of(tokenizer)
    assert json.loads(encoder.serialized)["model"][setting] is None
    assert f"{setting} 0.25 is random" in encoder.notes[0]


def test_any_other_source_of_chance_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    build = tokenizers_engine.plain_tokenizer

    def by_chance(serialized: str) -> Tokenizer:
        tokenizer = build(serialized)
        tokenizer.model.dropout = 0.1
        return tokenizer

    monkeypatch.setattr(tokenizers_engine, "plain_tokenizer", by_chance)
    with pytest.raises(ModelError, match="tokenizer here is random: a text has other ids each time"):
        probed(Encoder.of(byte_level()), "here")


def test_an_upgrade_that_changes_no_id_is_said_and_one_that_does_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.of(byte_level())
    began = probed(encoder, "here")
    assert note_on_engine(probed(encoder, "here"), began) is None
    monkeypatch.setattr(tokenizers, "__version__", "0.99.0")
    later = probed(encoder, "here")
    was = f"tokenizers {began.version}"
    assert note_on_engine(later, began) == f"the run began with {was}, and resumes with tokenizers 0.99.0: the ids are the same"
    expected = (
        f"tokenizers 0.99.0 gives other ids than {was}, which the run began with: install tokenizers=={began.version}, "
        "or start a new run with another --output-dir"
    )
    with pytest.raises(CheckpointError) as refused:
        note_on_engine(replace(later, ids="others"), began)
    assert str(refused.value) == expected
    assert "cannot be compared" in str(note_on_engine(replace(later, texts="others", ids="others"), began))


def test_ranks_that_give_other_ids_are_refused() -> None:
    engine = probed(Encoder.of(byte_level()), "here")
    refuse_mismatch([engine, replace(engine, version="0.99.0")])
    with pytest.raises(ModelError, match=r"tokenizers 0\.99\.0 of rank 1 gives other ids than .* of rank 0"):
        refuse_mismatch([engine, replace(engine, version="0.99.0", ids="others")])


@cache
def ids_with(normalizer: normalizers.Normalizer | None) -> str:
    """The hash of the ids where a tokenizer does something else with a text first."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizer
    return probed(Encoder.of(tokenizer), "here").ids


@pytest.mark.parametrize(
    "normalizer",
    [
        *(normalizers.Replace(character, "") for character in "\u2e43\u0a76\u166d\u0301\u200d\u0000"),
        normalizers.NFC(),
        normalizers.Replace("\U0001f3fd", ""),
        normalizers.Replace("<|endoftext|>", "<eos>"),
        normalizers.Replace("[MASK]", "m"),
    ],
    ids=repr,
)
def test_the_texts_tell_a_change_in_any_script_or_sign(normalizer: normalizers.Normalizer) -> None:
    assert ids_with(normalizer) != ids_with(None)


@pytest.mark.parametrize("sign", "\u2e43\u0a76")
def test_a_sign_that_becomes_punctuation_is_told_by_word_pieces(sign: str) -> None:
    tokenizer = word_tokenizer()
    before = probed(Encoder.of(tokenizer), "here").ids
    isolated = pre_tokenizers.Split(sign, "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([isolated, pre_tokenizers.BertPreTokenizer()])
    assert probed(Encoder.of(tokenizer), "here").ids != before


def test_a_setting_that_a_later_version_writes_and_that_is_off_is_no_other_tokenizer() -> None:
    encoder = Encoder.of(byte_level())
    content = json.loads(encoder.serialized)
    content["model"] |= {"new_setting": None, "newer_setting": False}
    assert replace(encoder, serialized=json.dumps(content)).fingerprint == encoder.fingerprint
    content["model"]["newer_setting"] = True
    assert replace(encoder, serialized=json.dumps(content)).fingerprint != encoder.fingerprint


def test_few_texts_are_asked_for_so_that_a_start_does_not_wait() -> None:
    assert sum(map(len, probe_texts())) < 40_000


@pytest.mark.skipif(not REPORTS.exists(), reason="no shared data beside the checkout")
def test_the_documents_of_a_report_have_the_same_ids_at_every_reading() -> None:
    texts = [json.loads(line)["text"] for line in (REPORTS / "bpe_dropout" / "a.jsonl").read_bytes().splitlines()]
    assert len(texts) == 400
    tokenizer = AutoTokenizer.from_pretrained(REPORTS / "tokenizers" / "gpt2_dropout")
    encoder = Encoder.of(tokenizer)
    first, second = (encoder.build().encode(texts)[0].tolist() for _ in range(2))
    assert first == second
    tokenizer.backend_tokenizer.model.dropout = None
    assert first == [i for text in texts for i in tokenizer(text)["input_ids"]]
    assert "dropout 0.1 is random and switched off" in encoder.notes[0]
