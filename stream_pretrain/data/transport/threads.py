"""Calls that may never return, such as those of libraries that wait for a server without end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Self, TypeVar

T = TypeVar("T")


def in_thread(name: str, call: Callable[..., T], *arguments: Any) -> Future[T]:
    """Run in a thread that keeps no process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


class OneThread:
    """A thread for calls one after the other: libraries keep what they know by thread. It ends with the block."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, call: Callable[[], T]) -> Future[T]:
        """What a call will have returned."""
        future: Future[T] = Future()
        self._calls.put((future, call))
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.put(None)  # not waited for: its call may never return

    def _run(self) -> None:
        while (asked := self._calls.get()) is not None:
            future, call = asked
            try:
                future.set_result(call())
            except Exception as error:
                future.set_exception(error)
