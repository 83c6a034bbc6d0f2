"""`ledger`: what it says of a step is what the run has consumed in it, document by document."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stream_pretrain import cli
from stream_pretrain.config import Config
from stream_pretrain.replay.ledger import Segment, segments_of
from stream_pretrain.replay.recorded_run import recorded_run
from stream_pretrain.training.steps import loop
from tests.corpora import documents, json_lines
from tests.training.runs import run_here, write_tiny_modernbert

Consumed = dict[int, list[Segment]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Consumed]:
    """A run of nine steps over two sources, stopped after six and resumed; and what its loop has seen."""
    folder = tmp_path_factory.mktemp("run")
    for name, seed in (("a", 1), ("b", 2)):
        (folder / f"{name}.jsonl").write_bytes(json_lines(documents(60, seed=seed)))
    model = str(write_tiny_modernbert(folder / "model"))
    sources = [
        {"name": name, "dataset": str(folder / f"{name}.jsonl"), "weight": weight} for name, weight in (("a", 2), ("b", 1))
    ]
    consumed: Consumed = {}
    keep = loop._keep

    def recorded(cursors: Any, rows: Any) -> None:
        keep(cursors, rows)
        consumed[rows.step + 1] = segments_of(rows, rows.step + 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_keep", recorded)
        for steps in (6, 9):
            run = run_here(
                [f"--data.sources={json.dumps(sources)}", f"--model.config={model}", f"--model.tokenizer={model}",
                 f"--output-dir={folder / 'out'}", f"--max-steps={steps}", "--global-batch-size=8", "--sequence-length=64",
                 "--lanes=4", "--save-every=2", "--keep-last=1", "--wandb=disabled", "--objective.final-mask-rate=0.2"]
            )  # fmt: skip
            assert run.returncode == 0, run.stderr
    return folder / "out", consumed


def asked(capsys: pytest.CaptureFixture[str], out: Path, *arguments: str) -> Any:
    code = cli.main(["ledger", str(out), *arguments, "--workers=0", "--json"])
    text, said = capsys.readouterr()
    assert code == 0, said
    return json.loads(text)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["ledger", *arguments])
    return code, capsys.readouterr().err.splitlines()[-1]


def documents_in(segments: list[Segment]) -> dict[tuple[int, str, int], list[int]]:
    rows: dict[tuple[int, str, int], set[int]] = defaultdict(set)
    for one in segments:
        rows[one.epoch, ("a.jsonl", "b.jsonl")[one.shard], one.offset].add(one.row)
    return {document: sorted(found) for document, found in rows.items()}


def test_every_step_is_told_with_the_documents_that_the_run_consumed_in_it(
    finished: tuple[Path, Consumed], capsys: pytest.CaptureFixture[str]
) -> None:
    out, consumed = finished
    assert sorted(consumed) == list(range(1, 10))
    for step in (1, 2, 5, 7, 9):
        told = asked(capsys, out, f"--step={step}")
        assert told["step"] == step
        found = {(one["epoch"], one["shard"], one["offset"]): one["rows"] for one in told["documents"]}
        assert found == documents_in(consumed[step]), step


def test_the_export_has_every_segment_of_the_run(
    finished: tuple[Path, Consumed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, consumed = finished
    told = asked(capsys, out, f"--ledger.export={tmp_path / 'all.parquet'}")
    records = pq.read_table(tmp_path / "all.parquet").to_pylist()
    expected = [
        {
            "step": one.step, "row": one.row, "source": "ab"[one.source], "epoch": one.epoch,
            "shard": ("a.jsonl", "b.jsonl")[one.shard], "offset": one.offset, "tokens": one.tokens,
        }
        for step in range(1, 10)
        for one in consumed[step]
    ]  # fmt: skip
    assert records == expected
    assert told == {"file": str(tmp_path / "all.parquet"), "records": len(expected), "steps": [1, 9]}
    part = asked(capsys, out, f"--ledger.export={tmp_path / 'part.parquet'}", "--ledger.steps=4:5")
    assert part["records"] == len(consumed[4]) + len(consumed[5])


def test_a_document_is_found_in_every_step_that_trained_on_it(
    finished: tuple[Path, Consumed], capsys: pytest.CaptureFixture[str]
) -> None:
    out, consumed = finished
    one = consumed[3][0]
    name = f"{('a.jsonl', 'b.jsonl')[one.shard]}:{one.offset}"
    expected: dict[tuple[int, int], int] = defaultdict(int)
    for step, segments in consumed.items():
        for other in segments:
            if (other.shard, other.offset) == (one.shard, one.offset):
                expected[step, other.epoch] += other.tokens
    told = asked(capsys, out, f"--ledger.document={name}")
    assert [(seen["step"], seen["epoch"], seen["tokens"]) for seen in told["seen"]] == [
        (step, epoch, tokens) for (step, epoch), tokens in sorted(expected.items())
    ]
    assert cli.main(["ledger", str(out), f"--ledger.document={name}", "--ledger.steps=3:3", "--workers=0"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == f"{name}: in 1 of steps 3 to 3"
    assert "the run is finished at step 9\n" in said.err
    assert "reads 1 steps again, 8 rows, from the cursors of step 2\n" in said.err


def test_texts_are_shown_with_a_step(finished: tuple[Path, Consumed], capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = finished
    told = asked(capsys, out, "--step=4", "--ledger.text")
    for one in told["documents"]:
        shard = (out.parent / one["shard"]).read_bytes()
        assert one["text"] == json.loads(shard[one["offset"] :].split(b"\n", 1)[0])["text"]
    assert told["documents"]


def test_a_folder_that_is_running_half_copied_or_none_is_told_as_what_it_is(
    finished: tuple[Path, Consumed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, consumed = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    state = json.loads((copy / "run.json").read_text()) | {"state": "running", "host": "node7"}
    (copy / "run.json").write_text(json.dumps(state))
    assert cli.main(["ledger", str(copy), "--step=5", "--workers=0"]) == 0
    said = capsys.readouterr()
    assert "the run is running, or killed, on node7: what is behind its last checkpoint, step 9, is not known\n" in said.err
    assert said.out.startswith(f"step 5: {len(documents_in(consumed[5]))} documents in 8 rows\n")
    (copy / "run.json").unlink()
    assert asked(capsys, copy, "--step=5")["step"] == 5
    (copy / "checkpoints/step-00000009/trainer.json").unlink()
    code, line = refused(capsys, str(copy), "--step=5")
    assert code == 1
    assert line.startswith(f"error: {copy}: no checkpoint can be read; the newest: ")
    shutil.rmtree(copy / "checkpoints")
    assert refused(capsys, str(copy), "--step=5")[1] == (
        f"error: {copy} has no checkpoint yet, which says what the run reads: ask again after the first one"
    )
    (copy / "config.yaml").unlink()
    assert refused(capsys, str(copy), "--step=5")[1] == (
        f"error: {copy}/config.yaml is missing: was the folder copied in part?"
    )
    assert refused(capsys, str(tmp_path / "none"), "--step=5")[1] == (
        f"error: {tmp_path}/none is not there: give the folder of a run"
    )


def test_a_run_with_cursors_of_another_version_is_refused_also_for_steps_before_them(
    finished: tuple[Path, Consumed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    checkpoint = copy / "checkpoints" / "step-00000009"
    state = json.loads((checkpoint / "stream.json").read_text()) | {"version": 4}
    (checkpoint / "stream.json").write_text(json.dumps(state))
    assert refused(capsys, str(copy), "--step=1")[1].startswith(
        f"error: {checkpoint} has cursors of version 4, this program reads version 5: read it with stream_pretrain "
    )


def test_a_tokenizer_that_is_gone_is_told_with_what_each_of_its_places_has_instead(
    finished: tuple[Path, Consumed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, gone = tmp_path / "copy", tmp_path / "gone"
    shutil.copytree(finished[0], copy)
    checkpoint = copy / "checkpoints/step-00000009"
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    model = str(finished[0].parent / "model")
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace(model, str(gone)))
    code, line = refused(capsys, str(copy), "--step=5")
    assert code == 1
    assert line.startswith(f"error: the tokenizer of the run is gone: no tokenizer in {checkpoint}: ")
    assert line.endswith(f"; no such file or folder: {gone}; put it back")
    shutil.copytree(model, gone)
    tokenizer = json.loads((gone / "tokenizer.json").read_text())
    (gone / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": None}))
    assert refused(capsys, str(copy), "--step=5")[1].endswith(f"; that of {gone} has changed since the run; put it back")


def test_questions_that_cannot_be_answered_are_refused(
    finished: tuple[Path, Consumed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(finished[0])
    usage = "error: give one of --ledger.step N, --ledger.document SHARD:OFFSET and --ledger.export FILE"
    assert refused(capsys, out) == (2, usage)
    assert refused(capsys, out, "--step=1", "--ledger.document=a.jsonl:0") == (2, usage)
    assert refused(capsys, "--step=1") == (2, "error: ledger needs the folder of one run, such as runs/first")
    assert refused(capsys, out, "--step=10")[1] == "error: --ledger.step 10: the run has cursors for steps 1 to 9"
    assert refused(capsys, out, "--ledger.document=c.jsonl:0")[1] == (
        "error: --ledger.document c.jsonl:0: give SHARD:OFFSET, as --ledger.step shows it; shards are named as a.jsonl"
    )
    assert refused(capsys, out, "--step=2", "--sequence-length=32") == (
        2,
        "error: --data.sequence-length is 64 in this run, not 32: leave it out, the run's own options count",
    )
    absent = tmp_path / "none/a.parquet"
    assert refused(capsys, out, f"--ledger.export={absent}")[1] == f"error: --ledger.export {absent}: No such file or directory"
    (tmp_path / "there").touch()
    assert refused(capsys, out, f"--ledger.export={tmp_path / 'there'}")[1] == (
        f"error: --ledger.export {tmp_path / 'there'} is there already: remove it, or give another name"
    )


def test_a_corpus_that_has_moved_is_read_where_it_is_now(
    finished: tuple[Path, Consumed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, consumed = finished
    copy, now = tmp_path / "copy", tmp_path / "now"
    shutil.copytree(out, copy)
    now.mkdir()
    sources = []
    for name, weight in (("a", 2), ("b", 1)):
        shutil.copy(out.parent / f"{name}.jsonl", now)
        sources.append({"name": name, "dataset": str(now / f"{name}.jsonl"), "weight": weight})
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace(str(out.parent), "/gone"))
    assert refused(capsys, str(copy), "--step=2")[0] == 1
    told = asked(capsys, copy, "--step=2", f"--data.sources={json.dumps(sources)}")
    assert len(told["documents"]) == len(documents_in(consumed[2]))


def test_a_run_that_keeps_to_tokenizers_is_read_again_with_it(
    finished: tuple[Path, Consumed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nanotoken")
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    assert recorded_run(copy, Config(), []).plan.encoder.engine == "nanotoken"
    (copy / "engine.json").write_text('{"engine": "tokenizers", "why": "a document"}')
    assert recorded_run(copy, Config(), []).plan.encoder.engine == "tokenizers"
