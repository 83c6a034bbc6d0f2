"""Which lane reads what: the corpus dealt to a fixed number of lanes, anew each epoch."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.randomness import DEAL, keyed_generator

FULLEST = 1.02
"""A lane may have this many times the mean load before shards are striped to balance the lanes."""

LEVEL = 1.05
"""Shards are striped more finely while a lane holds more than this many times the mean share."""


def deal(
    sizes: Sequence[int | None], windows: Sequence[float], lanes: int, seed: int, epoch: int, first_shard: int = 0
) -> list[list[Stripe]]:
    """Deal the shards to lanes for one epoch: a pure function of its arguments.

    Largest shard first to the least loaded lane (longest processing time first, Graham 1969). A shard that would
    overfill its lane is striped over as few of the least loaded lanes as level them. A lane reads its stripes of
    shared shards first and in the order common to all lanes, so that lanes of one process can share a decompression.

    sizes: bytes of each shard, None where unknown (taken as the mean of the known ones).
    windows: windows of each shard by its size, with a fraction for a last one that is known to be smaller; a shard is not
    cut into more stripes than that.
    first_shard: number of the first shard among those of all sources, so that each source is dealt in its own way.
    """
    shard_sizes = known_sizes(sizes)
    order = keyed_generator(seed, DEAL, epoch, first_shard).permutation(len(shard_sizes))
    order = order[np.argsort(-shard_sizes[order], kind="stable")]
    # Equal loads are dealt in a random order of lanes, so that a lane without a shard in this epoch gets one in another.
    rank = np.argsort(keyed_generator(seed, DEAL, epoch, first_shard, lanes).permutation(lanes))
    mean = float(shard_sizes.sum()) / lanes or 1.0  # all may be empty
    attempts = []
    for fineness in (1, 2, 4):  # the fewest stripes of equal length can leave the last lanes too full or too empty
        attempts.append(_deal_by_size(order.tolist(), shard_sizes.tolist(), windows, rank, FULLEST * mean, fineness))
        if attempts[-1].fullest <= LEVEL * mean:
            break
    best = min(attempts, key=lambda attempt: attempt.fullest)
    dealt = []
    for lane, (striped, whole) in enumerate(zip(best.striped, best.whole, strict=True)):
        shuffled = keyed_generator(seed, DEAL, epoch, first_shard, lanes, lane).permutation(len(whole))
        dealt.append(striped + [whole[i] for i in shuffled.tolist()])
    return dealt


def share_before(first: int, count: int, windows: float) -> float:
    """The share of a shard of `windows` windows that is in its stripes (0, count) up to (first - 1, count)."""
    whole = math.ceil(windows)
    missing = whole - windows if (whole - 1) % count < first else 0
    return (whole // count * first + min(first, whole % count) - missing) / windows


@dataclass(frozen=True)
class _Dealt:
    striped: list[list[Stripe]]
    whole: list[list[Stripe]]
    fullest: float


def _deal_by_size(
    order: Sequence[int], sizes: Sequence[float], windows: Sequence[float], rank: NDArray[np.int64], most: float, fineness: int
) -> _Dealt:
    """Deal the shards in an order; those that would load a lane with more than `most` in stripes."""
    lanes = _LeastLoaded(rank)
    dealt = _Dealt([[] for _ in rank], [[] for _ in rank], 0.0)
    for shard in order:
        size, lane = sizes[shard], lanes.least()
        stripes = 1
        if lanes.loads[lane] + size > most:
            stripes = _stripes_that_level(lanes.loads, size, windows[shard], most, fineness)
        if stripes == 1:
            dealt.whole[lane].append(Stripe(shard))
            lanes.add(lane, size)
            continue
        for first, lane in enumerate(lanes.least_of(stripes)):
            dealt.striped[lane].append(Stripe(shard, first, stripes))
            until, before = (share_before(stripe, stripes, windows[shard]) for stripe in (first + 1, first))
            lanes.add(lane, size * (until - before))
    return replace(dealt, fullest=float(lanes.loads.max()))


def known_sizes(sizes: Sequence[int | None]) -> NDArray[np.float64]:
    """The sizes, with the mean of the known ones in place of None."""
    known = [size for size in sizes if size is not None]
    mean = sum(known) / len(known) if known else 1.0
    return np.array([mean if size is None else size for size in sizes], dtype=np.float64)


def _stripes_that_level(loads: NDArray[np.float64], size: float, windows: float, most: float, fineness: int) -> int:
    """The fewest stripes that keep every lane under `most`, `fineness` times as many if they do too, or the closest."""
    whole = math.ceil(windows)
    counts = np.arange(1, min(len(loads), whole) + 1)
    # The fullest lane gets the last stripe, and the first stripes may have a window more than the others.
    before = np.sort(loads)[: len(counts)]
    last_longer = (whole - 1) % counts
    fullest = np.maximum(
        before[last_longer] + size * -(-whole // counts) / windows, before + size * (whole // counts) / windows
    )
    fitting = counts[fullest <= most]
    if not len(fitting):
        return int(counts[::-1][np.argmin(fullest[::-1])])  # of equals the most stripes: no lane is left without one
    return int(fitting[fitting <= fineness * fitting[0]][-1])


class _LeastLoaded:
    """The lanes by load; ties go to the lower rank. A heap, because 100,000 shards are dealt to 1,024 lanes."""

    def __init__(self, rank: NDArray[np.int64]) -> None:
        self.rank = rank
        self.loads = np.zeros(len(rank))
        self.heap = [(0.0, position, lane) for lane, position in enumerate(rank.tolist())]
        heapq.heapify(self.heap)

    def least(self) -> int:
        while self.heap[0][0] != self.loads[self.heap[0][2]]:
            heapq.heappop(self.heap)  # an entry from before the lane got more
        return self.heap[0][2]

    def least_of(self, count: int) -> list[int]:
        lanes: list[int] = np.lexsort((self.rank, self.loads))[:count].tolist()
        return lanes

    def add(self, lane: int, size: float) -> None:
        self.loads[lane] += size
        heapq.heappush(self.heap, (float(self.loads[lane]), int(self.rank[lane]), lane))
