"""Remote content that looks damaged is read a second time: a proxy or a network card may have changed bytes in transit.

The second reading decides. It starts at the start of the damaged part, and must agree with the content that was returned before
the damage was found: the run may have trained on it.
"""

from __future__ import annotations

import logging
import time
from array import array
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


def held_back(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same, delayed by HELD_BACK_BYTES: most damage is found before the bytes that it changed are returned."""
    held: deque[bytes] = deque()
    size = 0
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        while size - len(held[0]) >= HELD_BACK_BYTES:
            size -= len(held[0])
            yield held.popleft()
    while held:
        yield held.popleft()


_DIGEST_BYTES = 16


class TwoReadings:
    """The readings of one part of a shard: a second one only where the first found damage. Used by one thread.

    Equal content comes in equal chunks. A part may have a hundred thousand: 32 bytes are kept of each that was returned.
    """

    def __init__(self, name: str, part: str, unit: str) -> None:
        """part: its name in messages; unit: of the places where chunks begin."""
        self._name, self._part, self._unit = name, part, unit
        self._digests, self._places = bytearray(), array("q")
        self._times = array("d")  # seconds since 1970

    def record(self, chunk: bytes | memoryview, place: int) -> None:
        """Record a chunk of the first reading that is returned now. place: where it begins."""
        self._digests += xxhash.xxh3_128_digest(chunk)
        self._places.append(place)
        self._times.append(time.time())

    def second(self, damage: str, chunks: Iterable[B]) -> Iterator[B]:
        """The second reading, after the chunks that the first one returned before it found `damage`.

        Raises: TransportError where the chunks that were returned differ.
        """
        rest = iter(chunks)
        for number, (place, since) in enumerate(zip(self._places, self._times, strict=True)):
            digest = self._digests[number * _DIGEST_BYTES : (number + 1) * _DIGEST_BYTES]
            chunk = next(rest, None)
            if chunk is None or xxhash.xxh3_128_digest(chunk) != digest:
                raise wrong_content(self._name, self._part, damage, f"{self._unit} {place}", since)
        yield from rest
        _warn_of_passing_damage(self._name, self._part, damage)


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
