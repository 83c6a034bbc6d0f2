"""Signals become a flag that the loop reads at a step boundary, so that a run saves before it stops."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import FrameType

from stream_pretrain import exit_codes

ECHO_SECONDS = 2.0
"""A launcher repeats a signal to its process group: within this time it is the same request."""
QUIT_SECONDS = 2.0
"""After a second signal, the time to report what is lost, even if the disk or the terminal hangs."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Interrupted(BaseException):
    """A signal ended a wait. Not an Exception, so that no retry swallows it."""


class StopRequest:
    """Whether, and by which signal, this process is asked to stop.

    A thread answers: Python's handlers run only after the main thread returns from C code such as a collective, a kernel or an
    import.
    """

    def __init__(self) -> None:
        # Plain attributes, not a threading.Event, whose lock the interrupted code may hold.
        self._signal: signal.Signals | None = None
        self._interruptible = False
        self._deciding = threading.Lock()  # never taken by a handler
        self._answered = threading.Event()
        self._first: Callable[[str], None] = lambda _: None
        self._second: Callable[[str], int] = exit_codes.of_stopped_process
        self.last_step: int | None = None
        """The step after which a request stops the run; None before it trains."""
        self.news = threading.Event()
        """Set by every request, for threads that wait for one."""

    @property
    def requested(self) -> bool:
        return self._signal is not None

    @property
    def signal(self) -> str | None:
        """Name of the first signal, for example SIGTERM."""
        return None if self._signal is None else self._signal.name

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Around a wait that may stall, such as that for data: a signal ends it, or keeps it from starting.

        Raises: Interrupted.
        """
        self._interruptible = True
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self._interruptible = False

    def complete(self, step: int) -> None:
        """From here on, this step is completed, and is the last one if there is a request. Ends `interruptible`.

        Raises: Interrupted after a request.
        """
        self._interruptible = False  # before the lock is taken, which a handler must not leave taken
        with self._deciding:
            if self.requested:
                raise Interrupted
            self.last_step = step

    def leaves(self, step: int, micro_batches_after: int) -> bool:
        """Whether to abandon this step before a micro-batch; never after `complete`, nor before the last micro-batch."""
        with self._deciding:
            if self.last_step == step:
                return False
            if not self.requested and micro_batches_after == 1:
                self.last_step = step
            return self.requested

    def answer(self, first: Callable[[str], None], second: Callable[[str], int]) -> None:
        """Set what answers a request, and what answers a second one and returns the exit code the process ends with.

        Called in a thread, with the name of the signal.
        """
        self._first, self._second = first, second

    def wait_for_answer(self) -> None:
        """Wait until the answer is shown, before the last line; not for long, as the terminal may hang."""
        if self.requested:
            self._answered.wait(QUIT_SECONDS)

    def _answer(self, name: str) -> None:
        self._first(name)
        self._answered.set()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal = signal.Signals(number)
        if self._interruptible:
            self._interruptible = False
            raise Interrupted

    def _watch(self, received: socket.socket) -> None:
        """The thread "signals". Ends at a 0."""
        since: float | None = None
        while 0 not in (numbers := received.recv(64)):
            names = [signal.Signals(number).name for number in numbers if number in exit_codes.SIGNALS]
            if not names:
                continue
            if since is None:
                since = time.monotonic()
                with self._deciding:  # fixes `last_step`
                    self._signal = self._signal or signal.Signals[names[0]]
                self.news.set()
                threading.Thread(target=self._answer, args=(names[0],), name="answer", daemon=True).start()
            elif time.monotonic() - since > ECHO_SECONDS:
                late = threading.Timer(QUIT_SECONDS, os._exit, [exit_codes.of_stopped_process(names[0])])
                late.daemon = True
                late.start()
                os._exit(self._second(names[0]))  # even during a write: checkpoints are atomic


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGTERM, SIGUSR1, SIGINT and SIGHUP set the flag; another one, more than 2 s later, ends the process.

    SIGHUP stays ignored under `nohup`. Enter it in the main thread; restores the previous handlers.
    """
    request = StopRequest()
    outlives_terminal = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [number for number in exit_codes.SIGNALS if not (number == signal.SIGHUP and outlives_terminal)]
    received, sent = socket.socketpair()
    sent.setblocking(False)
    thread = threading.Thread(target=request._watch, args=(received,), name="signals", daemon=True)
    thread.start()
    descriptor = signal.set_wakeup_fd(sent.fileno(), warn_on_full_buffer=False)
    previous = {number: signal.signal(number, request._receive) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: one that Python cannot install again
        signal.set_wakeup_fd(descriptor)
        sent.send(b"\0")  # closing it is not enough: a forked process may have it open
        thread.join()
        sent.close()
        received.close()


def ignore_in_worker() -> None:
    """As `leave_to_trainer`, and end at the same moment as the trainer.

    Call it first in the worker, which must have been started by a thread that lives as long as its process: for the kernel, the
    end of that thread is the end of the parent.
    """
    leave_to_trainer()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def leave_to_trainer() -> None:
    """Let a data worker leave signals to its trainer, and end within a second of it. Call it first in the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if sys.platform != "linux":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return
    trainer = multiprocessing.parent_process()
    assert trainer is not None, "not in a worker"
    # SIGTERM counts only from the trainer, which ends a stalled worker with it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(trainer, os.getppid()), daemon=True).start()


def _end_with(trainer: BaseProcess, parent: int) -> None:
    """End this process on SIGTERM from the trainer, or after its end where the kernel sends no signal.

    It sends none if the trainer ended before `prctl`, or if the parent is a fork server.
    """
    while trainer.is_alive() and os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received is not None and received.si_pid == trainer.pid:
            break
    os._exit(128 + signal.SIGTERM)
