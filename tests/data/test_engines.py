"""Every engine makes the ids of `tokenizers`, and one that does not is found out."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import resource
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Literal

import pytest
import tokenizers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stream_pretrain.config import Config, DataConfig, ObjectiveConfig, TrainConfig
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.rows import engine_choice, engine_parity, engine_probes, installed_engines, parity_cache
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.engine_choice import Choice, choose
from stream_pretrain.data.rows.engine_parity import differing, excerpt, refuse_other_ids
from stream_pretrain.data.rows.engine_probes import probes
from stream_pretrain.data.rows.fast_engine import FastEngine
from stream_pretrain.data.rows.installed_engines import installed
from stream_pretrain.data.rows.pieces import PIECE_CHARACTERS
from stream_pretrain.errors import ConfigError, EngineError
from tests.broken_engine import Broken, breaks_at
from tests.corpora import documents, word_tokenizer, write_shard
from tests.data.plans import lane, ledger, plan_for, rows_of


def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE as RoBERTa has it, with a space before a text, and an added token that is not special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("b", "a"), ("Ġ", "ba"), ("c", "o"), ("Ġ", "co"), ("l", "l"), ("s", "t")]
    tokens = ["<s>", "<mask>", *alphabet, *(a + b for a, b in merges)]
    plain = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<s>", mask_token="<mask>")
    tokenizer.add_tokens([AddedToken("IL-6", normalized=False), AddedToken("    ", normalized=False)])
    return tokenizer


ROOT = Path(__file__).resolve().parents[2]
TOKENIZERS = {"nanotoken": word_tokenizer, "fastokens": byte_level}


def unigram() -> PreTrainedTokenizerFast:
    plain = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<unk>")


def replacing() -> PreTrainedTokenizerFast:
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "y")
    return tokenizer


def overlapping() -> PreTrainedTokenizerFast:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([AddedToken("mask", normalized=False)])
    return tokenizer


@pytest.fixture(autouse=True)
def nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stream_pretrain" / "engines.json"


def broken_at(word: str, monkeypatch: pytest.MonkeyPatch) -> FastEngine:
    breaks_at(word, monkeypatch)
    engine = replace(Encoder.of(word_tokenizer()), engine="nanotoken").build()
    assert isinstance(engine, FastEngine)
    return engine


@pytest.mark.parametrize("name", TOKENIZERS)
def test_rows_are_the_same_with_every_engine(name: str, tmp_path: Path) -> None:
    """Also those of a document in several pieces, and where a run goes on with another engine."""
    pytest.importorskip(name)
    texts = documents(60)
    texts[3:5] = ["[MASK] <mask> IL-6    il-6 <s> \x00e\u0301 中文", " ".join(documents(1200))]
    assert len(texts[4]) > 3 * PIECE_CHARACTERS
    write_shard(tmp_path / "s", texts, "plain")
    config = Config(
        data=DataConfig(dataset=str(tmp_path / "s.jsonl"), sequence_length=512, lanes=2, window_bytes=400_000),
        objective=ObjectiveConfig("clm"),
        train=TrainConfig(max_epochs=1, global_batch_size=2),
    )
    plan = stream_plan(config, TOKENIZERS[name]())
    fast = replace(plan, encoder=replace(plan.encoder, engine=name))
    assert fast.encoder.build().name == name
    assert fast.encoder.build().depends_on_start == (name == "fastokens")
    seen, cursors = ledger(plan, 60, workers=0)
    assert ledger(fast, 60, workers=0) == (seen, cursors)
    _, halfway = ledger(fast, 30, workers=0)
    assert ledger(plan, 30, workers=0, cursors=halfway, step=30) == (seen[30:], cursors)
    assert ledger(fast, 30, workers=1, cursors=halfway, step=30) == (seen[30:], cursors)


@pytest.mark.parametrize("name", [*TOKENIZERS, "tokenizers"])
def test_the_utf_8_of_a_text_has_its_ids(name: str) -> None:
    pytest.importorskip(name)
    engine = replace(Encoder.of(TOKENIZERS.get(name, word_tokenizer)()), engine=name).build()
    texts = [text for text in probes() if len(text) < PIECE_CHARACTERS]
    mixed = [text.encode() if number % 2 else text for number, text in enumerate(texts)]
    for continues in ([], [True] * 500):
        some = slice(len(continues) or None)
        (ids, lengths), (of_mixed, lengths_of_mixed) = (engine.encode(given[some], continues) for given in (texts, mixed))
        assert (ids.tolist(), lengths.tolist()) == (of_mixed.tolist(), lengths_of_mixed.tolist())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_installed_engine_is_checked_once_and_then_known(
    name: str, nothing_known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    encoder = Encoder.of(TOKENIZERS[name]())
    assert choose("auto", encoder).in_words() == f"tokenizing with {name} {installed(name)}"
    assert list(json.loads(nothing_known.read_text()).values()) == [""]
    monkeypatch.setattr(engine_choice, "probes", lambda _: pytest.fail("checked again"))
    assert choose("auto", encoder).name == choose(name, encoder).name == name
    assert choose("tokenizers", encoder) == Choice("tokenizers")


def test_the_probes_are_those_that_answers_are_known_of() -> None:
    """Where they change, engine_probes.VERSION is raised."""
    texts = probes()
    assert (len(texts), engine_probes.VERSION) == (5000, 1)
    assert hashlib.sha256("\ud800".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16] == "92522423100d5462"
    assert max(map(len, texts)) == 1 << 20
    assert {"", *"\x00\u0301中"} <= set("".join(texts)) | {""}
    assert probes(["[DRUG]"])[5000:] == ["[DRUG]", "a[DRUG]a", " [DRUG] ", "[DRUG][DRUG]", "[drug]"]


def test_an_engine_with_other_ids_is_not_chosen_and_refused_by_name(
    nothing_known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks_at("bamp", monkeypatch)
    encoder = Encoder.of(word_tokenizer())
    monkeypatch.setattr(engine_choice, "probes", lambda _: ["bara ball", "bara bamp ball"])
    other_ids = f"nanotoken 0.1.0 gives other ids than tokenizers {tokenizers.__version__} for 'bamp'"
    for _ in range(2):
        assert choose("auto", encoder) == Choice("tokenizers", other_ids)
        with pytest.raises(ConfigError) as refused:
            choose("nanotoken", encoder)
        assert str(refused.value) == f"--data.engine nanotoken: {other_ids}; give --data.engine auto"
    assert list(json.loads(nothing_known.read_text()).values()) == [other_ids]


def test_the_code_point_that_makes_a_difference_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = broken_at("\u0c5c", monkeypatch)
    assert list(differing(engine, engine.plain, ["bara", "bara ball \u0c5c bara", "ball"])) == [1]
    assert excerpt(engine, engine.plain, "bara ball \u0c5c bara " * 1000) == "'\\u0c5c' (U+0C5C)"


def test_an_engine_that_fails_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    breaks_at("bamp", monkeypatch)
    encoder = Encoder.of(word_tokenizer())
    monkeypatch.setattr(Broken, "encode", lambda *_: 1 / 0)
    assert choose("auto", encoder).why == "nanotoken 0.1.0 fails: division by zero; the same command resumes with tokenizers"


def test_an_engine_that_is_installed_and_cannot_be_loaded_is_not_chosen_and_asked_again_once_it_can(
    nothing_known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks_at("bamp", monkeypatch)
    encoder = Encoder.of(word_tokenizer())
    monkeypatch.setattr(engine_choice, "probes", lambda _: ["bara ball"])

    def cannot_be_loaded(_: Broken, __: str) -> None:
        raise ImportError("nanotoken_rs.abi3.so: failed to map segment")

    why = "nanotoken 0.1.0 cannot be loaded: nanotoken_rs.abi3.so: failed to map segment"
    for _ in range(2):  # before an answer is known, and after
        with monkeypatch.context() as broken:
            broken.setattr(Broken, "__init__", cannot_be_loaded)
            assert choose("auto", encoder) == Choice("tokenizers", why)
            with pytest.raises(ConfigError) as refused:
                choose("nanotoken", encoder)
            assert str(refused.value) == f"--data.engine nanotoken: {why}; give --data.engine auto"
            with pytest.raises(EngineError) as failed:
                replace(encoder, engine="nanotoken").build()
            assert str(failed.value) == f"{why}; the same command resumes with tokenizers"
        assert choose("auto", encoder) == Choice("nanotoken")


@pytest.mark.parametrize(
    ("tokenizer", "why"),
    [
        (unigram, "nanotoken does not support Unigram, fastokens does not support Unigram"),
        (replacing, "nanotoken does not support Replace, fastokens does not support WordPiece"),
        (
            overlapping,
            "nanotoken does not support added tokens that overlap, such as mask and [MASK], "
            "fastokens does not support WordPiece",
        ),
    ],
)
def test_a_tokenizer_that_no_fast_engine_supports_stays_with_tokenizers(
    tokenizer: Callable[[], PreTrainedTokenizerFast], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose("auto", Encoder.of(tokenizer())) == Choice("tokenizers", why)


def test_an_engine_that_is_not_installed_is_named_with_what_pip_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed_engines, "installed", lambda _: None)
    monkeypatch.setattr(engine_choice, "installed", lambda _: None)
    encoder = Encoder.of(word_tokenizer())
    said = choose("auto", encoder).in_words()
    assert said == f"tokenizing with tokenizers {tokenizers.__version__}: for a faster one, pip install nanotoken"
    with pytest.raises(ConfigError, match=r"^--data.engine gigatoken is not installed: pip install gigatoken, or give --data"):
        choose("gigatoken", encoder)
    monkeypatch.setattr(installed_engines, "installed", lambda _: "1")
    with pytest.raises(ConfigError, match=r"^--data.engine fastokens: fastokens does not support WordPiece; give --data"):
        choose("fastokens", encoder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"x": 1}', b"[" * 100_000])
def test_a_damaged_cache_knows_nothing_and_is_replaced(content: bytes, nothing_known: Path) -> None:
    nothing_known.parent.mkdir(parents=True)
    nothing_known.write_bytes(content)
    assert parity_cache.lookup("a") is None
    parity_cache.store("a", "")
    parity_cache.store("b", "differs")
    assert (parity_cache.lookup("a"), parity_cache.lookup("b")) == ("", "differs")
    assert [path.name for path in nothing_known.parent.iterdir()] == ["engines.json"]


def test_a_cache_that_cannot_be_written_costs_a_check_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    parity_cache.store("a", "")
    assert parity_cache.lookup("a") is None


def test_a_user_without_a_home_has_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)  # of no user, as in many containers
    monkeypatch.chdir(tmp_path)
    parity_cache.store("a", "")
    assert parity_cache.lookup("a") is None
    assert choose("auto", Encoder.of(word_tokenizer())).name in ("nanotoken", "tokenizers")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_on_a_full_disk_leaves_nothing_there(nothing_known: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        parity_cache.store("a", "differs " * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(nothing_known.parent.iterdir()) == []


def test_another_version_of_anything_is_another_question(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {parity_cache.key_of("{}", "nanotoken", "0.1.0"), parity_cache.key_of("{}", "nanotoken", "0.1.1")}
    asked |= {parity_cache.key_of("[]", "nanotoken", "0.1.0"), parity_cache.key_of("{}", "fastokens", "0.1.0")}
    monkeypatch.setattr(tokenizers, "__version__", "0.99.0")
    asked.add(parity_cache.key_of("{}", "nanotoken", "0.1.0"))
    monkeypatch.setattr(engine_probes, "VERSION", 99)
    asked.add(parity_cache.key_of("{}", "nanotoken", "0.1.0"))
    assert len(asked) == 6


def test_a_window_is_refused_for_one_document_of_its_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, texts = broken_at("doc 000500", monkeypatch), documents(1000, longest=2)

    def found(key: int) -> bool:
        try:
            refuse_other_ids(engine, texts, (key,), str)
        except EngineError:
            return True
        return False

    assert [key for key in range(3) if found(key)] == []
    monkeypatch.setattr(engine_parity, "SAMPLED", 0.5)
    assert 0 < sum(map(found, range(4))) < 4
    assert [found(key) for key in range(4)] == [found(key) for key in range(4)]
    monkeypatch.setattr(engine_parity, "SAMPLED", 1e-9)
    refuse_other_ids(engine, texts, (0,), str, first_characters=1000)
    with pytest.raises(EngineError, match=r"^0: nanotoken 0.1.0 gives other ids than tokenizers .* for 'doc 000500'; the same"):
        refuse_other_ids(engine, texts[500:], (0,), str, first_characters=1000)
    assert "gives other ids than tokenizers" in choose("auto", Encoder.of(word_tokenizer())).why


def test_a_sample_is_less_than_a_thousandth_of_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, texts = broken_at("bamp", monkeypatch), documents(2000)
    compared: list[str] = []

    def all_the_same(_engine: object, _plain: object, sample: Iterable[str]) -> Iterator[int]:
        compared.extend(sample)
        return iter(())

    monkeypatch.setattr(engine_parity, "differing", all_the_same)
    for block in range(100):
        refuse_other_ids(engine, texts, (block,), str)
    share = sum(map(len, compared)) / sum(map(len, texts)) / 100
    assert 0.0003 < share < 0.0007


def test_a_lane_gives_no_row_of_a_window_that_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = documents(400)
    texts[300] += " bamp \u0c5c"
    write_shard(tmp_path / "s", texts, "plain")
    breaks_at("bamp \u0c5c", monkeypatch)
    plan = plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1)
    plain, fast = lane(plan, 0), lane(replace(plan, encoder=replace(plan.encoder, engine="nanotoken")), 0)
    monkeypatch.setattr(engine_parity, "SAMPLED", 1 - 1e-9)
    rows: list[list[int]] = []
    where = rf"s\.jsonl, offset {offset_of(tmp_path / 's.jsonl', 300)}"
    with pytest.raises(EngineError, match=f"^{where}: nanotoken 0.1.0 gives other ids"):
        rows.extend(row for _ in iter(int, 1) for row in rows_of(fast, 1))
    assert len(rows) > 10
    assert rows == rows_of(plain, len(rows))


def offset_of(shard: Path, line: int) -> int:
    return sum(map(len, shard.read_bytes().splitlines(keepends=True)[:line]))


@pytest.mark.parametrize("special_tokens", ["text", "keep"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_in_documents_are_what_the_option_says_with_every_engine(
    name: str, special_tokens: Literal["text", "keep"]
) -> None:
    pytest.importorskip(name)
    tokenizer = TOKENIZERS[name]()
    own = AddedToken("[DRUG]", lstrip=True, normalized=False)
    tokenizer.add_special_tokens({"additional_special_tokens": [own, "<|gene|>"]})
    engine = replace(Encoder.of(tokenizer, special_tokens), engine=name).build()
    assert isinstance(engine, FastEngine)
    names = ["[DRUG]", "<|gene|>", "[MASK]", "<mask>", "<s>", "[SEP]", "[UNK]", "IL-6"]
    texts = probes(names)[5000:] + [f"bara {one}  {other}x" for one in names for other in names]
    assert [texts[index] for index in differing(engine, engine.plain, texts)] == []
    drug = tokenizer.convert_tokens_to_ids("[DRUG]")
    assert (drug in engine.encode(["bara [DRUG]"])[0]) == (special_tokens == "keep")


def test_the_script_names_the_document_and_the_code_point_that_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    breaks_at("\u0c5c", monkeypatch)
    monkeypatch.setattr(engine_probes, "probes", lambda _: ["bara", "ball"])
    texts = documents(20)
    texts[7] += " \u0c5c"
    shard = write_shard(tmp_path / "s", texts, "plain")
    loader = SourceFileLoader("engine_parity_script", str(ROOT / "scripts" / "engine_parity"))
    script = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(script)
    monkeypatch.setattr(script, "code_points", lambda: ["\u0c5b", "\u0c5c", "\u0c5d"])
    encoder = Encoder.of(word_tokenizer())
    assert script.compared("nanotoken", encoder, str(shard), 1.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"nanotoken differs in documents: s.jsonl, offset {offset_of(shard, 7)}: '\\u0c5c' (U+0C5C)",
        "nanotoken differs in code points: '\\u0c5c' (U+0C5C)",
    ]
    assert lines[2].startswith("nanotoken 0.1.0: 1 of 20 documents, 0 of 2 probes, 1 of 3 code points differ; ")
    assert not script.compared("fastokens", encoder, str(shard), 1.0)
    assert capsys.readouterr().out == "fastokens does not support WordPiece\n"
