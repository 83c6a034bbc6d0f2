"""A disk that fills up, fails, is slow or takes a half: a run ends in one line or goes on, and its next start ends well."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.runs import Fault, Point, assert_goes_on, rows_of, run

long = pytest.mark.long
FOR_EVER = 1 << 30
TAKING_ROOM = ("open", "write", "mkdir", "rename", "fsync")


def met(undisturbed: Undisturbed, faults: Sequence[Fault], out: Path) -> None:
    """The same command meets one fault after the other, then none: each start ends well, or with a line that says what is."""
    history: list[str] = []
    for fault in faults:
        done = run(undisturbed.inputs, out, fault)
        history += [f"{fault} {errno.errorcode[fault.error]}: {done.returncode}", done.stderr]
        assert done.returncode in (0, 75 if fault.error == errno.ENOSPC else 1), "\n".join(history)
        assert "Traceback" not in done.stderr, "\n".join(history)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == (done.returncode != 0), "\n".join(history)
        assert all(os.strerror(fault.error) in error for error in errors), "\n".join(history)
    assert_goes_on(undisturbed.inputs, out, undisturbed.kept, history)
    shutil.rmtree(out)


def at_every_kind(points: Sequence[Point], errors: Sequence[int]) -> list[Fault]:
    """A fault at one call of each kind: checkpoints are written alike."""
    kinds = {(point.call, re.sub(r"\d{8}", "", point.name)): point for point in points}
    chosen = sorted(kinds.values(), key=points.index)
    return [point.meets("fail", error=errors[number % len(errors)]) for number, point in enumerate(chosen)]


def full_from(number: int) -> Fault:
    """The disk takes nothing more, and a half of what was being written."""
    return Fault("full", TAKING_ROOM, first=number, last=FOR_EVER, error=errno.ENOSPC)


def test_a_disk_that_fails_ends_a_run_in_one_line_or_not_at_all(undisturbed: Undisturbed, tmp_path: Path) -> None:
    faults = at_every_kind(undisturbed.points, (errno.ENOSPC, errno.EIO))
    for row in rows_of(faults[4 :: len(faults) // 8]):
        met(undisturbed, row, tmp_path / "out")


def test_the_lock_and_the_evaluation_set_on_a_disk_that_fails_are_named_in_one_line(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    places = [Point("write", "lock", 1), Point("open", ".tmp-evaluation.json", 1), Point("truncate", "lock", 1)]
    met(undisturbed, [point.meets("fail", error=errno.EIO) for point in places], tmp_path / "out")


@long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("errors", [(errno.ENOSPC, errno.EIO), (errno.EIO, errno.ENOSPC)])
def test_a_disk_that_fails_at_any_call_ends_a_run_in_one_line_or_not_at_all(
    undisturbed: Undisturbed, errors: tuple[int, int], tmp_path: Path
) -> None:
    for row in rows_of(at_every_kind(undisturbed.points, errors)):
        met(undisturbed, row, tmp_path / "out")


def test_a_disk_that_stays_full_ends_a_run_in_one_line(undisturbed: Undisturbed, tmp_path: Path) -> None:
    met(undisturbed, [full_from(number) for number in (2, 12, 40, 100)], tmp_path / "out")


@long
@pytest.mark.timeout(900)
def test_a_disk_that_stays_full_from_any_call_on_ends_a_run_in_one_line(undisturbed: Undisturbed, tmp_path: Path) -> None:
    calls = sum(point.call in TAKING_ROOM for point in undisturbed.points)
    for row in rows_of([full_from(number) for number in range(1, calls, 4)]):
        met(undisturbed, row, tmp_path / "out")


def test_a_disk_that_takes_a_half_of_each_write_changes_nothing(undisturbed: Undisturbed, tmp_path: Path) -> None:
    all_but_the_lock = "[!l]*"  # which is written in one size, so that no reader sees two mixed
    done = run(undisturbed.inputs, tmp_path / "out", Fault("short", ("write",), all_but_the_lock, last=FOR_EVER))
    assert done.returncode == 0, done.stderr
    assert_goes_on(undisturbed.inputs, tmp_path / "out", undisturbed.kept, [])


def test_a_slow_disk_changes_nothing(undisturbed: Undisturbed, tmp_path: Path) -> None:
    done = run(undisturbed.inputs, tmp_path / "out", Fault("slow", ("fsync",), last=FOR_EVER, milliseconds=20))
    assert done.returncode == 0, done.stderr
    assert_goes_on(undisturbed.inputs, tmp_path / "out", undisturbed.kept, [])


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
del sys.argv[1]
runpy.run_module("stream_pretrain", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("largest", [500, 50_000])
def test_files_that_may_not_get_as_large_as_they_are_end_a_run_in_one_line(
    undisturbed: Undisturbed, largest: int, tmp_path: Path
) -> None:
    """`ulimit -f`."""
    done = run(undisturbed.inputs, tmp_path / "out", program=("-c", LIMITED, str(largest)))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert os.strerror(errno.EFBIG) in error
    assert_goes_on(undisturbed.inputs, tmp_path / "out", undisturbed.kept, [error])


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own, held in memory."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs to mount a file system, as root may")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a file system, as root may")
@pytest.mark.parametrize("size", ["64k", "240k"])
def test_a_disk_that_is_too_small_ends_a_run_in_one_line_and_a_larger_one_lets_it_go_on(
    undisturbed: Undisturbed, size: str, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, size):
        done = run(undisturbed.inputs, disk / "out")
        assert done.returncode == 75, done.stderr
        assert "Traceback" not in done.stderr
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in error
        assert "free some space" in error
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert_goes_on(undisturbed.inputs, disk / "out", undisturbed.kept, [error])
