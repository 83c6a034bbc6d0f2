"""`--dry-run` says what the run would do in the folder as it stands, and changes nothing there."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stream_pretrain import cli
from stream_pretrain.training.files.lock import _reach
from stream_pretrain.training.files.manifest import write_manifest
from tests.corpora import documents, json_lines
from tests.training.runs import write_tiny_modernbert


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, a model and a run of 8 steps that was stopped after 4."""
    folder = tmp_path_factory.mktemp("begun")
    write_tiny_modernbert(folder / "model")
    (folder / "a.jsonl").write_bytes(json_lines(documents(120)))
    assert cli.main([*options_of(folder), "--max-steps=4"]) == 0
    recorded = json.loads((folder / "out/run.json").read_text())
    (folder / "out/run.json").write_text(json.dumps({**recorded, "state": "preempted", "max_steps": 8}))
    return folder


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of it: paths of the corpus and the model stay those of the original."""
    shutil.copytree(begun / "out", tmp_path / "out")
    return tmp_path


def options_of(folder: Path, out: Path | None = None) -> list[str]:
    return [
        *(f"--dataset={folder}/a.jsonl", f"--model.config={folder}/model", f"--model.tokenizer={folder}/model"),
        *("--sequence-length=64", "--global-batch-size=4", "--save-every=2", "--wandb=disabled"),
        *("--workers=0", f"--output-dir={out or folder / 'out'}"),
    ]


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file and folder below it, with when it was changed and what is in it."""
    found = [folder, *folder.rglob("*")]
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_ino, path.read_bytes() if path.is_file() else b"")
        for path in found
    }


def dry_run(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, Any]:
    """Exit code, what it says on stderr but for the times of phases, and its JSON."""
    code = cli.main(["--dry-run", "--json", *options])
    said = capsys.readouterr()
    return code, said.err, json.loads(said.out) if said.out else None


def errors_in(said: str) -> str:
    """The error with its lines, without what was said before it."""
    return said[said.index("error: ") :]


def test_a_run_that_was_stopped_would_resume_and_its_folder_stays_as_it_is(
    begun: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*options_of(begun, run / "out"), "--max-steps=8"]
    before = state_of(run)
    code, _, told = dry_run(capsys, *options, "--inspect.rows=1")
    assert state_of(run) == before
    assert code == 0
    checkpoint = f"{run}/out/checkpoints/step-00000004"
    assert told["start"] == {
        "description": f"resumes after step 4 of 8, from {checkpoint}",
        "output_dir": f"{run}/out",
        "step": 4,
        "checkpoint": checkpoint,
        "is_finished": False,
    }
    assert len(told["rows"]) == 1
    assert cli.main([*options, "--dry-run"]) == 0
    assert "  start         resumes after step 4 of 8," in capsys.readouterr().out
    assert cli.main(options) == 0
    assert f"resuming after step 4, from {checkpoint}" in capsys.readouterr().err


def labels_in(text: str) -> list[str]:
    """What the paragraphs of a report are called, with N for numbers."""
    return [re.sub(r"[0-9]+", "N", label.strip()) for label in re.findall(r"^  (\w[\w ]{12}) \S", text, re.MULTILINE)]


def test_the_tour_in_the_docs_shows_the_paragraphs_that_are_printed(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*options_of(begun, begun / "new"), "--max-steps=8", "--dry-run"]) == 0
    tour = (Path(__file__).parents[2] / "docs/tour.md").read_text("utf-8").partition("\n## Train\n")[0]
    assert labels_in(tour) == labels_in(capsys.readouterr().out)


def test_a_finished_run_would_train_nothing(begun: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*options_of(begun, run / "out"), "--max-steps=8"]) == 0
    before = state_of(run)
    said = f"{run}/out is finished at step 8: nothing is left to train"
    assert dry_run(capsys, *options_of(begun, run / "out"), "--max-steps=8")[2]["start"]["description"] == said
    assert cli.main([*options_of(begun, run / "out"), "--max-steps=8", "--dry-run"]) == 0
    assert capsys.readouterr().out == f"{said}\n"
    told = dry_run(capsys, *options_of(begun, run / "out"), "--max-steps=9")[2]
    assert told["start"]["description"] == f"resumes after step 8 of 9, from {run}/out/checkpoints/step-00000008"
    assert state_of(run) == before


