"""Threads for calls that may never return, such as those of libraries that wait for a server without end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, Self, TypeVar

T = TypeVar("T")


def in_thread(name: str, call: Callable[..., T], *arguments: Any) -> Future[T]:
    """The result of a call in a thread of its own, which keeps no process alive."""
    future: Future[T] = Future()
    threading.Thread(target=_run, name=name, args=(future, partial(call, *arguments)), daemon=True).start()
    return future


def _run(future: Future[T], call: Callable[[], T]) -> None:
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)


class OneThread:
    """A thread for calls one after the other, since libraries keep state by thread. It ends with the block."""

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
