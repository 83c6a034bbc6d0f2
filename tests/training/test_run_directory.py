"""The folder of a run: what cannot be used is refused in one line, and run.json says how the run stands."""

import errno
import json
import os
from pathlib import Path

import pytest

from stream_pretrain.errors import CheckpointError
from stream_pretrain.training.files import run_directory
from stream_pretrain.training.files.run_directory import RunDirectory
from stream_pretrain.training.start.resume import decide_start
from tests.training.checkpoints import unexpected
from tests.training.run_folders import run_json
from tests.training.starts import COMMAND, config, save, start


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(CheckpointError, match=r"--output-dir \S+ cannot be written \((File exists|Not a directory)\)"):
            start(out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match=r"cannot be written \(it is not writable\)"):
        start(tmp_path)


def test_run_json_says_how_the_run_stands(tmp_path: Path) -> None:
    with RunDirectory.own(tmp_path, COMMAND, unexpected) as out:
        decide_start(config(), out, unexpected, COMMAND)
        began = run_json(tmp_path)
        assert began.pop("started") == began.pop("updated")
        assert began.pop("host")
        assert {"versions", "commit"} <= began.keys()
        del began["versions"], began["commit"]
        assert began == {
            "state": "running",
            "step": 0,
            "max_steps": 100,
            "pid": os.getpid(),
            "command": "stream-pretrain --dataset org/texts --output-dir OUT --seed=1",
            "parent": None,
        }
        out.record("running", step=7, world=2)
        out.record("failed", error="TrainingError: nan")
    ended = run_json(tmp_path)
    assert [ended[name] for name in ("state", "step", "world", "error")] == ["failed", 7, 2, "TrainingError: nan"]


def test_a_resumed_run_keeps_when_it_started_and_loses_its_error(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / "run.json").write_text(json.dumps({"state": "failed", "started": "2020-01-01", "error": "disk"}))
    start(tmp_path)
    assert [run_json(tmp_path).get(name) for name in ("state", "started", "step", "error")] == [
        "running",
        "2020-01-01",
        5,
        None,
    ]


def test_a_refused_start_leaves_run_json_as_it_was(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / "run.json").write_text('{"state": "finished"}')
    with RunDirectory.own(tmp_path, [], unexpected) as out:
        with pytest.raises(CheckpointError):
            decide_start(config(resume="no"), out, unexpected, [])
        out.record("failed", error="refused")
    assert run_json(tmp_path) == {"state": "finished"}


@pytest.mark.parametrize("state", ["finished", "preempted"])
def test_a_start_that_is_refused_after_it_began_leaves_a_run_that_had_ended_well_as_it_stood(
    tmp_path: Path, state: str
) -> None:
    save(tmp_path, 5)
    (tmp_path / "run.json").write_text(json.dumps({"state": state, "step": 5, "host": "elsewhere"}))
    with RunDirectory.own(tmp_path, [], unexpected) as out:
        decide_start(config(), out, unexpected, COMMAND)
        assert run_json(tmp_path)["state"] == "running"
        out.record_refusal("ContentError: another corpus", 1)
    assert run_json(tmp_path) == {"state": state, "step": 5, "host": "elsewhere"}


@pytest.mark.parametrize("before", [None, {"state": "running", "step": 5}, {"state": "failed", "error": "disk"}])
def test_a_start_that_is_refused_after_it_began_has_failed_where_no_run_had_ended_well(
    tmp_path: Path, before: dict[str, object] | None
) -> None:
    if before is not None:
        (tmp_path / "run.json").write_text(json.dumps(before))
    with RunDirectory.own(tmp_path, [], unexpected) as out:
        decide_start(config(), out, unexpected, COMMAND)
        out.record_refusal("ContentError: another corpus", 1)
    ended = run_json(tmp_path)
    assert (ended["state"], ended["error"]) == ("failed", "ContentError: another corpus")


def test_a_full_disk_does_not_hide_how_the_run_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, chunks: list[bytes]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    lines: list[str] = []
    with RunDirectory.own(tmp_path, [], lines.append) as out:
        decide_start(config(), out, unexpected, [])
        monkeypatch.setattr(run_directory, "replace_file", full)
        out.record("failed", error="TrainingError: nan")
        assert lines == [f"{tmp_path / 'run.json'} cannot be written: No space left on device"]
        with pytest.raises(CheckpointError, match="cannot be written \\(No space left on device\\)"):
            decide_start(config(), out, unexpected, [])


def test_a_damaged_run_json_is_named(tmp_path: Path) -> None:
    for content in ("{", "[]"):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"run\.json is not (JSON|a JSON object): delete it"):
            start(tmp_path)
