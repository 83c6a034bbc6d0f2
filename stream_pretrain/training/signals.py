"""Being asked to stop: signals become a flag that the loop reads, so that a checkpoint is written before the end."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
ECHO_SECONDS = 2.0
"""A launcher forwards the signal that its process group got as well: within this time it is the same request."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Interrupted(BaseException):
    """A signal ended a wait; not an Exception, so that no retry on the way swallows it."""


class StopRequest:
    """Whether, and by which signal, this process was asked to stop."""

    def __init__(self) -> None:
        # Plain attributes, not a threading.Event: its lock may be held by the very code that the signal interrupts.
        self._signal: signal.Signals | None = None
        self._since = 0.0
        self._interruptible = False

    @property
    def requested(self) -> bool:
        return self._signal is not None

    @property
    def signal(self) -> str | None:
        """Name of the first signal, for example SIGTERM."""
        return None if self._signal is None else self._signal.name

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Around a wait that may stall, such as the next batch: a signal ends it, or keeps it from beginning.

        Raises: Interrupted.
        """
        self._interruptible = True
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self._interruptible = False

    @contextmanager
    def deadly(self) -> Iterator[None]:
        """Around a wait in which no handler of Python runs, with nothing begun yet: a signal ends the process."""
        if self._signal is not None:
            raise SystemExit(128 + self._signal)
        own = [number for number in SIGNALS if signal.getsignal(number) == self._receive]
        handlers = {number: signal.signal(number, signal.SIG_DFL) for number in own}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal, self._since = signal.Signals(number), time.monotonic()
            if self._interruptible:
                raise Interrupted
        elif time.monotonic() - self._since > ECHO_SECONDS:
            os._exit(128 + number)  # at once, also in the middle of a write: checkpoints are whole or not there


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGTERM, SIGUSR1, SIGINT and SIGHUP set the flag; another one more than 2 s later ends the process with 128 + its number.

    SIGHUP stays ignored where it is, as `nohup` has it. To be entered in the main thread. The previous handlers are back
    afterwards.
    """
    request = StopRequest()
    outlives_terminal = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [number for number in SIGNALS if not (number == signal.SIGHUP and outlives_terminal)]
    previous = {number: signal.signal(number, request._receive) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_in_worker() -> None:
    """Let a data worker outlive signals meant for the run, until its trainer ends it or is no more.

    To be called first in the worker, which must have been started by a thread that lives as long as its process: the
    kernel takes the end of that thread for the end of the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if sys.platform != "linux":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return
    trainer = multiprocessing.parent_process()
    assert trainer is not None, "not in a worker"
    # SIGTERM is also how the trainer ends a worker that stalls: it counts when it comes from there.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(trainer, os.getppid()), daemon=True).start()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def _end_with(trainer: BaseProcess, parent: int) -> None:
    """End this process when the trainer says so, or has ended without the kernel telling.

    That is so when it ended before the kernel was asked, or when the parent is a fork server, which lives on.
    """
    while trainer.is_alive() and os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received is not None and received.si_pid == trainer.pid:
            break
    os._exit(128 + signal.SIGTERM)
