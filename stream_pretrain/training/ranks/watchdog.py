"""A line on stderr when a rank stalls: which rank, in which stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.units import human_duration

STALL_SECONDS = 120.0


class Watchdog:
    """Reports a stage of this rank that lasts longer than `seconds`, then at twice that time, and so on. It ends nothing."""

    def __init__(self, ranks: Ranks, report: Callable[[str], None], seconds: float = STALL_SECONDS) -> None:
        self._who = "this process" if ranks.world == 1 else f"rank {ranks.index}"
        self._report, self._seconds = report, seconds
        self._stage: tuple[str, float] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What this rank does in the block, for example "waiting for data"; an inner one replaces the outer until it ends."""
        outer, self._stage = self._stage, (name, time.monotonic())
        try:
            yield
        finally:
            self._stage = None if outer is None else (outer[0], time.monotonic())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        seen, due = None, self._seconds
        while not self._ended.wait(self._seconds / 8):
            stage = self._stage
            if stage is not seen:
                seen, due = stage, self._seconds
            if stage is None:
                continue
            name, since = stage
            lasted = time.monotonic() - since
            if lasted >= due:
                self._report(f"{self._who} has been {name} for {human_duration(lasted)}")
                due *= 2
