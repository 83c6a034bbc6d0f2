"""What workers make reaches the trainer in order and unchanged, however it travels; nothing is left when it is killed."""

from __future__ import annotations

import errno
import faulthandler
import gc
import hashlib
import itertools
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_state import first_cursors
from stream_pretrain.data.lanes.workers import SharedMemory, WorkerError, Workers
from stream_pretrain.errors import TrainingError
from tests.corpora import documents, write_shard
from tests.data.plans import plan_for

ROOT = Path(__file__).resolve().parents[2]
AHEAD = 8
Item = tuple[int, NDArray[np.int32], NDArray[np.int32]]


class Items:
    """Numbered arrays of these sizes, and of as many small ones; counts in a file what is made."""

    def __init__(self, sizes: list[int], made: Path | None = None, error: Exception | None = None) -> None:
        self.sizes, self.made, self.error = sizes, made, error

    def __iter__(self) -> Iterator[Item]:
        for number, size in enumerate(self.sizes * 100):
            if self.made is not None:
                with self.made.open("a") as counted:
                    counted.write(".")
            if self.error is not None and number == 3:
                raise self.error
            yield number, np.full(size, number, dtype=np.int32), np.full(5, -number, dtype=np.int32)


def received(workers: Workers[Item], worker: int) -> tuple[int, list[int], int]:
    """The next item: its number, what its large array holds, and the size of that."""
    number, large, small = workers.receive(worker)
    found = number, np.unique(large).tolist(), len(large)
    assert small.tolist() == [-number] * 5
    workers.release(worker)
    return found


SIZES = [300, 5_000, 20_000, 700, 9_000, 300_000, 40, 25_000]
"""Some do not fit behind the one before them, one not at all."""


@pytest.mark.parametrize("memory", [True, False])
def test_items_arrive_in_order_and_unchanged(memory: bool) -> None:
    with_it = SharedMemory.of(150_000) if memory else None
    workers = Workers([Items(SIZES), Items(SIZES[::-1])], [with_it, None], AHEAD, None)
    for number in range(40):
        assert received(workers, 0) == (number, [number], SIZES[number % 8])
        assert received(workers, 1) == (number, [number], SIZES[::-1][number % 8])
    workers.close()
    assert not multiprocessing.active_children()


def test_an_item_stays_as_it_is_until_it_is_released_however_far_its_worker_is_ahead(tmp_path: Path) -> None:
    made = tmp_path / "made"
    workers = Workers([Items([10_000], made)], [SharedMemory.of(1_000_000)], AHEAD, None)
    first = workers.receive(0)
    others = [workers.receive(0) for _ in range(AHEAD - 1)]  # all that it may send
    assert [number for number, _, _ in (first, *others)] == list(range(AHEAD))
    assert [np.unique(large).tolist() for _, large, _ in (first, *others)] == [[number] for number in range(AHEAD)]
    assert len(made.read_text()) <= AHEAD + 1, "it has made one more at most"
    workers.release(0)
    number, large, _ = workers.receive(0)
    assert (number, np.unique(large).tolist()) == (AHEAD, [AHEAD])
    workers.close()


def test_an_error_in_a_worker_is_raised_where_its_item_would_be_received() -> None:
    errors = [KeyError("none of the user"), MemoryError(), OSError(12, "Cannot allocate memory")]
    expected = [(WorkerError, "none of the user"), *[(TrainingError, r"died \(no memory left\).*--workers")] * 2]
    for error, (raised, said) in zip(errors, expected, strict=True):
        workers = Workers([Items([500], error=error)], [None], AHEAD, None)
        for number in range(3):
            assert received(workers, 0)[0] == number
        with pytest.raises(raised, match=said):
            workers.receive(0)
        workers.close()


def test_a_collection_in_a_worker_writes_to_nothing_that_it_shares_with_the_trainer() -> None:
    class Frozen:
        def __iter__(self) -> Iterator[Item]:
            yield gc.get_freeze_count(), np.empty(0), np.empty(0)

    before = gc.get_freeze_count()  # of Python itself, in 3.12
    workers = Workers([Frozen()], [None], AHEAD, None)
    assert workers.receive(0)[0] > 10_000
    assert gc.get_freeze_count() == before
    workers.close()


def test_a_worker_that_is_killed_is_named_with_its_signal() -> None:
    workers = Workers([Items([500]), Items([500])], [None, None], AHEAD, None)
    received(workers, 1)
    [_, second] = sorted(process.pid or 0 for process in multiprocessing.active_children())
    os.kill(second, signal.SIGKILL)
    with pytest.raises(TrainingError, match=rf"a data worker died \(process {second}: SIGKILL\)"):
        list(iter(lambda: received(workers, 1), None))
    workers.close()


