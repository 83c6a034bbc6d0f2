"""Remote content that looks damaged is read a second time: a proxy or a network card may have changed bytes in transit.

The second reading decides. It starts at the start of the damaged part, and must agree with the content that was returned before
the damage was found: the run may have trained on it.
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
"""Content is returned after this many more bytes of its part were read without damage, or all of them."""

_DIGESTED_BYTES = MIB  # with a digest of their own: how precisely a difference is located


class _Digests:
    """Digests of content, one a MiB, and when (seconds since 1970) the first byte of each was added."""

    def __init__(self) -> None:
        self.size = 0
        self.times: list[float] = []
        self._digests: list[bytes] = []
        self._last = xxhash.xxh3_128()

    def add(self, content: bytes | memoryview) -> None:
        view = memoryview(content)
        while view:
            if self.size % _DIGESTED_BYTES == 0:
                self.times.append(time.time())
            piece = view[: _DIGESTED_BYTES - self.size % _DIGESTED_BYTES]
            self._last.update(piece)
            self.size += len(piece)
            view = view[len(piece) :]
            if self.size % _DIGESTED_BYTES == 0:
                self._digests.append(self._last.digest())
                self._last = xxhash.xxh3_128()

    def differ_at(self, other: _Digests) -> int | None:
        """Offset of the first MiB that differs."""
        pairs = zip([*self._digests, self._last.digest()], [*other._digests, other._last.digest()], strict=False)
        different = next((number for number, (mine, others) in enumerate(pairs) if mine != others), None)
        return None if different is None else different * _DIGESTED_BYTES


class TwoReadings:
    """The readings of one part of a shard: a second one only where the first found damage. Used by one thread."""

    def __init__(self, name: str, part: str, place: Callable[[int], str]) -> None:
        """part: its name in messages; place: the name of an offset in its content."""
        self._name = name
        self._part = part
        self._place = place
        self._given = _Digests()

    @property
    def size(self) -> int:
        """Bytes that were returned."""
        return self._given.size

    def record(self, content: B) -> B:
        """Record content of the first reading that is returned now."""
        self._given.add(content)
        return content

    def first(self, chunks: Iterable[B]) -> Iterator[B]:
        """The first reading, delayed by HELD_BACK_BYTES: most damage is found before the bytes that it changed are returned."""
        held: deque[B] = deque()
        size = 0
        for chunk in chunks:
            held.append(chunk)
            size += len(chunk)
            while size - len(held[0]) >= HELD_BACK_BYTES:
                size -= len(held[0])
                yield self.record(held.popleft())
        while held:
            yield self.record(held.popleft())

    def second(self, damage: str, chunks: Iterable[B]) -> Iterator[B]:
        """The second reading, after the bytes that the first one returned before it found `damage`.

        Raises: TransportError where the bytes that were returned differ.
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
        _warn_of_passing_damage(self._name, self._part, damage)

    def _compare(self, seen: _Digests, damage: str) -> None:
        if (offset := self._given.differ_at(seen)) is not None:
            raise wrong_content(
                self._name, self._part, damage, self._place(offset), self._given.times[offset // _DIGESTED_BYTES]
            )


def wrong_content(name: str, part: str, damage: str, place: str, since: float) -> TransportError:
    """The error for wrong content that was returned, from `place` on and `since` a time (seconds since 1970)."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    return TransportError(
        f"{name}: {part} was damaged in transit ({damage.removeprefix(f'{name}: ')}): a second reading differs from {place} "
        f"on, and documents after that were used since {moment}: delete the checkpoints saved later (checkpoints/step-*), "
        "check the network, proxies and the memory of this machine, then run the same command, which resumes from the last "
        "remaining checkpoint"
    )


def read_twice(read: Callable[[], T], name: str, part: str) -> T:
    """A part that is returned at once; read a second time where it is damaged."""
    try:
        return read()
    except ContentError as damage:
        found = read()
        _warn_of_passing_damage(name, part, str(damage))
        return found


def read_until_two_agree(read: Callable[[], T]) -> T | None:
    """Content without a checksum, once two consecutive readings agree; None where no two of four do."""
    found = read()
    for _ in range(3):
        before, found = found, read()
        if before == found:
            return found
    return None


def _warn_of_passing_damage(name: str, part: str, damage: str) -> None:
    logger.warning(
        "%s: %s was damaged at the first reading (%s) and intact at the second: something in transit changes bytes",
        name,
        part,
        damage.removeprefix(f"{name}: "),
    )
