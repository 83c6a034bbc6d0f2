"""What ranks tell each other outside of the steps: that one was asked to stop, or why one ends.

Ranks that wait for each other cannot be reached by the collectives they wait in. So a thread of each rank watches a store
that the first rank keeps: a signal to one rank reaches all, and the reason of the first one to end is known to the others
before they find it gone.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self, TypeVar

from torch.distributed import DistError, DistNetworkError, TCPStore  # type: ignore[attr-defined]

from stream_pretrain import exit_codes
from stream_pretrain.training.ranks import Ranks
from stream_pretrain.training.signals import StopRequest

POLL_SECONDS = 1.0
HEARD_SECONDS = 5.0
"""A rank that ends waits at most so long for all others to have heard why."""
LEAVE_SECONDS = 20.0
"""A rank that has not left so long after another one ended never will: it waits in a collective for what does not come."""
ALONE_SECONDS = 5.0
"""So long a rank has to find out by a collective that another one was killed; those on GPUs do not fail, they hang."""
SILENT_POLLS = 15
"""A rank on another machine that shows no life for so many polls is lost; of one on this machine the process is known."""
VANISHED = "rank {} ended without a word: it was killed, perhaps for want of memory"
NO_LIFE = "shows no life any more"
LOST = f"rank {{}} on {{}} {NO_LIFE}: it or its machine was lost, cut off or stopped"
FROZEN = "rank {} shows no life, though its process is there: it is stopped, or its machine does not get on"
_STOP, _END, _HEARD, _BEAT = "stop", "end", "heard", "beat {}"
T = TypeVar("T")


@dataclass(frozen=True)
class Ending:
    """Why a rank ends, and the exit code of the run."""

    why: str
    exit_code: int

    @classmethod
    def of_missing_rank(cls, why: str) -> Self:
        """The same command goes on when a machine was lost; why a process was killed nobody knows."""
        return cls(why, exit_codes.RESUMES if NO_LIFE in why else exit_codes.FAILED)

    @classmethod
    def read(cls, told: str) -> Self:
        """What `told_by` has made."""
        _, code, why = told.split(" ", 2)
        return cls(why, int(code))

    def told_by(self, rank: int) -> str:
        """As the store has it, with the rank: those that end together may have the same to say."""
        return f"{rank} {self.exit_code} {self.why}"


STOPPED = Ending("asked to stop", exit_codes.RESUMES)
"""Of a rank that did not fail."""


class Peers:
    """The other ranks, as they can be reached when this one or another is in trouble; alone there is none.

    processes: machine and process number of each rank.
    """

    def __init__(
        self,
        store: TCPStore | None = None,
        processes: Sequence[tuple[str, int]] = (),
        rank: int = 0,
        report: Callable[[str], None] = lambda _: None,
        stop: StopRequest | None = None,
    ) -> None:
        self._store, self._processes, self._rank, self._report = store, processes, rank, report
        self._stop = stop or StopRequest()
        self._questions: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], Future[Any]] | None] = SimpleQueue()
        self._unheard = False  # whether the store has been silent for too long
        self._left = threading.Event()
        self._heard = False
        self._ending = threading.Lock()
        self._why: Ending | None = None  # kept, since the store ends with the first rank
        self._lost: str | None = None
        # Each rank listens to the next one: no rank has more to do however many there are.
        self._next = (rank + 1) % max(1, len(processes))
        self._last_beat = b""
        self._silent_polls = 0

    def end(self, why: Ending) -> Ending | None:
        """Tell the others why this rank ends, and wait until they have heard; returns what was told before, by any rank."""
        with self._ending:  # the main thread, or the one that watches when that one hangs
            if self._store is None:
                return None
            if self._why is not None:
                self._acknowledge()
                return self._why
            own = why.told_by(self._rank)
            try:
                told = self._ask(self._store.compare_set, _END, "", own).decode()
                self._why = Ending.read(told)
                self._acknowledge()
                if told != own:
                    return self._why
                deadline = time.monotonic() + HEARD_SECONDS
                there = len(self._processes) - (len(self._gone()) or int(self._lost is not None))
                while self._ask(self._store.add, _HEARD, 0) < there and time.monotonic() < deadline:
                    time.sleep(0.05)
                return None
            except DistError:  # the first rank, which keeps the store, is no more: on each machine one of the others says so
                self._why = self._why or why
                here = [rank for rank, (machine, _) in enumerate(self._processes) if machine == _machine() and rank != 0]
                return None if self._rank in (0, *here[:1]) else why

    def part(self) -> None:
        """From here on this rank leaves by itself, however long that takes, and misses no other one."""
        self._left.set()
        self._stop.news.set()

    def vanished(self, patience: float) -> str | None:
        """Says which rank has ended without telling why; seen `patience` seconds after its connections close."""
        deadline = time.monotonic() + patience
        while self._told() is None:
            if gone := self._gone():
                return VANISHED.format(min(gone))
            if self._lost is not None or time.monotonic() >= deadline:
                return self._lost
            time.sleep(0.05)
        return None

    def reason(self, patience: float) -> Ending | None:
        """Why another rank has ended, as soon as it says so, waited for so many seconds."""
        deadline = time.monotonic() + patience
        while (why := self._told()) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return why

    @property
    def are_apart(self) -> bool:
        """Whether they are on several machines."""
        return len({machine for machine, _ in self._processes}) > 1

    def _gone(self) -> list[int]:
        """Ranks of this machine whose process has ended."""
        here = _machine()
        return [rank for rank, (machine, pid) in enumerate(self._processes) if machine == here and _is_gone(pid)]

    def _missing(self) -> str | None:
        """Says which rank is no more, if one is. Raises: DistError when the store is not there, which the first rank keeps."""
        assert self._store is not None
        if gone := self._gone():
            return VANISHED.format(min(gone))
        self._ask(self._store.add, _BEAT.format(self._rank), 1)
        beat = self._ask(self._store.get, _BEAT.format(self._next))
        # Counted in own polls: a machine that was suspended, this one too, is not taken for lost when it wakes.
        self._silent_polls = self._silent_polls + 1 if beat == self._last_beat else 0
        self._last_beat = beat
        machine, _ = self._processes[self._next]
        if self._silent_polls >= SILENT_POLLS and machine != _machine():
            return LOST.format(self._next, machine.split()[0])
        if self._silent_polls == SILENT_POLLS:
            self._report(FROZEN.format(self._next))
        return None

    def _told(self) -> Ending | None:
        with suppress(DistError):
            if self._why is None and self._store is not None and self._ask(self._store.check, [_END]):
                self._why = Ending.read(self._ask(self._store.get, _END).decode())
        return self._why

    def _acknowledge(self) -> None:
        if self._store is not None and not self._heard:
            self._heard = True
            with suppress(DistError):
                self._ask(self._store.add, _HEARD, 1)

    def _ask(self, operation: Callable[..., T], *arguments: Any) -> T:
        """What the store answers, which another thread waits for: torch does so without end, also when a machine was lost.

        Raises: DistError when the store is not there.
        """
        answer: Future[T] = Future()
        self._questions.put((operation, arguments, answer))
        for _ in range(SILENT_POLLS):
            if self._unheard:
                break
            with suppress(TimeoutError):
                return answer.result(POLL_SECONDS)
        machine, _ = self._processes[0]
        if machine == _machine():  # its process is there, or the connection would be closed
            if self._next == 0:
                self._report(FROZEN.format(0))
            return answer.result()
        self._unheard = True
        raise DistNetworkError(f"the store on {machine} is silent")

    def _answer(self) -> None:
        """Ends at a question that is none."""
        while (question := self._questions.get()) is not None:
            operation, arguments, answer = question
            try:
                answer.set_result(operation(*arguments))
            except Exception as error:  # raised where it was asked
                answer.set_exception(error)

    def _watch_store(self, give_up: Callable[[Ending, bool], None]) -> None:
        """Ends when this rank leaves; sees to it that it does when another one has ended."""
        assert self._store is not None
        shared = False
        try:
            while not self._left.is_set() and self._told() is None and self._lost is None:
                self._stop.news.wait(POLL_SECONDS)
                self._stop.news.clear()
                if self._left.is_set():
                    return  # the first rank, and the store with it, may be gone
                if self._stop.signal is not None and not shared:
                    self._ask(self._store.set, _STOP, self._stop.signal)
                    shared = True
                elif not shared and self._ask(self._store.check, [_STOP]):
                    shared = True
                    number = signal.Signals[self._ask(self._store.get, _STOP).decode()]
                    ignored = signal.getsignal(number) == signal.SIG_IGN  # here, not on the rank that got it
                    os.kill(os.getpid(), signal.SIGTERM if ignored else number)
                self._lost = self._missing()
        except DistError:
            machine, process = self._processes[0]
            if machine != _machine() or _is_gone(process):
                self._lost = LOST.format(0, machine.split()[0]) if self._unheard else VANISHED.format(0)
        why, first = self._told(), False
        if why is None:
            if self._lost is None or self._left.wait(ALONE_SECONDS):
                return
            lost = Ending.of_missing_rank(self._lost)
            told = self.end(lost)
            why, first = told or lost, told is None
        self._acknowledge()
        if first or not self._left.wait(LEAVE_SECONDS):
            give_up(why, first)
            os._exit(exit_codes.of_stopped_process(self._stop.signal) if why == STOPPED else why.exit_code)


@contextmanager
def between_ranks(
    ranks: Ranks, stop: StopRequest, give_up: Callable[[Ending, bool], None], report: Callable[[str], None]
) -> Iterator[Peers]:
    """Let a signal to one rank reach all of them, also those that wait for each other, and know why another one ended.

    To be entered in the main thread. `give_up` is told the reason before a rank that cannot leave by itself is ended,
    and whether no other rank has said it yet; `report` is told of a rank that shows no life.
    """
    if ranks.world == 1:
        yield Peers()
        return
    host = os.environ["MASTER_ADDR"]
    soon = timedelta(seconds=SILENT_POLLS * POLL_SECONDS)
    created = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=soon) if ranks.is_first else None
    port = ranks.from_first(lambda: created.port if created is not None else 0)
    store = created or TCPStore(host, port, is_master=False, timeout=soon)
    store.set_timeout(timedelta(days=1))  # every key that is waited for is there: an answer may only be late
    store.add(_BEAT.format(ranks.index), 1)
    peers = Peers(store, ranks.gather((_machine(), os.getpid())), ranks.index, report, stop)
    threading.Thread(target=peers._answer, name="store", daemon=True).start()
    thread = threading.Thread(target=peers._watch_store, args=(give_up,), name="peers", daemon=True)
    thread.start()
    try:
        yield peers
    finally:
        if not peers._left.is_set():
            peers._acknowledge()
        peers.part()
        thread.join()
        peers._questions.put(None)  # not waited for: an answer may never come


def _machine() -> str:
    """Where numbers of processes mean the same ones: a machine, or a container on it."""
    with suppress(OSError):  # no /proc here
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return True
    except OSError:  # no /proc here
        return False
    return state in "ZX"  # ended, and its parent has not looked yet
