"""Damage is believed when it is met twice: what a proxy or a network card has changed once is whole when it is read again.

The second reading decides. It begins where the damaged part does, and has to begin as the first one did: what that gave out
before it met the damage may be trained on already.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

HELD_BACK_BYTES = 1024**2
"""Content of a part that is not given out before so much more of it was read without damage, or all."""


class OtherContentError(Exception):
    """A second reading differs in what the first one gave out."""


class FirstReading:
    """What was given out of a part when it was read first."""

    def __init__(self) -> None:
        self.size = 0
        self._digest = hashlib.blake2b(digest_size=16)

    def of(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks as they are given out: late, so that most damage is met before the bytes that it spoilt are."""
        held: deque[bytes] = deque()
        size = 0
        for chunk in chunks:
            held.append(chunk)
            size += len(chunk)
            while size - len(held[0]) >= HELD_BACK_BYTES:
                size -= len(held[0])
                yield self._given(held.popleft())
        while held:
            yield self._given(held.popleft())

    def rest_of(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks of a second reading from where the first one has ended. Raises OtherContentError."""
        digest, left = hashlib.blake2b(digest_size=16), self.size
        for chunk in chunks:
            seen, rest = chunk[:left], chunk[left:]
            digest.update(seen)
            left -= len(seen)
            if left == 0 and seen and digest.digest() != self._digest.digest():
                raise OtherContentError
            if rest:
                yield rest
        if left:
            raise OtherContentError

    def _given(self, chunk: bytes) -> bytes:
        self.size += len(chunk)
        self._digest.update(chunk)
        return chunk


def agreed(read: Callable[[], T]) -> T | None:
    """What two readings in a row give, for what no checksum covers; None where no two of four do."""
    found = read()
    for _ in range(3):
        before, found = found, read()
        if before == found:
            return found
    return None


def say_whole_then(name: str, part: str, reason: str) -> None:
    """Say that a part of a shard was damaged when it was read first, and is not."""
    logger.warning(
        "%s: %s was read twice: damaged at first (%s), then whole: something on the way changes bytes",
        name,
        part,
        reason.removeprefix(f"{name}: "),
    )
