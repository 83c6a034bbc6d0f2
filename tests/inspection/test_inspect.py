"""`inspect`: what it says before a run is what the run then finds."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from stream_pretrain import cli
from stream_pretrain.data.rows.train_rows import TrainRows
from stream_pretrain.inspection.report import histogram
from stream_pretrain.inspection.shown_rows import lines_of_rows
from tests.corpora import documents, json_lines, write_shard
from tests.training.runs import write_tiny_modernbert


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_modernbert(tmp_path_factory.mktemp("model")))


def inspected(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert cli.main(["inspect", *arguments, "--workers=0", "--json"]) == code
    return json.loads(capsys.readouterr().out)


def lines(capsys: pytest.CaptureFixture[str], *arguments: str, command: tuple[str, ...] = ("inspect",)) -> str:
    assert cli.main([*command, *arguments, "--workers=0"]) == 0
    return capsys.readouterr().out


def last_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["inspect", *arguments])
    return code, capsys.readouterr().err.splitlines()[-1]


def test_documents_are_counted_by_what_is_made_of_them(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["bara bast", "bara bast", "", "Привет мир", "doc 7"]
    body = json_lines(texts) + b'{"text": 3}\n' + b"no json\n"
    (tmp_path / "a.jsonl").write_bytes(body)
    told = inspected(capsys, f"--dataset={tmp_path}/a.jsonl", f"--model.tokenizer={model}", "--sequence-length=16", code=0)
    [source] = told["sources"]
    sample = source["sample"]
    assert (sample["read"], sample["documents"], sample["duplicates"], sample["empty"]) == (7, 4, 1, 1)
    assert sample["skipped"] == 2
    assert len(sample["examples_skipped"]) == 2
    assert sample["examples_skipped"][1].startswith("a.jsonl:")
    assert source["scripts"]["Cyrillic"] == pytest.approx(9 / (8 + 8 + 9 + 3))
    assert source["unknown_tokens"] == pytest.approx(2 / 8)
    assert source["tokens"] == 8 + 2 * 4
    said = "\n".join(told["warnings"])
    assert "28.6% of the documents are skipped (a.jsonl:" in said
    assert "25.0% of the tokens are unknown: give another --model.tokenizer" in said
    assert "--data.drop-duplicates leaves out those of a window" in said


def test_a_corpus_is_looked_at_without_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(documents(20)))
    told = inspected(capsys, f"--dataset={tmp_path}/a.jsonl")
    [source] = told["sources"]
    assert source["characters_per_document"]["max"] == max(map(len, documents(20)))
    assert "tokens" not in source
    assert told["rows"] == []
    assert last_error(capsys, f"--dataset={tmp_path}/a.jsonl", "--inspect.rows=1") == (
        2, "error: --inspect.rows needs a tokenizer: give --model or --model.tokenizer",
    )  # fmt: skip
    assert last_error(capsys, f"--dataset={tmp_path}/none.jsonl")[0] == 1


def test_rows_show_where_documents_begin_and_what_is_masked(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(["bara bast ball bamp band " * 3] * 40))
    said = lines(
        capsys, f"--dataset={tmp_path}/a.jsonl", f"--model.tokenizer={model}", "--sequence-length=40", "--inspect.rows=2"
    )
    legend, first, second, *_ = said[said.index("¦ a document") :].splitlines()
    assert legend == "¦ a document begins   [word] masked   {shown|word} replaced at random   (word) kept, predicted too"
    for row in (first, second):
        assert row.count("¦ [CLS]") == row.count("[SEP]") == 2
        labelled = re.findall(r"\[[a-z]+\]|\{[^|]+\|[a-z]+\}|\([a-z]+\)", row)
        assert len(labelled) == 9  # 0.3 of the 30 words
        row = row.partition(" ... ")[0]  # in front of the padding
        words = [re.sub(r"\{.*\||[\[\](){}]", "", word) for word in row.split() if word not in ("¦", "[CLS]", "[SEP]")]
        assert set(words) == {"bara", "bast", "ball", "bamp", "band"}
    assert "\x1b" not in said
    assert max(map(len, said[: said.index("¦ a document")].splitlines())) < 80


def test_rows_of_byte_level_tokens_have_spaces_where_the_text_has_them() -> None:
    words = ["<s>", "</s>", "<mask>", "T", "RU", "NC", "Ġthe", "Ġt", "rigg", "ers", ".", "Ċ", "Ġ", "Ġa"]
    encoder = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<s>"))
    encoder.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=encoder, bos_token="<s>", eos_token="</s>", mask_token="<mask>")
    ids = [0, 3, 4, 5, 7, 8, 2, 10, 11, 6, 12, 13, 1]
    slots, source, segment = [2, 6, 4, 9], [0], [0, len(ids)]
    rows = TrainRows(np.array([*ids, *slots, *source, *segment], dtype=np.int32), count=1, length=len(ids), slots=2)
    assert list(lines_of_rows(rows, tokenizer, causal=False, coloured=False)) == [r"¦ <s> T(RU)NC trigg[ers].\n the Ġ a </s>"]


def test_lengths_of_documents_are_shown_as_bars_by_powers_of_two(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["bara " * words for words in (1, 1, 2, 3, 3, 3, 3, 16, 30, 31)]
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts))
    options = [f"--dataset={tmp_path}/a.jsonl", f"--model.tokenizer={model}", "--sequence-length=16"]
    [source] = inspected(capsys, *options)["sources"]
    assert source["histogram_of_tokens"] == {"edges": [1, 2, 4, 8, 16], "counts": [2, 5, 0, 0, 3]}
    said = lines(capsys, *options)
    assert said[said.index("max") :].splitlines()[1:6] == [
        "                         1+ ████████████                          2  20.0%",
        "                         2+ ██████████████████████████████        5  50.0%",
        "                         4+                                       0   0.0%",
        "                         8+                                       0   0.0%",
        "                        16+ ██████████████████                    3  30.0%",
    ]
    [source] = inspected(capsys, options[0])["sources"]
    assert source["histogram_of_characters"]["edges"] == [4, 8, 16, 32, 64, 128]
    assert histogram(np.array([0, 0, 1, 2**20])) == {
        "edges": [0, *(2**power for power in range(21))],
        "counts": [2, 1, *[0] * 19, 1],
    }


def test_a_damaged_shard_is_told_and_the_next_one_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        write_shard(tmp_path / f"{number}", documents(80, seed=number), "zst")
    damaged = tmp_path / "0.jsonl.zst"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    told = inspected(capsys, f"--dataset={tmp_path}/*.zst", code=1)
    [source] = told["sources"]
    assert len(source["sample"]["damaged"]) == 1
    assert not source["sample"]["is_whole"]
    assert source["sample"]["documents"] >= 80
    assert "0.jsonl.zst" in told["warnings"][0]
    assert told["warnings"][0].endswith("; --data.on-bad-shard skip goes on without it")
    told = inspected(capsys, f"--dataset={tmp_path}/*.zst", "--data.on-bad-shard=skip", code=0)
    assert told["warnings"][0].endswith("; a run skips the rest of it")
    (tmp_path / "1.jsonl.zst").unlink()
    damaged.write_bytes(b"no frame")
    told = inspected(capsys, f"--dataset={tmp_path}/*.zst", "--data.on-bad-shard=skip", code=1)
    assert told["warnings"][0].startswith("no document has text: a run is refused")


def test_epochs_of_a_mixture_are_those_that_its_sources_have(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("a", 30), ("b", 90)):
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines(documents(count)))
    (tmp_path / "mix.yaml").write_text(
        "data:\n  sources:\n"
        f"    - {{name: a, dataset: {tmp_path}/a.jsonl, weight: 9}}\n"
        f"    - {{name: b, dataset: {tmp_path}/b.jsonl, weight: 1, max_epochs: 3}}\n"
    )
    options = [f"--config={tmp_path}/mix.yaml", f"--model.tokenizer={model}", "--sequence-length=64", "--global-batch-size=8"]
    told = inspected(capsys, *options, "--max-epochs=2")
    rows = [source["rows"] for source in told["sources"]]
    assert told["plan"]["epochs"] == [2, 3]
    assert told["plan"]["steps"] == pytest.approx((2 * rows[0] + 3 * rows[1]) / 8)
    plan = inspected(capsys, *options, "--max-epochs=2", "--max-steps=2")["plan"]
    assert (plan["steps"], plan["steps_error"]) == (2, 0)
    assert plan["epochs"] == pytest.approx([16 * 0.9 / rows[0], 16 * 0.1 / rows[1]])


def test_a_dry_run_takes_the_options_of_the_run_and_trains_nothing(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(documents(20)))
    out = tmp_path / "out"
    options = [
        *(f"--dataset={tmp_path}/a.jsonl", f"--model.config={model}", f"--model.tokenizer={model}", f"--output-dir={out}"),
        *("--sequence-length=64", "--max-steps=5", "--eval-every=5", "--data.heldout-fraction=0.2", "--dry-run"),
    ]
    said = lines(capsys, *options, command=())
    assert "  run           5 steps, ~" in said
    assert not out.exists()
    code = cli.main([option for option in options if "max-steps" not in option])
    assert (code, capsys.readouterr().err.splitlines()[-1]) == (
        2, "error: give --max-steps or --max-epochs: the run needs an end",
    )  # fmt: skip


def test_a_corpus_without_a_document_has_the_exit_code_of_the_refusal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in (b"", b"\n\n", b'{"text": " "}\n'):
        (tmp_path / "a.jsonl").write_bytes(content)
        for more in ((), ("--inspect.max-read-bytes=1",)):
            told = inspected(capsys, f"--dataset={tmp_path}/a.jsonl", *more, code=1)
            said = "no document has text: a run is refused; give another --dataset, or check --data.text-field"
            assert said in told["warnings"]


def test_rows_of_a_corpus_that_a_run_refuses_cost_nothing_of_the_report(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": " "}\n' * 9)
    options = [f"--dataset={tmp_path}/a.jsonl", f"--model.tokenizer={model}", "--sequence-length=16", "--inspect.rows=1"]
    told = inspected(capsys, *options, code=1)
    assert (told["sources"][0]["sample"]["empty"], told["rows"]) == (9, [])
    assert any(warning.startswith("a run is refused: lane 0 of ") for warning in told["warnings"])


def test_all_of_a_format_of_other_parsers_is_counted_too(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "bara bast\n" * 30)
    [source] = inspected(capsys, f"--dataset={tmp_path}/a.csv", f"--model.tokenizer={model}", "--sequence-length=16")["sources"]
    assert (source["documents"], source["tokens"], source["tokens_error"]) == (30, pytest.approx(30 * 4, rel=0.1), 0.001)


def test_shards_are_told_apart_by_where_they_can_be_entered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json_lines(documents(300))
    (tmp_path / "plain.jsonl").write_bytes(text)
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / "one.jsonl.zst").write_bytes(compress(text))
    lines = text.splitlines(keepends=True)
    (tmp_path / "many.jsonl.zst").write_bytes(b"".join(compress(b"".join(lines[i : i + 10])) for i in range(0, 300, 10)))
    for name, count in (("plain.jsonl", 1), ("one.jsonl.zst", 0), ("many.jsonl.zst", 1)):
        [source] = inspected(capsys, f"--dataset={tmp_path}/{name}", "--sequence-length=16")["sources"]
        assert source["sample"]["read_in_the_middle"] == count, name


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_stdout_cannot_encode_is_shown_as_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, encoding: str
) -> None:
    text = "doc 000001 é 漢 \U0001d4b3 " + "bara " * 20
    name = "caf\udce9.jsonl"  # whose name is not UTF-8
    (tmp_path / name).write_bytes(json_lines([text] * 20))
    found: list[str] = []
    for how in ([], ["--json"]):
        with monkeypatch.context() as patched:
            stdout = io.TextIOWrapper(io.BytesIO(), encoding)
            patched.setattr(sys, "stdout", stdout)
            options = [f"--dataset={tmp_path}", f"--model.tokenizer={model}", "--sequence-length=64", "--inspect.rows=1"]
            assert cli.main(["inspect", *options, "--workers=0", *how]) == 0
            found.append(stdout.buffer.getvalue().decode(encoding))  # type: ignore[attr-defined]
    shown, as_json = found
    assert "bara" in shown
    assert "sources" in json.loads(as_json)