def test_a_crash_is_not_taken_for_a_lack_of_memory() -> None:
    workers = Workers([Items([500])], [None], AHEAD, faulthandler.disable)
    [worker] = multiprocessing.active_children()
    assert received(workers, 0)[0] == 0
    os.kill(worker.pid or 0, signal.SIGABRT)
    with pytest.raises(TrainingError, match=rf"died \(process {worker.pid}: SIGABRT\): a library has crashed"):
        list(iter(lambda: received(workers, 0), None))
    workers.close()


def test_a_worker_that_cannot_be_started_is_refused_in_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "s", documents(300), "plain")
    next(steps(tmp_path, 0))  # what is opened once is open
    gc.collect()
    start, started, descriptors = multiprocessing.Process.start, list[int](), len(os.listdir("/proc/self/fd"))

    def at_the_limit(process: multiprocessing.Process) -> None:
        if len(started) == 2:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        start(process)
        started.append(process.pid or 0)

    monkeypatch.setattr(multiprocessing.Process, "start", at_the_limit)
    for _ in range(2):
        started.clear()
        with pytest.raises(TrainingError, match=r"^a data worker cannot be started \(Resource temporarily unavailable\)"):
            next(steps(tmp_path, 4))
        assert len(started) == 2
        assert not any(map(psutil.pid_exists, started))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors + 4, before[1]))
    try:
        with pytest.raises(TrainingError, match=r"^a data worker cannot be started \(Too many open files\)"):
            next(steps(tmp_path, 4))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_worker_that_is_killed_while_it_sends_an_item_is_named_too() -> None:
    workers = Workers([Items([5_000_000])], [None], AHEAD, None)
    [worker] = multiprocessing.active_children()
    assert workers._connections[0].poll(60), "some of the item is in the pipe"
    while psutil.Process(worker.pid).status() == psutil.STATUS_RUNNING:
        time.sleep(0.01)
    os.kill(worker.pid or 0, signal.SIGKILL)
    with pytest.raises(TrainingError, match=rf"a data worker died \(process {worker.pid}: SIGKILL\)"):
        list(iter(lambda: received(workers, 0), None))
    workers.close()


def steps(folder: Path, workers: int, warn: Callable[[str], object] = pytest.fail) -> Iterator[bytes]:
    """The rows of some steps."""
    plan = plan_for(folder, lanes=8, global_batch_size=64)
    with StepStream(plan, first_cursors(8), workers=workers, warn=warn) as stream:
        yield from (rows.trained.buffer.tobytes() for rows in itertools.islice(stream, 12))


def test_without_shared_memory_the_same_rows_come_through_pipes_which_is_said_once(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(300), "plain")
    expected, warned = list(steps(tmp_path, 2)), list[str]()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # of a file, which shared memory is for the kernel
    try:
        assert list(steps(tmp_path, 2, warned.append)) == expected
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert warned == ["rows come from the data workers through pipes, which is slower: no shared memory (File too large)"]


def test_workers_without_lanes_are_not_started(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(300), "plain")
    before, rows = len(multiprocessing.active_children()), steps(tmp_path, 20)
    first = next(rows)
    assert len(multiprocessing.active_children()) - before == 8  # as there are lanes
    assert first == next(steps(tmp_path, 0))


STREAMING = """
import hashlib, multiprocessing, os, resource, signal, sys
from pathlib import Path
from tests.data.test_workers import steps

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
for number, rows in enumerate(steps(Path(sys.argv[1]), 4, sys.exit)):
    print(hashlib.sha256(rows).hexdigest(), flush=True)
    if number == 11:
        print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""
SMALL = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
"""With a /dev/shm of its own, where users may have that."""


def test_a_trainer_that_is_killed_leaves_nothing_and_needs_no_dev_shm_and_few_descriptors(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(300), "plain")
    before = set(os.listdir("/dev/shm"))
    small = [*SMALL, 'mount -t tmpfs -o size=64k rows /dev/shm && exec "$@"', "sh"]
    may_mount = subprocess.run([*small, "true"], check=False, capture_output=True).returncode == 0
    command = [*(small if may_mount else []), sys.executable, "-c", STREAMING, str(tmp_path)]
    trainer = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert trainer.returncode == -signal.SIGKILL, trainer.stderr
    *said, workers = trainer.stdout.splitlines()
    assert said == [hashlib.sha256(rows).hexdigest() for rows in steps(tmp_path, 0)]
    assert len(workers.split()) == 4
    processes = (process.info for process in psutil.process_iter(["pid", "status"]))
    assert not {str(of["pid"]) for of in processes if of["status"] != psutil.STATUS_ZOMBIE} & {*workers.split()}
    assert set(os.listdir("/dev/shm")) <= before
