"""Remote content that looks damaged is read again: a proxy or a network card may have changed bytes in transit.

What two readings in a row find is in the file, and so is what a reading without damage finds. It must agree with the content
that was returned before the damage was found: the run may have trained on it.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import xxhash

from stream_pretrain.data.transport.decoders import DamageError
from stream_pretrain.errors import ContentError, TransportError
from stream_pretrain.units import MIB

logger = logging.getLogger(__name__)

T = TypeVar("T")

HELD_BACK_BYTES = MIB
"""Content is returned after this many more bytes of its part were read without damage, or all of them."""

MOST_READINGS = 4

digest_of = xxhash.xxh3_128_digest

_DIGEST_BYTES = 16


class Readings:
    """The readings of one part of a shard: further ones only after damage. Used by one thread.

    Equal content comes in equal chunks. A part may have a hundred thousand: 32 bytes are kept of each.
    """

    def __init__(self, name: str, part: str, unit: str) -> None:
        """part: its name in messages; unit: of the places where chunks begin."""
        self._name, self._part, self._unit = name, part, unit
        self._digests, self._places = bytearray(), array("q")  # of the chunks that were returned, and where they begin
        self._times = array("d")  # seconds since 1970

    def record(self, digest: bytes, place: int) -> None:
        """Record a chunk that is returned now. place: where it begins."""
        self._digests += digest
        self._places.append(place)
        self._times.append(time.time())

    def was_returned(self, number: int, digest: bytes) -> bool:
        """Whether the chunk of this number was returned, and was the same."""
        return self._digests[number * _DIGEST_BYTES : (number + 1) * _DIGEST_BYTES] == digest

    def wrong_from(self, number: int, damage: str) -> TransportError:
        """The error where the chunks that were returned are wrong from this number on."""
        return wrong_content(self._name, self._part, damage, f"{self._unit} {self._places[number]}", self._times[number])

    def content(
        self, read: Callable[[], Iterable[bytes]], begin_again: Callable[[DamageError], object], place: int
    ) -> Iterator[bytes]:
        """The chunks of the part, delayed by HELD_BACK_BYTES: most damage is found before what it changed is returned.

        place: where the part begins; begin_again: makes read() start there. Raises: DamageError, after all content before it;
        TransportError where what was returned is wrong, or no two readings in a row find the same.
        """
        before: DamageError | None = None
        for _ in range(MOST_READINGS):
            returned, same = len(self._places), 0  # chunks of earlier readings; of this one, the first that are the same
            number = 0
            held: deque[tuple[bytes, int, bytes]] = deque()  # digest, place, chunk
            held_bytes, end = 0, place
            damage: DamageError | None = None
            try:
                for chunk in read():
                    digest, start, end = digest_of(chunk), end, end + len(chunk)
                    if number < returned:
                        same += same == number and self.was_returned(number, digest)
                    elif same == returned:
                        held.append((digest, start, chunk))
                        held_bytes += len(chunk)
                    number += 1
                    del chunk  # a lane may wait long before it reads on
                    while held and held_bytes - len(held[0][-1]) >= HELD_BACK_BYTES:
                        held_bytes -= len(held[0][-1])
                        yield self._recorded(*held.popleft())
            except DamageError as error:
                damage = error
            if damage is not None and (before is None or damage.evidence != before.evidence):
                before = damage
                begin_again(damage)
                continue
            if same < returned:
                assert before is not None
                raise self.wrong_from(same, before.reason)
            while held:
                yield self._recorded(*held.popleft())
            if damage is not None:
                raise damage
            if before is not None:
                _warn_of_passing_damage(self._name, self._part, before.reason)
            return
        assert before is not None
        raise damaged_each_time(self._name, self._part, before.reason)

    def _recorded(self, digest: bytes, place: int, chunk: bytes) -> bytes:
        self.record(digest, place)
        return chunk


def wrong_content(name: str, part: str, damage: str, place: str, since: float) -> TransportError:
    """The error for wrong content that was returned, from `place` on and `since` a time (seconds since 1970)."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    return TransportError(
        f"{name}: {part} was damaged in transit ({damage.removeprefix(f'{name}: ')}): another reading differs from {place} "
        f"on, and documents after that were used since {moment}: delete the checkpoints saved later (checkpoints/step-*), "
        "check the network, proxies and the memory of this machine, then run the same command, which resumes from the last "
        "remaining checkpoint"
    )


def damaged_each_time(name: str, part: str, damage: str) -> TransportError:
    """The error for a part of which every reading finds other damage."""
    return TransportError(
        f"{name}: {part} was damaged in transit at each of {MOST_READINGS} readings, each time differently (the last time: "
        f"{damage.removeprefix(f'{name}: ')}): check the network, proxies and the memory of this machine, then run the same "
        "command again"
    )


def read_until_decided(read: Callable[[], T], name: str, part: str, before: str = "") -> T:
    """A part that is returned at once; read again where it is damaged.

    before: the damage that a reading has found already. Raises: ContentError where two readings in a row find the same;
    TransportError where no two do.
    """
    for _ in range(MOST_READINGS - bool(before)):
        try:
            found = read()
        except ContentError as damage:
            if str(damage) == before:
                raise
            before = str(damage)
            continue
        if before:
            _warn_of_passing_damage(name, part, before)
        return found
    raise damaged_each_time(name, part, before)


def read_until_two_agree(read: Callable[[], T]) -> T | None:
    """Content without a checksum, once two consecutive readings agree; None where no two of MOST_READINGS do."""
    found = read()
    for _ in range(MOST_READINGS - 1):
        before, found = found, read()
        if before == found:
            return found
    return None


def _warn_of_passing_damage(name: str, part: str, damage: str) -> None:
    logger.warning(
        "%s: %s was damaged at one reading (%s) and intact at the next: something in transit changes bytes",
        name,
        part,
        damage.removeprefix(f"{name}: "),
    )
