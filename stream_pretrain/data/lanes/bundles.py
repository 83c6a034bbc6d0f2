"""Which small shards are dealt and read together. Decided at the first start, and pinned."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.lanes.window_sizes import BYTES_PER_TOKEN, most_window_bytes
from stream_pretrain.data.transport.compression import expansion_of

BUNDLE_ROWS = 32
"""A shard that fills fewer rows is small, if all its bytes are text. The last row of a unit is half empty on average: with
other fields and markup as large as the text, 3 % of a bundle is lost."""

BUNDLE_SHARDS = 256
"""The most shards of a bundle: each must be opened before its first row."""

FOOTER_BYTES = 2048
"""Bytes of a Parquet file of a few columns besides its text."""

BUNDLES_PER_LANE = 8
"""Bundles that justify one more lane: a step begins with a bundle of each lane, whose shards all have to be opened."""


def bundle_bytes(data: DataConfig, share: float) -> int:
    """Uncompressed bytes of a full bundle, at most one window of a source with this share of the rows."""
    return min(BUNDLE_ROWS * data.sequence_length * BYTES_PER_TOKEN, most_window_bytes(data, share))


def bundles_of(shards: Sequence[Shard], full: int) -> tuple[tuple[int, int], ...]:
    """The runs of small shards that are read together, each as the number of its first shard and the one after its last.

    full: uncompressed bytes of a full bundle. The small shards between two larger ones make as many bundles as they fill, all
    about equally large, so that no bundle is too small to fill a row.
    """
    found = []
    weights = [_share_of_bundle(shard, full) for shard in shards]
    for small, run in itertools.groupby(range(len(shards)), key=lambda number: weights[number] < 1):
        if small:
            numbers = list(run)
            stops = np.cumsum([weights[number] for number in numbers])
            bundles = max(1, int(stops[-1]))
            # A shard belongs to the bundle that contains its middle.
            middles = (stops - np.diff(stops, prepend=0.0) / 2) / stops[-1] * bundles
            edges = numbers[0] + np.searchsorted(middles, np.arange(bundles + 1))
            found += [(first, stop) for first, stop in itertools.pairwise(edges.tolist()) if stop - first > 1]
    return tuple(found)


def is_small(shard: Shard, full: int) -> bool:
    """Whether a shard may be part of a bundle."""
    return _share_of_bundle(shard, full) < 1


def not_in_bundles(shards: Sequence[Shard], bundles: Sequence[tuple[int, int]]) -> list[Shard]:
    """The shards that are no part of a bundle."""
    edges = [0, *itertools.chain.from_iterable(bundles), len(shards)]
    return [shard for first, stop in zip(edges[::2], edges[1::2], strict=True) for shard in shards[first:stop]]


def _share_of_bundle(shard: Shard, full: int) -> float:
    """The share of a full bundle that a shard fills; 1 for one that is no part of a bundle."""
    if shard.size is None:
        return 1.0
    size = shard.size - FOOTER_BYTES if shard.format == "parquet" else shard.size
    # A small file compresses about half as well as a large one.
    guess = size * max(1.0, expansion_of(shard.compression) / 2)
    content = guess if shard.content_bytes is None else shard.content_bytes
    return min(1.0, max(content / full, 1 / BUNDLE_SHARDS))
