"""`ledger`: what it says of a step is what the run has consumed in it, document by document."""

from __future__ import annotations

import gzip
import json
import resource
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stream_pretrain import cli
from stream_pretrain.config import Config
from stream_pretrain.data.documents.filters import is_heldout
from stream_pretrain.data.lanes.step_rows import Segment, StepRows
from stream_pretrain.replay.recorded_run import recorded_run
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
    advance = StepRows.advance

    def recorded(rows: StepRows, cursors: Any) -> None:
        advance(rows, cursors)
        consumed[rows.step + 1] = rows.segments()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepRows, "advance", recorded)
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


def held(line: bytes) -> bool:
    return is_heldout(json.loads(line)["text"], 0.1)


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
            "step": step, "row": one.row, "source": "ab"[one.source], "epoch": one.epoch,
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
    assert "reads 1 step again, 8 rows, from the cursors of step 2\n" in said.err


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
    assert "the run is running, or killed, on node7: what follows its last checkpoint, step 9, is not known\n" in said.err
    assert said.out.startswith(f"step 5: {len(documents_in(consumed[5]))} documents in 8 rows\n")
    (copy / "run.json").write_text(json.dumps(state | {"state": "failed", "step": 8, "error": "SourceError: gone"}))
    assert cli.main(["ledger", str(copy), "--step=5", "--workers=0"]) == 0
    assert "the run has failed at step 8: SourceError: gone\n" in capsys.readouterr().err
    for content in ('{"state": "fini', "[1]", json.dumps(state | {"state": 3}), json.dumps(state | {"parent": 5})):
        (copy / "run.json").write_text(content)
        assert cli.main(["ledger", str(copy), "--step=5", "--workers=0"]) == 0
        assert "the run has no run.json that can be read; its last checkpoint is of step 9\n" in capsys.readouterr().err
    (copy / "checkpoints/step-00000009/trainer.json").unlink()
    code, line = refused(capsys, str(copy), "--step=5")
    assert code == 1
    assert line.startswith(f"error: {copy}: no checkpoint can be read; the newest: ")
    shutil.rmtree(copy / "checkpoints")
    assert refused(capsys, str(copy), "--step=5")[1] == (
        f"error: the checkpoints of {copy}, which say what the run reads, are gone: was it copied in part?"
    )
    shutil.rmtree(copy / "cursors")
    shutil.rmtree(copy / "model")
    assert refused(capsys, str(copy), "--step=5")[1] == (
        f"error: {copy} has no checkpoint yet, which says what the run reads: ask again after the first one"
    )
    options = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text("data: {")
    assert refused(capsys, str(copy), "--step=5")[1].startswith(
        f"error: {copy}/config.yaml is not what the run wrote: was the folder copied in part? (--config "
    )
    shutil.copytree(out, tmp_path / "cut")
    cut = tmp_path / "cut/config.yaml"
    cut.write_text(options.replace("sequence-length: 64", "").replace("sequence_length: 64", ""))
    assert refused(capsys, str(tmp_path / "cut"), "--step=5")[1] == (
        f"error: {cut} is not what the run wrote: --data.sequence-length is 512, and 64 in its checkpoints; "
        "was the folder copied in part?"
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
    trainer = json.loads((checkpoint / "trainer.json").read_text())
    written = {"versions": {"stream_pretrain": "0.1.0"}, "commit": "4a604d9c72f0e1b3a55d6f8790abcdef12345678"}
    (checkpoint / "trainer.json").write_text(json.dumps({**trainer, **written}))
    assert refused(capsys, str(copy), "--step=1")[1] == (
        f"error: {checkpoint} has cursors of version 4, this program reads version 5: read it with the stream_pretrain that "
        "wrote it (0.1.0, commit 4a604d9c72f0)"
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
    assert line.endswith(f"; no such file or folder: {gone}; give it with --model.tokenizer")
    assert asked(capsys, copy, "--step=5", f"--model.tokenizer={model}") == asked(capsys, finished[0], "--step=5")
    shutil.copytree(model, gone)
    tokenizer = json.loads((gone / "tokenizer.json").read_text())
    (gone / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": None}))
    assert f"; that of {gone} is not the one of the run; " in refused(capsys, str(copy), "--step=5")[1]


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
        "error: --ledger.document c.jsonl:0: the run has no shard of this name; did you mean b:b.jsonl:0?"
    )
    assert refused(capsys, out, "--ledger.document=a.jsonl")[1] == (
        "error: --ledger.document a.jsonl: give SHARD:OFFSET, as --ledger.step shows it"
    )
    assert refused(capsys, out, "--ledger.document=a.jsonl:0", "--ledger.steps=5:3")[1] == (
        "error: --ledger.steps 5:3: the first step is after the last: give A:B, such as 900:1000"
    )
    assert refused(capsys, out, "--step=1", "--ledger.steps=1:3")[1] == (
        "error: --ledger.steps bounds --ledger.document and --ledger.export: leave it out with --ledger.step"
    )
    assert refused(capsys, out, "--ledger.text", f"--ledger.export={tmp_path / 'a.parquet'}")[1] == (
        "error: --ledger.text shows the texts of --ledger.step: leave it out without that"
    )
    assert refused(capsys, out, "--step=1", f"--dataset={tmp_path}")[1] == (
        "error: --dataset: this run reads several sources: give --data.sources with the places of all of them"
    )
    assert refused(capsys, f"{out}/checkpoints", "--step=1")[1] == (
        f"error: {out}/checkpoints is no folder of a run; did you mean {out}?"
    )
    assert refused(capsys, f"{out}/run.json", "--step=1")[1] == f"error: {out}/run.json is a file: give the folder of a run"
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


def test_cursors_that_no_run_writes_are_told_and_earlier_ones_are_taken(
    finished: tuple[Path, Consumed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, consumed = finished
    shutil.copytree(out, copy := tmp_path / "copy")
    file = copy / "cursors/step-00000004.json"
    written = file.read_text()
    changes = [("rows", 1, "sha256"), ("stripe", 1000, "sha256"), ("compressed", 10**6, "sha256"), ("next_document", 1, "")]
    for number, place, removed in changes:
        state = json.loads(written)
        state["lanes"][0]["sources"][0][state["fields"].index(number)] += place
        state.pop(removed, None)  # without a checksum, as earlier versions wrote them
        file.write_text(json.dumps(state))
        assert cli.main(["ledger", str(copy), "--step=5", "--workers=0"]) == 0
        said = capsys.readouterr()
        [warning] = [line for line in said.err.splitlines() if line.startswith("warning: ")]
        assert warning.startswith(f"warning: {file}: ")
        assert "stream.json" not in warning
        assert warning.endswith("; reading from earlier cursors")
        assert said.out.startswith(f"step 5: {len(documents_in(consumed[5]))} documents in 8 rows\n")


def test_cursors_without_their_fields_are_not_taken_for_those_of_another_version(
    finished: tuple[Path, Consumed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    cursors = copy / "cursors/step-00000004.json"
    cursors.write_text('{"version": 5}')
    assert cli.main(["ledger", str(copy), "--step=5", "--workers=0"]) == 0
    said = f"warning: {cursors}: fields are not those of cursors of version 5; reading from earlier cursors\n"
    assert said in capsys.readouterr().err


def test_a_checkpoint_that_lacks_something_of_its_run_leaves_it_to_the_one_before(
    finished: tuple[Path, Consumed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, consumed = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    newest = shutil.copytree(copy / "checkpoints/step-00000009", copy / "checkpoints/step-00000010")
    trainer = json.loads((newest / "trainer.json").read_text())
    del trainer["tokenizer"]
    (newest / "trainer.json").write_text(json.dumps(trainer))
    assert cli.main(["ledger", str(copy), "--step=5", "--workers=0"]) == 0
    assert capsys.readouterr().out.startswith(f"step 5: {len(documents_in(consumed[5]))} documents in 8 rows\n")


def test_cursors_that_cannot_be_read_are_told_and_earlier_ones_are_taken(
    finished: tuple[Path, Consumed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, consumed = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    cursors = copy / "cursors/step-00000004.json"
    cursors.write_bytes(cursors.read_bytes()[:100])
    assert cli.main(["ledger", str(copy), "--step=5", "--workers=0"]) == 0
    said = capsys.readouterr()
    assert f"warning: {cursors} is damaged (it is not JSON): use another checkpoint; reading from earlier cursors\n" in said.err
    assert "reads 3 steps again, 24 rows, from the cursors of step 2\n" in said.err
    assert said.out.startswith(f"step 5: {len(documents_in(consumed[5]))} documents in 8 rows\n")
    newest = copy / "checkpoints/step-00000009/stream.json"
    newest.unlink()
    assert refused(capsys, str(copy), "--step=5")[1] == (
        f"error: {copy}: no checkpoint can be read; the newest: {newest} cannot be read (No such file or directory): "
        "use another checkpoint"
    )


@pytest.fixture(scope="module")
def picky(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A run of a step that leaves out and holds out documents, from two sources with shards of one name; their offsets."""
    folder = tmp_path_factory.mktemp("picky")
    model = str(write_tiny_modernbert(folder / "model"))
    texts = documents(200, seed=3)
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in texts]
    lines[1:6] = [b'{"text": 5}\n', b'{"text": " "}\n', b'{"text": "ab"}\n', lines[0], lines[5]]
    for name in "ab":
        (folder / name).mkdir()
        (folder / name / "train.jsonl").write_bytes(b"".join(lines))
    sources = [{"name": name, "dataset": str(folder / name)} for name in "ab"]
    run = run_here(
        [f"--data.sources={json.dumps(sources)}", f"--model.config={model}", f"--model.tokenizer={model}", "--max-steps=1",
         f"--output-dir={folder / 'out'}", "--global-batch-size=8", "--sequence-length=64", "--lanes=2", "--wandb=disabled",
         "--data.heldout-fraction=0.1", "--data.min-characters=3", "--data.drop-duplicates", "--data.max-bad-fraction=1"]
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    heldout = next(number for number in range(6, 200) if is_heldout(texts[number], 0.1))
    offsets = [sum(map(len, lines[:number])) for number in (*range(1, 5), heldout)]
    return folder / "out", offsets


def test_a_document_that_no_step_has_trained_on_is_told_with_the_reason(
    picky: tuple[Path, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, offsets = picky
    reasons = [asked(capsys, out, f"--ledger.document=a:train.jsonl:{offset}")["why_not"] for offset in (*offsets, 5)]
    assert reasons == [
        "not used: field 'text' holds a number, not text",
        "not used: text is blank",
        "left out for its length, 2 characters",
        "left out as a duplicate of one before it in its window",
        "held out for evaluation",
        "no document with text begins there; the one before it begins at 0",
    ]
    all_read = {one["document"] for one in asked(capsys, out, "--step=1")["documents"]}
    lines = (out.parent / "a/train.jsonl").read_bytes().splitlines(keepends=True)
    names = [f"a:train.jsonl:{sum(map(len, lines[:number]))}" for number in range(6, 60)]
    waiting = next(name for name, line in zip(names, lines[6:], strict=False) if name not in all_read and not held(line))
    assert cli.main(["ledger", str(out), f"--ledger.document={waiting}", "--workers=0"]) == 0
    assert capsys.readouterr().out == f"{waiting}: not in steps 1 to 1\n  read in other steps, or not yet\n"


def test_a_document_of_a_small_shard_is_told_with_the_reason_among_those_that_are_read_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(write_tiny_modernbert(tmp_path / "model"))
    texts = documents(40, seed=4)
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts[:20]))
    (tmp_path / "b.jsonl").write_bytes(json_lines([texts[3], *texts[20:]]))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(json_lines(["first"])) + b"damaged")
    run = run_here(
        [f"--dataset={tmp_path}/*.jsonl*", f"--model.config={model}", f"--model.tokenizer={model}", "--max-epochs=1",
         f"--output-dir={tmp_path / 'out'}", "--global-batch-size=8", "--sequence-length=64", "--lanes=1", "--wandb=disabled",
         "--data.drop-duplicates", "--data.on-bad-shard=skip", "--data.max-bad-fraction=1"]
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    [skipped] = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert (skipped["shard"], skipped["offset"]) == ("c.jsonl.gz", 0)
    unused = [asked(capsys, tmp_path / "out", f"--ledger.document={name}") for name in ("b.jsonl:0", "c.jsonl.gz:0")]
    assert [one.get("why_not") for one in unused] == [
        "left out as a duplicate of one before it in its bundle of small shards",
        f"not used: after damage in its shard ({skipped['why'].removeprefix('rest of the shard skipped: ')})",
    ]
    first = len(json_lines([texts[3]]))
    [seen] = asked(capsys, tmp_path / "out", f"--ledger.document=b.jsonl:{first}")["seen"]
    assert seen["epoch"] == 0
    assert asked(capsys, tmp_path / "out", f"--ledger.document=b.jsonl:{first + 1}")["why_not"] == (
        f"no document with text begins there; the one before it begins at {first}"
    )


def test_shards_of_one_name_are_told_apart_by_their_source(
    picky: tuple[Path, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = picky
    told = asked(capsys, out, "--step=1", "--ledger.text")["documents"]
    assert {one["document"].partition(":")[0] for one in told} == {one["source"] for one in told} == {"a", "b"}
    skipped = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert {(one["source"], one["shard"]) for one in skipped} == {("a", "train.jsonl"), ("b", "train.jsonl")}
    one = told[0]
    assert asked(capsys, out, f"--ledger.document={one['document']}")["seen"][0]["step"] == 1
    assert refused(capsys, str(out), f"--ledger.document=train.jsonl:{one['offset']}")[1] == (
        f"error: --ledger.document train.jsonl:{one['offset']}: several sources have this shard: "
        f"give a:train.jsonl:{one['offset']}"
    )


def test_an_export_that_the_disk_does_not_take_leaves_nothing(
    finished: tuple[Path, Consumed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        said = refused(capsys, str(finished[0]), f"--ledger.export={tmp_path / 'a.parquet'}", "--workers=0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said == (2, f"error: --ledger.export {tmp_path / 'a.parquet'}: File too large")
    assert list(tmp_path.iterdir()) == []


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
    assert refused(capsys, str(copy), "--step=2")[1].endswith(
        "; a corpus that has moved is given with --dataset or --data.sources"
    )
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
