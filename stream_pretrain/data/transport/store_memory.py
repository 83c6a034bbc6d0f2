"""What a stream knows of its stores. Another stream, or another run in the same process, has its own memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Self

from stream_pretrain.errors import SourceError

logger = logging.getLogger(__name__)


class StoreMemory:
    """What is known of the stores of one stream, shared by its readers and their read-ahead threads."""

    def __init__(self) -> None:
        self.reached = False
        """Whether any store has responded; until then, a host that refuses connections may be a typing error."""
        self.seconds_waiting = 0.0
        """Time that the readers have waited for bytes."""
        self._known: dict[str, dict[str, str]] = {}
        self._without_ranges: set[str] = set()

    def known_of(self, url: str, identity: str | None) -> dict[str, str]:
        """The identity of a file, by kind: as pinned, and as in earlier responses, in any epoch."""
        kind, _, value = (identity or "").partition(":")
        known = self._known.setdefault(url, {})
        if kind:
            known[kind] = value
        return known

    def forget(self, url: str) -> None:
        """Forget the identity of a file."""
        self._known.pop(url, None)

    def warn_of_ignored_range(self, server: str) -> None:
        """Warn once for each server, however many shards it has."""
        if server not in self._without_ranges:
            self._without_ranges.add(server)
            logger.warning("%s ignores Range: every resume reads a shard from its start", server)

    def __deepcopy__(self, _: object) -> Self:
        return self  # `datasets` copies the options that it opens shards with


def refuse_replaced(name: str, known: dict[str, str], answer: Mapping[str, str]) -> None:
    """Add the identity in a response to `known`, by kind. Raises SourceError where it differs from an earlier one."""
    for kind, value in answer.items():
        if (was := known.setdefault(kind, value)) != value:
            raise SourceError(
                f"{name}: was replaced since the run began to read it ({kind} was {was}, is {value}); "
                "restore it or start a new run"
            )
