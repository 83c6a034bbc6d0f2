"""Damage is believed when it is met twice: what a proxy or a network card has changed once is right when it is read again.

The second reading decides. It begins where the damaged part does, and has to begin as the first one did: what that gave out
before it met the damage may be trained on already.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import xxhash

from stream_pretrain.errors import ContentError, TransportError
from stream_pretrain.units import MIB

logger = logging.getLogger(__name__)

T = TypeVar("T")

B = TypeVar("B", bytes, memoryview)

HELD_BACK_BYTES = MIB
"""Content of a part that is not given out before so much more of it was read without damage, or all."""

_DIGESTED_BYTES = MIB  # content that has a digest of its own: so closely it is told where two readings differ


class _Digests:
    """Digests of content, one a MiB, and when each of these was begun."""

    def __init__(self) -> None:
        self.size = 0
        self.begun: list[float] = []
        self._digests: list[bytes] = []
        self._last = xxhash.xxh3_128()

    def add(self, content: bytes | memoryview) -> None:
        view = memoryview(content)
        while view:
            if self.size % _DIGESTED_BYTES == 0:
                self.begun.append(time.time())
            piece = view[: _DIGESTED_BYTES - self.size % _DIGESTED_BYTES]
            self._last.update(piece)
            self.size += len(piece)
            view = view[len(piece) :]
            if self.size % _DIGESTED_BYTES == 0:
                self._digests.append(self._last.digest())
                self._last = xxhash.xxh3_128()

    def differ_at(self, other: _Digests) -> int | None:
        """The MiB that differs first."""
        pairs = zip([*self._digests, self._last.digest()], [*other._digests, other._last.digest()], strict=False)
        different = next((number for number, (mine, others) in enumerate(pairs) if mine != others), None)
        return None if different is None else different * _DIGESTED_BYTES


class TwoReadings:
    """The readings of one part of a shard: a second one only where the first met damage. For one thread."""

    def __init__(self, name: str, part: str, place: Callable[[int], str]) -> None:
        """part: what messages call it; place: likewise the place of an offset in its content."""
        self._name = name
        self._part = part
        self._place = place
        self._given = _Digests()

    @property
    def size(self) -> int:
        """Bytes that were given out."""
        return self._given.size

    def give(self, content: B) -> B:
        """Remember content of the first reading that is given out."""
        self._given.add(content)
        return content

    def first(self, chunks: Iterable[B]) -> Iterator[B]:
        """A first reading as it is given out: late, so that most damage is met before the bytes that it spoilt are."""
        held: deque[B] = deque()
        size = 0
        for chunk in chunks:
            held.append(chunk)
            size += len(chunk)
            while size - len(held[0]) >= HELD_BACK_BYTES:
                size -= len(held[0])
                yield self.give(held.popleft())
        while held:
            yield self.give(held.popleft())

    def second(self, damage: str, chunks: Iterable[B]) -> Iterator[B]:
        """A second reading from where the first one has ended with `damage`.

        Raises: TransportError where it begins with something else than was given out.
        """
        seen = _Digests()
        for chunk in chunks:
            left = self.size - seen.size
            seen.add(chunk[:left])
            if left and len(chunk) >= left:
                self._compare(seen, damage)
            if rest := chunk[left:]:
                yield rest
        if seen.size < self.size:
            self._compare(seen, damage)
        _say_right_then(self._name, self._part, damage)

    def _compare(self, seen: _Digests, damage: str) -> None:
        if (offset := self._given.differ_at(seen)) is not None:
            raise spoilt(self._name, self._part, damage, self._place(offset), self._given.begun[offset // _DIGESTED_BYTES])


def spoilt(name: str, part: str, damage: str, place: str, since: float) -> TransportError:
    """What was given out of a part from this place on was something else, `since` this time (seconds since 1970)."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    return TransportError(
        f"{name}: {part} was damaged on its way ({damage.removeprefix(f'{name}: ')}): read again, it is something else from "
        f"{place} on, and documents from there were given out since {moment}: delete the checkpoints that were saved later "
        "(checkpoints/step-*), check the network, a proxy or the memory of this machine, and give the same command: "
        "it goes on from the last checkpoint that is left"
    )


def read_twice(read: Callable[[], T], name: str, part: str) -> T:
    """What a part is whose damage is met before anything is given out: read again where that is so."""
    try:
        return read()
    except ContentError as damage:
        found = read()
        _say_right_then(name, part, str(damage))
        return found


def agreed(read: Callable[[], T]) -> T | None:
    """What two readings in a row give, for what no checksum covers; None where no two of four do."""
    found = read()
    for _ in range(3):
        before, found = found, read()
        if before == found:
            return found
    return None


def _say_right_then(name: str, part: str, damage: str) -> None:
    logger.warning(
        "%s: %s was read twice: damaged at first (%s), then whole: something on the way changes bytes",
        name,
        part,
        damage.removeprefix(f"{name}: "),
    )