def test_a_folder_that_is_not_there_is_not_made(begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = dry_run(capsys, *options_of(begun, tmp_path / "a/new"), "--max-steps=8")[2]
    assert told["start"]["description"] == f"begins a new run in {tmp_path}/a/new"
    checkpoint = begun / "out/checkpoints/step-00000004"
    told = dry_run(capsys, *options_of(begun, tmp_path / "a/new"), "--max-steps=8", f"--resume={checkpoint}")[2]
    assert told["start"]["description"] == f"begins a new run in {tmp_path}/a/new after step 4, from {checkpoint}"
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_told_and_left_where_it_is(begun: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = run / "out/checkpoints/step-00000004/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (run / "out/checkpoints/.tmp-step-00000006").mkdir()  # of a killed write
    before = state_of(run)
    _, said, told = dry_run(capsys, *options_of(begun, run / "out"), "--max-steps=8")
    assert state_of(run) == before
    assert told["start"]["step"] == 2
    assert f"warning: {weights} is damaged" in said
    assert "; a start falls back to step-00000002" in said


def of_another_version(out: Path) -> None:
    """As an earlier program left it: cursors of another version, in a checkpoint that verifies."""
    for checkpoint in (out / "checkpoints").iterdir():
        stream = json.loads((checkpoint / "stream.json").read_text())
        (checkpoint / "stream.json").write_text(json.dumps({**stream, "version": 1}))
        (checkpoint / "MANIFEST.json").unlink()
        write_manifest(checkpoint)


def with_a_folder_for_a_file(out: Path) -> None:
    (out / "metrics.jsonl").unlink()
    (out / "metrics.jsonl").mkdir()


def nothing(out: Path) -> None:
    pass


REFUSED: dict[str, tuple[list[str], Callable[[Path], None], str]] = {
    "another fixed option": (
        ["--seed=7"],
        nothing,
        "error: {out}/checkpoints/step-00000004 was trained with options that must",
    ),
    "resume no": (["--resume=no"], nothing, "error: {out} has a run: resume it with --resume auto"),
    "another version": ([], of_another_version, "error: {out}/checkpoints/step-00000004 has cursors of version 1"),
    "no file": ([], with_a_folder_for_a_file, "error: {out}/metrics.jsonl is not a file: remove it"),
    "another corpus": (
        ["--dataset={out}/../b.jsonl"],
        nothing,
        "error: {out}/../b.jsonl is not the corpus this run began with",
    ),
    "steps behind": (["--train.skip-steps=2:3"], nothing, "error: --train.skip-steps 2:3: the run is at step 4"),
    "online without a key": (["--wandb=online"], nothing, "error: W&B cannot be online, no API key"),
    "no evaluation set": (["--eval-every=2", "--eval.dataset={out}/none.jsonl"], nothing, "error: {out}/none.jsonl"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_run_is_refused_with_the_dry_run_says_with_the_same_code(
    name: str, begun: Path, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(run / "no-netrc"))
    given, change, error = REFUSED[name]
    (run / "b.jsonl").write_bytes(json_lines(documents(50, seed=9)))
    change(run / "out")
    replaced = {option.partition("=")[0] for option in given}
    options = [option for option in options_of(begun, run / "out") if option.partition("=")[0] not in replaced]
    options = [*options, "--max-steps=8", *(option.format(out=run / "out") for option in given)]
    before = state_of(run)
    code, said, told = dry_run(capsys, *options, "--inspect.rows", "1")
    assert state_of(run) == before
    assert told is None
    assert errors_in(said).startswith(error.format(out=run / "out")), said
    run_code = cli.main(options)
    assert (code, errors_in(said)) == (run_code, errors_in(capsys.readouterr().err))


def test_a_folder_in_use_is_refused_without_a_touch_of_its_lock(
    begun: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, here = [*options_of(begun, run / "out"), "--max-steps=8"], _reach(run / "out")
    for host, reach, pid, age, refused in (
        (socket.gethostname(), here, os.getpid(), 1.0, True),
        ("elsewhere", "other", 1, 1.0, True),
        ("another-container", here, 2**22 + 1, 1.0, True),  # whose process ids are not those of this one
        ("elsewhere", "other", 1, 100.0, False),
        (socket.gethostname(), here, 2**22 + 1, 1.0, False),  # killed a moment ago
    ):
        owner = {"host": host, "reach": reach, "pid": pid, "time": time.time() - age}
        (run / "out/lock").write_text(json.dumps(owner))
        before = state_of(run)
        code, said, _ = dry_run(capsys, *options)
        assert state_of(run) == before
        assert code == int(refused)
        if refused:
            in_use = f"error: {run}/out is in use by process {pid} on {host}: wait for it to end, or give another --output-dir"
            assert said.splitlines()[-1] == in_use


def test_the_plan_of_a_run_is_that_of_its_first_start(begun: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pinned = json.loads((run / "out/checkpoints/step-00000004/corpus.json").read_text())
    plan = dry_run(capsys, *options_of(begun, run / "out"), "--max-steps=8")[2]["plan"]
    assert (plan["lanes"], plan["window_bytes"]) == (pinned["lanes"], [pinned["sources"][0]["window_bytes"]])


def test_a_dry_run_is_of_the_train_command_and_of_one_process(
    begun: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = options_of(begun)[0]
    assert cli.main(["inspect", dataset, "--dry-run"]) == 2
    assert capsys.readouterr().err == "error: inspect has no option --dry-run, which is for the command of a run\n"
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["inspect", dataset]) == 2
    said = "error: only a run takes several processes: start this command without torchrun or accelerate launch"
    assert capsys.readouterr().err.splitlines()[-1] == said
