"""Counter-based randomness: every draw is a pure function of integers such as (seed, purpose, epoch, shard, block).

All are Philox, but for two: the masks of training rows need a draw for every token, and a hash (`Hashed`) costs half as much;
`chosen` needs so few that it hashes a counter.
Nothing depends on a running generator, so any worker on any machine draws the same numbers for the same place.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

# The purpose follows the seed in the key: two uses of the same place never share a stream.
DEAL = 1  # which shard goes to which lane
ORDER = 2  # documents within a window
MIXTURE = 3  # the phases of the lanes in the mixture
MASK = 4  # masks of training rows
EVAL_MASK = 5  # masks of the evaluation set
PROBE = 6  # texts that tokenizer engines are compared with
SAMPLE = 7  # documents that they are compared with on the way
KILL = 8  # moments at which `verify-resume` kills a run


def keyed_generator(*key: int) -> np.random.Generator:
    """A generator that is a pure function of the integers of `key`; distinct keys give independent streams.

    The integers, of any size, are hashed to the 128-bit key of the cipher; each key has its own stream of 2**258 bits.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
    """
    return np.random.Generator(np.random.Philox(_Key(_hash(key))))  # type: ignore[arg-type]


class _Key(ISeedSequence):
    """A key of Philox as its seed: where it is given as a key, numpy first asks the system for random bits, and drops them."""

    def __init__(self, key: int) -> None:
        self.key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[np.uint32 | np.uint64]:
        assert (n_words, dtype) == (2, np.uint64)
        return np.array([self.key & (1 << 64) - 1, self.key >> 64], dtype=np.uint64)


def _hash(key: tuple[int, ...]) -> int:
    """128 bits of a key."""
    return int.from_bytes(hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=16).digest(), "little")


def chosen(count: int, probability: float, *key: int) -> Iterator[int]:
    """The indices below `count` that are chosen, each with a probability between 0 and 1: by the gaps between them."""
    index = -1
    for draw in itertools.count():
        uniform = (1 + (_hash((*key, draw)) >> 64)) * 2.0**-64
        index += 1 + int(math.log(uniform) / math.log1p(-probability))  # geometric
        if index >= count:
            return
        yield index


def uniform_uint32(generator: np.random.Generator, count: int) -> NDArray[np.uint32]:
    """`count` independent uniform uint32: the raw output, which numpy promises never to change, each 64 bits cut in two."""
    return np.asarray(generator.bit_generator.random_raw((count + 1) // 2), dtype="<u8").view("<u4")[:count]


class Numbers(Protocol):
    """Independent uniform uint32, one for each purpose and place."""

    def run(self, purpose: int, places: range) -> NDArray[np.uint32]:
        """[N] the numbers of neighbouring places."""

    def at(self, purpose: int, places: NDArray[np.int64]) -> NDArray[np.uint32]:
        """[N] the numbers of places, in ascending order."""


@dataclass(frozen=True)
class InTurn:
    """The next numbers of a generator, for any purpose and place."""

    generator: np.random.Generator

    def run(self, _purpose: int, places: range) -> NDArray[np.uint32]:
        return uniform_uint32(self.generator, len(places))

    def at(self, _purpose: int, places: NDArray[np.int64]) -> NDArray[np.uint32]:
        return uniform_uint32(self.generator, len(places))


_BLOCK = 16_384  # numbers that are hashed at once: with their scratch they stay in the cache of a core


@dataclass(frozen=True)
class Hashed:
    """A hash of the place: the numbers of a key do not depend on which of them are requested, nor on the order.

    Each purpose has its own SplitMix64 generator, whose state and odd step are the 128 bits of a hash of its key: the number
    of a place is its output after that number of steps, which takes the same time for any place.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    """

    key: tuple[int, ...]

    def run(self, purpose: int, places: range) -> NDArray[np.uint32]:
        if not places:
            return np.empty(0, dtype=np.uint32)
        pairs = np.arange(places.start // 2, places.stop // 2 + 1, dtype=np.uint64)  # each 64 bits are of two places
        first = places.start % 2
        return self._mixed(purpose, pairs).astype("<u8", copy=False).view("<u4")[first : first + len(places)]

    def at(self, purpose: int, places: NDArray[np.int64]) -> NDArray[np.uint32]:
        mixed = self._mixed(purpose, (places >> 1).astype(np.uint64))
        mixed >>= ((places & 1) << 5).astype(np.uint64)
        return mixed.astype(np.uint32)

    def generator(self, purpose: int) -> tuple[int, int]:
        """State and step of the generator of a purpose."""
        bits = _hash((*self.key, purpose))
        return bits >> 64, bits & (1 << 64) - 1 | 1

    def _mixed(self, purpose: int, counts: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The output after these counts of steps, written in place."""
        state, step = map(np.uint64, self.generator(purpose))
        scratch = np.empty(_BLOCK, dtype=np.uint64)
        for first in range(0, len(counts), _BLOCK):
            z = counts[first : first + _BLOCK]
            z *= step
            z += state
            for shift, factor in _ROUNDS:
                z ^= np.right_shift(z, shift, out=scratch[: len(z)])
                z *= factor
            z ^= np.right_shift(z, _LAST_SHIFT, out=scratch[: len(z)])
        return counts


# David Stafford's variant 13 of the finalizer of MurmurHash3, as in SplitMix64.
_ROUNDS = (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB))
_LAST_SHIFT = np.uint64(31)
