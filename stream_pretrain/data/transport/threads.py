"""Threads that wait for servers: for calls that may never return, and for many files at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from contextlib import closing
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any, Self, TypeVar

from stream_pretrain.data.transport.http_session import Sessions
from stream_pretrain.data.transport.options import TransportOptions

T = TypeVar("T")

AT_ONCE = 16
"""Concurrent requests for small files: one after the other, each would take a round trip."""


def in_thread(name: str, call: Callable[..., T], *arguments: Any) -> Future[T]:
    """The result of a call in its own daemon thread."""
    future: Future[T] = Future()
    threading.Thread(target=_run, name=name, args=(future, partial(call, *arguments)), daemon=True).start()
    return future


def in_time(answer: Future[T], seconds: float, otherwise: Exception) -> T:
    """The result of a call; raises `otherwise` where it takes longer. The call continues in its thread."""
    try:
        return answer.result(seconds)
    except TimeoutError:
        if answer.done():  # its own
            raise
        raise otherwise from None


def side_by_side(name: str, items: Sequence[T], options: TransportOptions, read: Callable[[T, TransportOptions], None]) -> None:
    """Read each item in one of up to AT_ONCE threads, which keep their connections. Raises the error of the first that fails.

    When a thread fails, or the caller is interrupted, the others end, too.
    """
    cancelled = threading.Event()

    def read_some(first: int) -> None:
        with closing(Sessions()) as sessions:
            own = replace(options, sessions=sessions, cancelled=cancelled)
            for item in items[first::AT_ONCE]:
                if cancelled.is_set():
                    break
                read(item, own)

    working = [in_thread(name, read_some, first) for first in range(min(AT_ONCE, len(items)))]
    try:
        for done in as_completed(working):
            done.result()
    finally:
        cancelled.set()


def _run(future: Future[T], call: Callable[[], T]) -> None:
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)


class OneThread:
    """One thread for all calls, since libraries keep state by thread. It ends with the `with` block."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._run_calls, name=name, daemon=True).start()

    def call(self, call: Callable[[], T]) -> Future[T]:
        """The result of a call."""
        future: Future[T] = Future()
        self._calls.put((future, call))
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.put(None)  # not waited for: its call may never return

    def _run_calls(self) -> None:
        while (queued := self._calls.get()) is not None:
            _run(*queued)
