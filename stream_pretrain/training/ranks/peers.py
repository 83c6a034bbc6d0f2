"""Messages between ranks outside of the steps: that one is asked to stop, or why one ends.

A rank that waits in a collective cannot be reached by another one. So a thread of each rank polls a key-value store on the
first rank: a signal to one rank reaches all, and the first rank to end announces why.

Threads: the main thread announces, leaves and waits for the endings of others; "peers" polls; "store" makes all calls to the
store, since these may never return.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from torch.distributed import DistError, DistNetworkError, TCPStore  # type: ignore[attr-defined]

from stream_pretrain import exit_codes
from stream_pretrain.data.transport.threads import OneThread
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import StopRequest

POLL_SECONDS = 1.0
ACKNOWLEDGE_SECONDS = 5.0
"""How long a rank that ends waits for the others to read why."""
EXIT_SECONDS = 20.0
"""A rank that has not ended this long after another one is stuck in a collective."""
COLLECTIVE_FAILURE_SECONDS = 5.0
"""How long a rank may take to notice a dead one by a failed collective; on GPUs these hang instead."""
SILENT_POLLS = 15
"""Polls without a heartbeat after which a rank on another machine is lost; on this machine its process is checked."""
DIED = "rank {} died without an error: it was killed, perhaps for lack of memory"
NO_HEARTBEAT = "has no heartbeat"
LOST = f"rank {{}} on {{}} {NO_HEARTBEAT}: it or its machine was lost, cut off or stopped"
FROZEN = f"rank {{}} {NO_HEARTBEAT}, but its process exists: it is stopped, or its machine stalls"
_STOP, _ENDING, _ACKNOWLEDGED, _HEARTBEAT = "stop", "end", "heard", "beat {}"
T = TypeVar("T")


@dataclass(frozen=True)
class Ending:
    """Why a rank ends, and the exit code of the run."""

    why: str
    exit_code: int

    @classmethod
    def of_missing_rank(cls, why: str) -> Self:
        """After the loss of a machine the same command resumes; why a process was killed is not known."""
        return cls(why, exit_codes.RESUMES if NO_HEARTBEAT in why else exit_codes.FAILED)

    @classmethod
    def decode(cls, announced: str) -> Self:
        _, code, why = announced.split(" ", 2)
        return cls(why, int(code))

    def encode(self, rank: int) -> str:
        """For the store; with the rank, since two ranks may end alike."""
        return f"{rank} {self.exit_code} {self.why}"


STOPPED = Ending("asked to stop", exit_codes.RESUMES)
"""Of a rank that did not fail."""


class Peers:
    """The other ranks, for when this one or another is in trouble. A run of one rank has none.

    processes: machine and pid of each rank.
    """

    def __init__(
        self,
        store: TCPStore | None = None,
        store_thread: OneThread | None = None,
        processes: Sequence[tuple[str, int]] = (),
        rank: int = 0,
        report: Callable[[str], None] = lambda _: None,
        stop: StopRequest | None = None,
    ) -> None:
        self._store, self._store_thread = store, store_thread
        self._processes, self._rank, self._report = processes, rank, report
        self._stop = stop or StopRequest()
        self._store_is_silent = False
        self._leaving = threading.Event()
        self._acknowledged = False
        self._announcing = threading.Lock()
        self._ending: Ending | None = None  # the announced one, kept since the store ends with the first rank
        self._lost: str | None = None
        # Each rank watches the next one, so that the work of a rank does not grow with their number.
        self._next = (rank + 1) % max(1, len(processes))
        self._last_heartbeat = b""
        self._silent_polls = 0

    def announce(self, ending: Ending) -> Ending | None:
        """Announce why this rank ends, and wait until the others know; returns the ending that another announced before."""
        with self._announcing:  # by the main thread, or by "peers" when that one hangs
            if self._store is None:
                return None
            if self._ending is not None:
                self._acknowledge()
                return self._ending
            own = ending.encode(self._rank)
            try:
                announced = self._ask(self._store.compare_set, _ENDING, "", own).decode()
                self._ending = Ending.decode(announced)
                self._acknowledge()
                if announced != own:
                    return self._ending
                deadline = time.monotonic() + ACKNOWLEDGE_SECONDS
                alive = len(self._processes) - (len(self._dead()) or int(self._lost is not None))
                while self._ask(self._store.add, _ACKNOWLEDGED, 0) < alive and time.monotonic() < deadline:
                    time.sleep(0.05)
                return None
            except DistError:  # the first rank is dead, and the store with it: one rank on each machine reports it
                self._ending = self._ending or ending
                here = [rank for rank, (machine, _) in enumerate(self._processes) if machine == _machine() and rank != 0]
                return None if self._rank in (0, *here[:1]) else ending

    def leave(self) -> None:
        """From here on this rank ends by itself, however long that takes, and does not watch the others."""
        self._leaving.set()
        self._stop.news.set()

    def dead_rank(self, patience: float) -> str | None:
        """Which rank died unannounced, as an error; waits up to `patience` seconds. None where a rank announced an ending."""
        deadline = time.monotonic() + patience
        while self._announced() is None:
            if dead := self._dead():
                return DIED.format(min(dead))
            if self._lost is not None or time.monotonic() >= deadline:
                return self._lost
            time.sleep(0.05)
        return None

    def wait_for_ending(self, patience: float) -> Ending | None:
        """The announced ending; waits up to `patience` seconds for one."""
        deadline = time.monotonic() + patience
        while (ending := self._announced()) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return ending

    @property
    def span_machines(self) -> bool:
        """Whether there are several machines."""
        return len({machine for machine, _ in self._processes}) > 1

    def _dead(self) -> list[int]:
        """Ranks of this machine whose process has ended."""
        here = _machine()
        return [rank for rank, (machine, pid) in enumerate(self._processes) if machine == here and _has_ended(pid)]

    def _find_lost_rank(self) -> str | None:
        """Which rank is dead or lost, as an error; renews the heartbeat of this one. Raises: DistError without a store."""
        assert self._store is not None
        if dead := self._dead():
            return DIED.format(min(dead))
        self._ask(self._store.add, _HEARTBEAT.format(self._rank), 1)
        heartbeat = self._ask(self._store.get, _HEARTBEAT.format(self._next))
        # Counted in polls, not in seconds: after a suspend of this machine, no rank is taken for lost.
        self._silent_polls = self._silent_polls + 1 if heartbeat == self._last_heartbeat else 0
        self._last_heartbeat = heartbeat
        machine, _ = self._processes[self._next]
        if self._silent_polls >= SILENT_POLLS and machine != _machine():
            return LOST.format(self._next, machine.split()[0])
        if self._silent_polls == SILENT_POLLS:
            self._report(FROZEN.format(self._next))
        return None

    def _announced(self) -> Ending | None:
        with suppress(DistError):
            if self._ending is None and self._store is not None and self._ask(self._store.check, [_ENDING]):
                self._ending = Ending.decode(self._ask(self._store.get, _ENDING).decode())
        return self._ending

    def _acknowledge(self) -> None:
        if self._store is not None and not self._acknowledged:
            self._acknowledged = True
            with suppress(DistError):
                self._ask(self._store.add, _ACKNOWLEDGED, 1)

    def _ask(self, operation: Callable[..., T], *arguments: Any) -> T:
        """The result of a store operation, with a timeout: torch waits forever after the loss of a machine.

        Raises: DistError without a store.
        """
        assert self._store_thread is not None
        result = self._store_thread.call(partial(operation, *arguments))
        for _ in range(SILENT_POLLS):
            if self._store_is_silent:
                break
            with suppress(TimeoutError):
                return result.result(POLL_SECONDS)
        machine, _ = self._processes[0]
        if machine == _machine():  # its process exists, else the connection were closed
            if self._next == 0:
                self._report(FROZEN.format(0))
            return result.result()
        self._store_is_silent = True
        raise DistNetworkError(f"the store on {machine} does not answer")

    def _poll(self, give_up: Callable[[Ending, bool], None]) -> None:
        """The thread "peers". Ends when this rank leaves, or ends the process once another rank has ended."""
        assert self._store is not None
        stop_is_known = False
        try:
            while not self._leaving.is_set() and self._announced() is None and self._lost is None:
                self._stop.news.wait(POLL_SECONDS)
                self._stop.news.clear()
                if self._leaving.is_set():
                    return  # the first rank may have ended, and the store with it
                if self._stop.signal is not None and not stop_is_known:
                    self._ask(self._store.set, _STOP, self._stop.signal)
                    stop_is_known = True
                elif not stop_is_known and self._ask(self._store.check, [_STOP]):
                    stop_is_known = True
                    number = signal.Signals[self._ask(self._store.get, _STOP).decode()]
                    is_ignored = signal.getsignal(number) == signal.SIG_IGN  # here, if not on the rank that got it
                    os.kill(os.getpid(), signal.SIGTERM if is_ignored else number)
                self._lost = self._find_lost_rank()
        except DistError:
            machine, process = self._processes[0]
            if machine != _machine() or _has_ended(process):
                self._lost = LOST.format(0, machine.split()[0]) if self._store_is_silent else DIED.format(0)
        ending, is_first = self._announced(), False
        if ending is None:
            if self._lost is None or self._leaving.wait(COLLECTIVE_FAILURE_SECONDS):
                return
            lost = Ending.of_missing_rank(self._lost)
            before = self.announce(lost)
            ending, is_first = before or lost, before is None
        self._acknowledge()
        if is_first or not self._leaving.wait(EXIT_SECONDS):
            give_up(ending, is_first)
            os._exit(exit_codes.of_stopped_process(self._stop.signal) if ending == STOPPED else ending.exit_code)


@contextmanager
def between_ranks(
    ranks: Ranks, stop: StopRequest, give_up: Callable[[Ending, bool], None], report: Callable[[str], None]
) -> Iterator[Peers]:
    """Connect the ranks: a signal to one reaches all, even in a collective, and all know why one ends.

    Enter it in the main thread. give_up: called before a rank that hangs is ended, with the ending and whether this rank
    announced it. report: called for a rank without a heartbeat.
    """
    if ranks.world == 1:
        yield Peers()
        return
    host = os.environ["MASTER_ADDR"]
    timeout = timedelta(seconds=SILENT_POLLS * POLL_SECONDS)
    created = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout) if ranks.is_first else None
    port = ranks.from_first(lambda: created.port if created is not None else 0)
    store = created or TCPStore(host, port, is_master=False, timeout=timeout)
    store.set_timeout(timedelta(days=1))  # every key that is read exists: `_ask` has the timeout
    store.add(_HEARTBEAT.format(ranks.index), 1)
    with OneThread("store") as store_thread:
        peers = Peers(store, store_thread, ranks.gather((_machine(), os.getpid())), ranks.index, report, stop)
        thread = threading.Thread(target=peers._poll, args=(give_up,), name="peers", daemon=True)
        thread.start()
        try:
            yield peers
        finally:
            if not peers._leaving.is_set():
                peers._acknowledge()
            peers.leave()
            thread.join()


def _machine() -> str:
    """A name for where pids are the same: a machine, or a container on it."""
    with suppress(OSError):  # no /proc
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return True
    except OSError:  # no /proc
        return False
    return state in "ZX"  # ended, but not reaped
