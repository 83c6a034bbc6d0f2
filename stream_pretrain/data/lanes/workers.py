"""Processes that make items ahead of the trainer, and how the items reach it.

An item is pickled, and goes through a pipe. Its arrays are copied into memory that both processes have, where the trainer reads
them until it releases the item. This memory has no name, so nothing is left of it however the processes end; and it is no part
of /dev/shm, which is small in many containers. Without it, arrays go through the pipe, too.
"""

from __future__ import annotations

import errno
import gc
import mmap
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import DupFd
from typing import Any, Generic, TypeVar

from stream_pretrain.errors import TrainingError
from stream_pretrain.units import MIB

T = TypeVar("T")

AHEAD_BYTES = 64 * MIB
"""Bytes of the arrays of the items that a worker may be ahead of the trainer, in memory that both have."""

SMALL_BYTES = 1024
"""Arrays up to this size are pickled."""

SHUTDOWN_SECONDS = 0.5
"""Workers that have not ended after this, such as those that wait for a server, are killed."""

_CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)

_LEAVE = b"leave"
"""A message to a worker. An empty one releases an item."""


class SharedMemory:
    """Memory that processes share."""

    def __init__(self, file: int, size: int) -> None:
        """file: descriptor, which is closed."""
        self.bytes = memoryview(mmap.mmap(file, size))
        self.file = file

    @classmethod
    def of(cls, size: int) -> SharedMemory:
        """Raises: OSError where it cannot be had."""
        if not hasattr(os, "memfd_create"):  # of Linux alone
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        file = os.memfd_create("rows")
        try:
            os.posix_fallocate(file, 0, size)  # all of it now: a write to what is not there would kill the process
            return cls(file, size)
        except OSError:
            os.close(file)
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (DupFd(self.file), len(self.bytes))


def _close(memory: SharedMemory | None) -> None:
    """Close the descriptor: the memory stays as long as it is mapped."""
    if memory is not None:
        os.close(memory.file)


def _opened(file: Any, size: int) -> SharedMemory:
    return SharedMemory(file.detach(), size)


@dataclass(frozen=True)
class _Failed:
    """What a worker sends after an error that is not in an item."""

    traceback: str
    no_memory: bool


class WorkerError(Exception):
    """A bug in a worker: its traceback."""


class Workers(Generic[T]):
    """Processes that each make items, which are received from each in their order."""

    def __init__(
        self,
        sources: Sequence[Iterable[T]],
        memories: Sequence[SharedMemory | None],
        ahead: int,
        begin: Callable[[], None] | None,
    ) -> None:
        """sources: of the items of each worker, iterated over there. ahead: items that each may have sent and not released.

        begin: called first in each. Raises: TrainingError where one cannot be started.
        """
        self._memories = memories
        self._connections: list[Connection] = []
        self._processes: list[multiprocessing.Process] = []
        try:
            for source, memory in zip(sources, memories, strict=True):
                self._start(source, memory, ahead, begin)
        except BaseException as error:
            for left in memories[len(self._processes) :]:
                _close(left)
            self.close()
            if isinstance(error, OSError):
                raise cannot_start(error) from error
            raise

    def _start(self, source: Iterable[T], memory: SharedMemory | None, ahead: int, begin: Callable[[], None] | None) -> None:
        ours, theirs = multiprocessing.Pipe()
        with theirs:  # where no other process has it, the death of the worker ends what is read
            self._connections.append(ours)
            arguments = (source, theirs, memory, ahead, begin, tuple(self._connections))
            process = multiprocessing.Process(target=_work, args=arguments, daemon=True)
            process.start()
        self._processes.append(process)
        _close(memory)

    def has_sent(self, worker: int) -> bool:
        """Whether `receive` would not wait: the next item of a worker is there, or its death."""
        return self._connections[worker].poll()

    def receive(self, worker: int) -> T:
        """The next item of a worker; its arrays are valid until it is released. Raises: TrainingError where a worker died."""
        pipe, memory = self._connections[worker], self._memories[worker]
        try:
            if not pipe.poll() and pipe not in wait([pipe, *(process.sentinel for process in self._processes)]):
                raise self._died()
            pickled, first, sizes = pickle.loads(pipe.recv_bytes())
            if memory is None or first is None:
                arrays = [memoryview(pipe.recv_bytes()) for _ in sizes]
            else:
                arrays = [memory.bytes[start:stop] for start, stop in _places(first, sizes)]
        except (EOFError, OSError) as error:  # OSError: in the middle of a message, too
            raise self._died() from error
        item: T | _Failed = pickle.loads(pickled, buffers=arrays)
        if not isinstance(item, _Failed):
            return item
        if item.no_memory:
            raise _died("no memory left")
        raise WorkerError(item.traceback)

    def release(self, worker: int) -> None:
        """Let a worker reuse the memory of its oldest item."""
        with suppress(ConnectionError):  # its death is reported when its next item is received
            self._connections[worker].send_bytes(b"")

    def close(self) -> None:
        """End the processes."""
        for pipe in self._connections:
            with suppress(ConnectionError):
                pipe.send_bytes(_LEAVE)
            pipe.close()
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        for process in self._processes:
            process.join(max(0, deadline - time.monotonic()))
        for process in self._processes:
            process.kill()  # it holds nothing that is not in a cursor
            process.join()
            process.close()

    def _died(self) -> TrainingError:
        ended = wait([process.sentinel for process in self._processes], timeout=1)
        dead = [process for process in self._processes if process.sentinel in ended]
        for process in dead:
            process.join()  # its exit code comes a little later than its end
        why = ", ".join(f"process {process.pid}: {_cause(process.exitcode or 0)}" for process in dead)
        if any(-(process.exitcode or 0) in _CRASHES for process in dead):
            return _died(why, "a library has crashed, perhaps on a damaged shard; what it wrote is above")
        return _died(why)


