"""Being asked to stop: signals become a flag that the loop reads, so that a checkpoint is written before the end."""

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

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
ECHO_SECONDS = 2.0
"""A launcher forwards the signal that its process group got as well: within this time it is the same request."""
QUIT_SECONDS = 2.0
"""A process that is asked a second time has so long to say what is lost, also where the disk or the terminal hangs."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Interrupted(BaseException):
    """A signal ended a wait; not an Exception, so that no retry on the way swallows it."""


class StopRequest:
    """Whether, and by which signal, this process was asked to stop.

    A thread answers, since Python's handlers wait until the main thread is back from the C code it is in: a collective, a
    kernel, the import of a library.
    """

    def __init__(self) -> None:
        # Plain attributes, not a threading.Event: its lock may be held by the very code that the signal interrupts.
        self._signal: signal.Signals | None = None
        self._interruptible = False
        self._deciding = threading.Lock()  # no handler takes it
        self._answered = threading.Event()
        self._first: Callable[[str], None] = lambda _: None
        self._second: Callable[[str], None] = lambda _: None
        self.last_step: int | None = None
        """The step after which a run stops that is asked now; None before it trains."""
        self.news = threading.Event()
        """Set by every request, for a thread that waits for it."""

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

    def complete(self, step: int) -> None:
        """From here on the step under way is completed, and the last one where a request comes; ends `interruptible`.

        Raises: Interrupted where a request has come.
        """
        with self._deciding:
            self._interruptible = False
            if self.requested:
                raise Interrupted
            self.last_step = step

    def leaves(self, step: int, micro_batches_after: int) -> bool:
        """Whether the step under way is left in front of a micro-batch; never behind `complete`, or the last but one."""
        with self._deciding:
            if self.last_step == step:
                return False
            if not self.requested and micro_batches_after == 1:
                self.last_step = step
            return self.requested

    def answer(self, first: Callable[[str], None], second: Callable[[str], None]) -> None:
        """From here on a request is answered by `first`, and a second one by `second`, after which the process ends.

        Both are given the name of the signal, and called in a thread.
        """
        self._first, self._second = first, second

    def wait_for_answer(self) -> None:
        """Let what is said of a request come before what is said of the end, unless the terminal hangs."""
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
        """Ends at a 0 among the numbers of the signals."""
        since: float | None = None
        while 0 not in (numbers := received.recv(64)):
            names = [signal.Signals(number).name for number in numbers if number in SIGNALS]
            if not names:
                continue
            if since is None:
                since = time.monotonic()
                with self._deciding:  # `last_step` stays from here on
                    self._signal = self._signal or signal.Signals[names[0]]
                self.news.set()
                threading.Thread(target=self._answer, args=(names[0],), name="answer", daemon=True).start()
            elif time.monotonic() - since > ECHO_SECONDS:
                code = exit_codes.of_stopped_process(names[0])
                late = threading.Timer(QUIT_SECONDS, os._exit, [code])
                late.daemon = True
                late.start()
                self._second(names[0])
                os._exit(code)  # also in the middle of a write: checkpoints are whole or not there


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGTERM, SIGUSR1, SIGINT and SIGHUP set the flag; another one more than 2 s later ends the process.

    SIGHUP stays ignored where it is, as `nohup` has it. To be entered in the main thread. The previous handlers are back
    afterwards.
    """
    request = StopRequest()
    outlives_terminal = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [number for number in SIGNALS if not (number == signal.SIGHUP and outlives_terminal)]
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
            signal.signal(number, handler)
        signal.set_wakeup_fd(descriptor)
        sent.send(b"\0")  # not its end: a process that was forked may have it as well
        thread.join()
        sent.close()
        received.close()


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
