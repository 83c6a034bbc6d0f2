"""The records of a run: appended line by line, each whole or not there."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from stream_pretrain.errors import CheckpointError
from stream_pretrain.training.files import records
from stream_pretrain.training.files.atomic_files import replace_file, writing
from stream_pretrain.training.files.records import append, has_evaluation, replace_last, trim_after


def test_lines_are_appended_in_order(tmp_path: Path) -> None:
    log = tmp_path / "quarantine.jsonl"
    append(log, [{"step": 1}])
    append(log, [{"step": 2, "shard": "größe.txt"}, {"step": 3}])
    append(log, [])
    assert log.read_text(encoding="utf-8") == '{"step": 1}\n{"step": 2, "shard": "größe.txt"}\n{"step": 3}\n'


def test_a_name_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    append(tmp_path / "quarantine.jsonl", [{"shard": os.fsdecode(b"caf\xe9")}])
    assert (tmp_path / "quarantine.jsonl").read_bytes() == b'{"shard": "caf\\udce9"}\n'
    assert json.loads((tmp_path / "quarantine.jsonl").read_bytes()) == {"shard": "caf\udce9"}


def test_a_short_write_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(records.os, "write", lambda descriptor, content: write(descriptor, content[:5]))
    append(tmp_path / "metrics.jsonl", [{"step": 1, "train/loss": 2.5}])
    append(tmp_path / "metrics.jsonl", [{"step": 2, "train/loss": 2.25}])
    monkeypatch.undo()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 2.5}\n{"step": 2, "train/loss": 2.25}\n'


def test_what_a_full_disk_took_of_a_line_is_cut_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "metrics.jsonl"
    append(log, [{"step": 1}])
    write, room = os.write, 7

    def fills_up(descriptor: int, content: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(descriptor, content[:room])
        room -= taken
        return taken

    monkeypatch.setattr(records.os, "write", fills_up)
    full = r"metrics\.jsonl cannot be written \(No space left on device\): free some space, then run the same command again$"
    with pytest.raises(CheckpointError, match=full):
        append(log, [{"step": 2}, {"step": 3}])
    monkeypatch.undo()
    assert log.read_text() == '{"step": 1}\n'
    append(log, [{"step": 2}])
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize(
    ("number", "free_inodes", "remedy"),
    [
        (errno.ENOSPC, 5, "free some space"),
        (errno.ENOSPC, 0, "delete some files (no inodes are left)"),
        (errno.EDQUOT, 5, "free some space"),
        (errno.EACCES, 5, "make it writable"),
        (errno.EROFS, 5, "make it writable"),
        (errno.EIO, 5, "correct that"),
    ],
)
def test_an_error_of_the_disk_is_answered_by_what_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, free_inodes: int, remedy: str
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=9, f_favail=free_inodes))
    with pytest.raises(CheckpointError) as caught, writing(tmp_path / "none" / "x"):
        raise OSError(number, os.strerror(number))
    why = f"cannot be written ({os.strerror(number)}): {remedy}, then run the same command again"
    assert str(caught.value) == f"{tmp_path / 'none' / 'x'} {why}"


def test_a_file_that_may_not_grow_is_the_same_error(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    append(log, [{"step": 1}])
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be written \(File too large\)"):
            append(log, [{"step": 2}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert log.read_text() == '{"step": 1}\n'


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four pages."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_on_a_disk_that_fills_up_every_line_is_whole(small_disk: Path) -> None:
    log, appended = small_disk / "metrics.jsonl", 0

    def fill() -> None:
        nonlocal appended
        while True:
            append(log, [{"step": appended + 1, "text": "x" * 300}])
            appended += 1

    with pytest.raises(CheckpointError, match="No space left on device"):
        fill()
    assert appended > 40
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, appended + 1))
    with pytest.raises(OSError, match="No space left on device"):
        replace_file(small_disk / "run.json", [b"x" * 10_000])
    assert [path.name for path in small_disk.iterdir()] == ["metrics.jsonl"], "no draft is left in the way of others"


def test_a_file_that_cannot_be_replaced_is_as_it_was(tmp_path: Path) -> None:
    replace_file(tmp_path / "run.json", [b"old"])

    def broken() -> Iterator[bytes]:
        yield b"new"
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        replace_file(tmp_path / "run.json", broken())
    assert (tmp_path / "run.json").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_log_keeps_each_surviving_step_once(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"step": 1, "loss":  2.0}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    trim_after(log, 2, pytest.fail)
    assert log.read_bytes() == b'{"step": 1, "loss":  2.0}\n{"step": 2}\n'
    log.write_bytes(b'{"step": 1}\n{"step": 2}')
    trim_after(log, 2, pytest.fail)
    assert log.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    trim_after(log, None, pytest.fail)
    assert log.read_bytes() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_log_that_is_not_there_stays_so(tmp_path: Path) -> None:
    trim_after(tmp_path / "metrics.jsonl", 2, pytest.fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damaged", [b"rubbish", b'{"other": 1}', b'{"step": 2, "lo{"step": 3}', b""])
def test_a_damaged_line_that_is_not_the_last_one_is_reported(damaged: bytes, tmp_path: Path) -> None:
    log, said = tmp_path / "metrics.jsonl", list[str]()
    log.write_bytes(b'{"step": 1}\n' + damaged + b'\n{"step": 4}\n{"step": 5, "lo')
    trim_after(log, 4, said.append)
    assert log.read_bytes() == b'{"step": 1}\n{"step": 4}\n'
    assert said == [f"{log}: damaged lines removed: 1, the first is line 2"]


@pytest.mark.parametrize("length", [1, 65_500, 65_536, 200_000])
def test_of_the_last_line_is_known_whether_it_has_an_evaluation(length: int, tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert not has_evaluation(log, 2)
    log.touch()
    assert not has_evaluation(log, 2)
    append(log, [{"step": 1, "eval/loss": 1.0}, {"step": 2, "text": "x" * length}])
    assert not has_evaluation(log, 2)
    assert not has_evaluation(log, 1)
    replace_last(log, [{"step": 2, "text": "x" * length, "eval/loss": 1.0}])
    assert has_evaluation(log, 2)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2]
    log.write_bytes(log.read_bytes()[:-3])
    assert not has_evaluation(log, 2), "the line is torn"