class InProcess(Generic[T]):
    """The same for items that the trainer makes itself, when it wants them."""

    def __init__(self, sources: Sequence[Iterable[T]]) -> None:
        self._items = [iter(source) for source in sources]

    def has_sent(self, worker: int) -> bool:  # noqa: ARG002
        """No item is made before it is needed."""
        return False

    def receive(self, worker: int) -> T:
        """The next item."""
        return next(self._items[worker])

    def release(self, worker: int) -> None:
        """Nothing is reused."""

    def close(self) -> None:
        """Let go of what the items are made of."""
        self._items.clear()


def _cause(exit_code: int) -> str:
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"


def _died(why: str, advice: str = "out of memory? Try fewer --workers") -> TrainingError:
    return TrainingError(f"a data worker died ({why}): {advice}")


def cannot_start(error: OSError) -> TrainingError:
    """The error where the system lets no more processes begin, or open no more files."""
    return TrainingError(f"a data worker cannot be started ({error.strerror}): give fewer --workers, or raise its limit")


def _work(
    source: Iterable[T],
    pipe: Connection,
    memory: SharedMemory | None,
    ahead: int,
    begin: Callable[[], None] | None,
    of_trainer: Sequence[Connection],
) -> None:
    """What a worker does: send its items until the trainer leaves. of_trainer: ends of pipes that a fork has, too."""
    for end in of_trainer:
        end.close()  # so that the pipe ends with the trainer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker is one core; threads do not survive a fork
    os.environ["RAYON_NUM_THREADS"] = "1"  # of `fastokens`
    gc.freeze()  # a collection writes to what it looks at, and what is written to is shared with the trainer no more
    if begin is not None:
        begin()
    outbox = _Outbox(pipe, memory, ahead)
    with suppress(EOFError, ConnectionError, KeyboardInterrupt):  # the trainer has left, or leaves
        for item in _with_error(source):
            outbox.send(item)


def _with_error(source: Iterable[T]) -> Iterator[T | _Failed]:
    try:
        yield from source
    except Exception as error:
        no_memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        failed = _Failed(traceback.format_exc(), no_memory)
        while True:
            yield failed


class _Outbox:
    """The end of a worker: sends items as far ahead as it may."""

    def __init__(self, pipe: Connection, memory: SharedMemory | None, ahead: int) -> None:
        self._pipe, self._memory, self._ahead = pipe, memory, ahead
        self._unreleased = deque[tuple[int, int] | None]()  # of each item, where its arrays begin and end in the memory

    def send(self, item: object) -> None:
        """Raises: EOFError, ConnectionError when the trainer has left."""
        arrays: list[memoryview] = []

        def is_pickled(array: pickle.PickleBuffer) -> bool:
            is_small = array.raw().nbytes <= SMALL_BYTES
            if not is_small:
                arrays.append(array.raw())
            return is_small

        pickled = pickle.dumps(item, protocol=5, buffer_callback=is_pickled)
        sizes = [array.nbytes for array in arrays]
        while self._pipe.poll() or len(self._unreleased) >= self._ahead:
            self._wait_for_release()
        size = sum(map(_aligned, sizes))
        if self._memory is None or not 0 < size <= len(self._memory.bytes):
            self._unreleased.append(None)
            self._pipe.send_bytes(pickle.dumps((pickled, None, sizes)))
            for array in arrays:
                self._pipe.send_bytes(array)
            return
        while (first := self._free(size, len(self._memory.bytes))) is None:
            self._wait_for_release()
        self._unreleased.append((first, first + size))
        for array, (start, stop) in zip(arrays, _places(first, sizes), strict=True):
            self._memory.bytes[start:stop] = array
        self._pipe.send_bytes(pickle.dumps((pickled, first, sizes)))

    def _wait_for_release(self) -> None:
        if self._pipe.recv_bytes() == _LEAVE:
            raise EOFError
        self._unreleased.popleft()

    def _free(self, size: int, end: int) -> int | None:
        """Offset of `size` free bytes after those of the last item, or at the beginning of the memory."""
        taken = [place for place in self._unreleased if place is not None]
        if not taken:
            return 0
        (first, _), (last, after) = taken[0], taken[-1]
        free = [(after, end), (0, first)] if first <= last else [(after, first)]
        return next((start for start, stop in free if start + size <= stop), None)


def _places(first: int, sizes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Begin and end of consecutive arrays."""
    for size in sizes:
        yield first, first + size
        first += _aligned(size)


def _aligned(size: int) -> int:
    return -(-size // 64) * 64
