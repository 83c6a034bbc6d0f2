"""Which checkpoint a start takes: what cannot be read ends it, what is wrong is put aside, what has another's name is none."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stream_pretrain.errors import CheckpointError, DamagedCheckpointError
from stream_pretrain.training.files import retried_reads
from stream_pretrain.training.files.run_directory import RunDirectory
from stream_pretrain.training.state import checkpoint
from stream_pretrain.training.state.background_writer import BackgroundWriter
from stream_pretrain.training.state.checkpoint import latest, prune, verify
from tests.training.checkpoints import flip_a_bit, folders, signed, small_snapshot, unexpected


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retried_reads, "PAUSES", (0.0, 0.0, 0.0))


def failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int, times: int = 10**9) -> list[str]:
    """Let the opening of files of this name fail so often; gives a list of the attempts."""
    attempts: list[str] = []
    really = os.open

    def opened(path: Any, *arguments: Any, **options: Any) -> int:
        if isinstance(path, str | os.PathLike) and os.path.basename(path) == name:
            attempts.append(os.fspath(path))
            if len(attempts) <= times:
                raise OSError(number, os.strerror(number), path)
        return really(path, *arguments, **options)

    monkeypatch.setattr(os, "open", opened)
    return attempts


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# What cannot be read


@pytest.mark.parametrize("name", ["MANIFEST.json", "model.safetensors", "trainer.json"])
@pytest.mark.parametrize(("number", "attempts"), [(errno.EIO, 4), (errno.EMFILE, 4), (errno.EACCES, 1)])
def test_a_checkpoint_that_cannot_be_read_ends_the_start_and_stays_where_it_is(
    name: str, number: int, attempts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoint.write(small_snapshot(step), tmp_path)
    asked = failing(monkeypatch, name, number)
    with pytest.raises(CheckpointError, match=rf"step-00000002/{name} cannot be read \({os.strerror(number)}\): .*run the"):
        latest(tmp_path, unexpected)
    assert len(asked) == attempts
    assert folders(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_fault_that_passes_is_not_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = checkpoint.write(small_snapshot(1), tmp_path)
    failing(monkeypatch, "model.safetensors", errno.EMFILE, times=3)
    assert latest(tmp_path, unexpected) == written


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_run_json_that_cannot_be_read_is_one_line(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.json").write_text("{}")

    def refused(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), os.fspath(path))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(CheckpointError, match=rf"run\.json cannot be read \({os.strerror(number)}\)"):
        RunDirectory(tmp_path, [], unexpected).recorded()


# What is wrong


def is_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def is_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def is_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["MANIFEST.json", "stream.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("become", "said"), [(is_link, "it is a link"), (is_pipe, "it is not a file"), (is_folder, "it is not a file")]
)
def test_what_is_no_file_is_put_aside(name: str, become: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    older, newest = checkpoint.write(small_snapshot(1), tmp_path), checkpoint.write(small_snapshot(2), tmp_path)
    become(newest / name)
    lines: list[str] = []
    assert latest(tmp_path, lines.append) == older
    assert f"{newest / name} cannot be read ({said}" in lines[0]
    assert folders(tmp_path) == ["damaged-step-00000002", "step-00000001"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"format": 1}',
        b'{"format": "1", "files": {}}',
        b'{"format": true, "files": {}}',
        b'{"format": 1, "files": []}',
        b'{"format": 1, "files": {"stream.json": null}}',
        b'{"format": 1, "files": {"stream.json": {"size": 19}}}',
        b'{"format": 1, "files": {"stream.json": {"size": "19", "sha256": ""}}}',
        b'{"format": 1, "files": {"stream.json": {"size": 19.5, "sha256": ""}}}',
        b'{"format": 1, "files": {"stream.json": {"size": 19, "sha256": 7}}}',
    ],
)
def test_a_manifest_that_is_none_is_damage(content: bytes, tmp_path: Path) -> None:
    written = checkpoint.write(small_snapshot(1), tmp_path)
    (written / "MANIFEST.json").write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"MANIFEST\.json (is damaged|does not list)"):
        verify(written)


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../step-00000001/stream.json", "", ".", "a//b", "a\0b", "linked/stream.json"]
)
def test_a_manifest_lists_nothing_outside_of_its_folder(name: str, tmp_path: Path) -> None:
    written = checkpoint.write(small_snapshot(1), tmp_path)
    (written / "linked").symlink_to(written)
    listed = json.loads((written / "MANIFEST.json").read_text())["files"]
    change_json(written / "MANIFEST.json", files={**listed, name: listed["stream.json"]})
    with pytest.raises(DamagedCheckpointError, match="not a file of the checkpoint: use another one"):
        verify(written)


# What has another's name


def test_a_copy_under_another_step_is_put_aside(tmp_path: Path) -> None:
    written = checkpoint.write(small_snapshot(5), tmp_path)
    shutil.copytree(written, tmp_path / "step-99999999")
    lines: list[str] = []
    assert latest(tmp_path, lines.append) == written
    assert "step-99999999 holds step 5: rename it to step-00000005" in lines[0]
    assert folders(tmp_path) == ["damaged-step-99999999", "step-00000005"]


@pytest.mark.parametrize("totals", [{}, {"step": 6}, {"step": "5"}, {"step": 5.0}, {"step": True}, [], None])
def test_a_checkpoint_whose_totals_are_of_another_step_is_damaged(totals: object, tmp_path: Path) -> None:
    written = checkpoint.write(small_snapshot(5), tmp_path)
    change_json(written / "trainer.json", totals=totals)
    with pytest.raises(DamagedCheckpointError, match=r"trainer\.json contradicts itself on the step"):
        verify(signed(written))


def test_pruning_neither_counts_nor_deletes_what_is_not_of_this_run(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        checkpoint.write(small_snapshot(step), directory)
    shutil.copytree(directory / "step-00000001", directory / "step-00000099")  # under another name
    shutil.copytree(directory / "step-00000001", directory / "step-00000002.bak")
    shutil.copytree(directory / "step-00000001", directory / "step-000000001")
    checkpoint.write(small_snapshot(77), directory)  # of a run that is farther
    (directory / "step-00000004").mkdir()
    said: list[str] = []
    prune(directory, newest=3, keep_last=2, keep_every=0, cursors=tmp_path / "cursors", report=said.append)
    assert said == []
    assert folders(directory) == [
        "step-000000001",
        "step-00000002",
        "step-00000002.bak",
        "step-00000003",
        "step-00000004",
        "step-00000077",
        "step-00000099",
    ]


@pytest.mark.parametrize("missing", ["stream.json", "trainer.json", "model.safetensors"])
def test_pruning_neither_counts_nor_deletes_a_damaged_checkpoint_and_reports_it(missing: str, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    for step in (1, 2, 3, 4, 5):
        checkpoint.write(small_snapshot(step), directory)
    for step in (2, 4):
        (directory / f"step-0000000{step}" / missing).unlink()
    said: list[str] = []
    prune(directory, newest=5, keep_last=2, keep_every=0, cursors=tmp_path / "cursors", report=said.append)
    assert folders(directory) == ["step-00000002", "step-00000003", "step-00000004", "step-00000005"]
    assert [line.partition(":")[0] for line in said] == ["step-00000002 is not pruned", "step-00000004 is not pruned"]
    assert all(missing in line for line in said)


def test_cursors_that_cannot_be_kept_end_no_training(tmp_path: Path) -> None:
    (tmp_path / "cursors").touch()
    said: list[str] = []
    with BackgroundWriter(tmp_path, lambda *_: None, said.append, keep_last=1, keep_every=0) as writer:
        for step in (1, 2, 3):
            writer.submit(partial(small_snapshot, step))
    assert folders(tmp_path / "checkpoints") == ["step-00000001", "step-00000002", "step-00000003"]
    assert said == [
        f"step-0000000{step} is not pruned: its cursors cannot be kept in {tmp_path / 'cursors'} (File exists)"
        for step in (1, 2)
    ]


def test_what_may_not_be_deleted_is_named_by_the_writer_and_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: None)  # as where another user has written it
    said: list[str] = []
    with BackgroundWriter(tmp_path, lambda *_: None, said.append, keep_last=1, keep_every=0) as writer:
        for step in (1, 2, 3):
            writer.submit(partial(small_snapshot, step))
    left = [tmp_path / "checkpoints" / f".gone-step-0000000{step}" for step in (1, 2)]
    lines = [f"{path} cannot be deleted: delete it, or have its owner do so" for path in left]
    assert said == lines
    said.clear()
    assert latest(tmp_path / "checkpoints", said.append) == tmp_path / "checkpoints" / "step-00000003"
    assert sorted(said) == lines


@pytest.mark.parametrize("name", ["step-5", "step-000000005", "step-٠٠٠٠٠٠٠٥"])
def test_a_second_name_of_a_step_does_not_count(name: str, tmp_path: Path) -> None:
    written = checkpoint.write(small_snapshot(5), tmp_path)
    shutil.copytree(written, tmp_path / name)
    flip_a_bit(tmp_path / name / "model.safetensors")
    assert latest(tmp_path, unexpected) == written
    shutil.rmtree(written)
    with pytest.raises(CheckpointError, match=rf"{name} is not a checkpoint name, such as step-00000005: rename it"):
        latest(tmp_path, unexpected)
