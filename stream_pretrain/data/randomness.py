"""Counter-based randomness: every draw is a pure function of integers such as (seed, purpose, epoch, shard, block).

Nothing depends on a running generator, so any worker on any machine draws the same numbers for the same place.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

# The purpose stands in the key behind the seed: two uses of the same place never share a stream.
DEAL = 1  # which shard goes to which lane
ORDER = 2  # documents within a window
MIXTURE = 3  # the phases of the lanes in the mixture
MASK = 4  # masks of training rows
EVAL_MASK = 5  # masks of the evaluation set


def keyed_generator(*key: int) -> np.random.Generator:
    """A generator that is a pure function of the integers of `key`; distinct keys give independent streams.

    The integers, of any size, are hashed to the 128-bit key of the cipher; each key has its own stream of 2**258 bits.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
    """
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def uniform_uint64(generator: np.random.Generator, count: int) -> NDArray[np.uint64]:
    """`count` independent uniform uint64: the raw output, which numpy promises never to change."""
    return np.asarray(generator.bit_generator.random_raw(count), dtype=np.uint64)


def uniform_uint32(generator: np.random.Generator, count: int) -> NDArray[np.uint32]:
    """`count` independent uniform uint32: the raw output, each 64 bits cut in two."""
    return uniform_uint64(generator, (count + 1) // 2).astype("<u8", copy=False).view("<u4")[:count]
