"""Which small shards are dealt and read together. Decided at the first start, and pinned."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.lanes.window_sizes import BYTES_PER_TOKEN
from stream_pretrain.data.transport.compression import expansion_of

BUNDLE_ROWS = 32
"""A shard that fills fewer rows is small, if all its bytes are text. The last row of a unit is half empty, on average: with
other fields and markup as large as the text, 3 % of what a bundle has."""

BUNDLE_SHARDS = 256
"""The most shards of a bundle: each must be opened before its first row."""

FOOTER_BYTES = 2048
"""What a Parquet file of a few columns has besides its text."""

BUNDLES_PER_LANE = 8
"""A lane is worth having for so many: a step begins with one of each lane, whose shards all have to be opened."""


def bundle_bytes(sequence_length: int, window_bytes: int) -> int:
    """Uncompressed bytes that make a bundle, in a source with windows of so many at the most."""
    return min(BUNDLE_ROWS * sequence_length * BYTES_PER_TOKEN, window_bytes)


def bundles_of(shards: Sequence[Shard], enough: int) -> tuple[tuple[int, int], ...]:
    """The runs of small shards that are read together, each as the number of its first shard and the one behind its last.

    enough: uncompressed bytes that make a bundle. The small shards between two others make as many bundles as they fill, all
    about equally large: none is left over that fills no row.
    """
    found = []
    weights = [_share_of_bundle(shard, enough) for shard in shards]
    for small, run in itertools.groupby(range(len(shards)), key=lambda number: weights[number] < 1):
        if small:
            numbers = list(run)
            stops = np.cumsum([weights[number] for number in numbers])
            bundles = max(1, int(stops[-1]))
            # A shard is in the bundle in which its middle lies.
            middles = (stops - np.diff(stops, prepend=0.0) / 2) / stops[-1] * bundles
            edges = numbers[0] + np.searchsorted(middles, np.arange(bundles + 1))
            found += [(first, stop) for first, stop in itertools.pairwise(edges.tolist()) if stop - first > 1]
    return tuple(found)


def is_small(shard: Shard, enough: int) -> bool:
    """Whether a shard would be part of a bundle, if the one beside it were."""
    return _share_of_bundle(shard, enough) < 1


def not_in_bundles(shards: Sequence[Shard], bundles: Sequence[tuple[int, int]]) -> list[Shard]:
    """The shards that are read each by itself."""
    edges = [0, *itertools.chain.from_iterable(bundles), len(shards)]
    return [shard for first, stop in zip(edges[::2], edges[1::2], strict=True) for shard in shards[first:stop]]


def _share_of_bundle(shard: Shard, enough: int) -> float:
    """How much of a bundle a shard is; 1 for one that is no part of any."""
    if shard.size is None:
        return 1.0
    size = shard.size - FOOTER_BYTES if shard.format == "parquet" else shard.size
    # A small file compresses about half as well as a large one.
    guess = size * max(1.0, expansion_of(shard.compression) / 2)
    content = guess if shard.content_bytes is None else shard.content_bytes
    return min(1.0, max(content / enough, 1 / BUNDLE_SHARDS))
