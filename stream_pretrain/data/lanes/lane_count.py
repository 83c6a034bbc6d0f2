"""The number of lanes of a run with --lanes auto."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stream_pretrain.config import Config, TextDocuments, sources_of
from stream_pretrain.data.corpus.shard import Corpus, Shard
from stream_pretrain.data.lanes.bundles import BUNDLES_PER_LANE, not_in_bundles
from stream_pretrain.data.lanes.window_sizes import WINDOWS_PER_LANE, content_bytes, full_window_bytes, least_window_bytes

FEWEST_AUTO_LANES = 8

MOST_AUTO_LANES = 64
"""Or the number of processes, if larger."""


def auto_lanes(config: Config, corpora: Sequence[Corpus], bundles: Sequence[Sequence[tuple[int, int]]], world: int) -> int:
    """The number of lanes of a new run on these corpora, with these bundles, on `world` ranks."""
    length, options = config.data.sequence_length, sources_of(config.data)
    contents = [content_bytes(corpus) for corpus in corpora]
    windows = sum(sys.maxsize if content is None else content // least_window_bytes(length) for content in contents)
    units = sum(
        _readable_units(shard, full_window_bytes(length), source.text_documents)
        for source, corpus, of_source in zip(options, corpora, bundles, strict=True)
        for shard in not_in_bundles(corpus.shards, of_source)
    )
    units += sum(len(of_source) // BUNDLES_PER_LANE for of_source in bundles)
    return lane_count(windows, units, world=world, workers=config.data.workers)


def lane_count(smallest_windows: int, readable_units: int, *, world: int, workers: int) -> int:
    """The number of lanes of a new run with --lanes auto.

    As many as have `WINDOWS_PER_LANE` windows each; at least 8 and one a rank, at most 64 or one a process.

    smallest_windows: windows of the corpus, if each had the smallest size. readable_units: parts of it that can be read
    independently: a part that several lanes share is read, and decompressed, by each of their processes.
    """
    processes = world * max(workers, 1)
    carried = max(FEWEST_AUTO_LANES, processes, readable_units)
    by_size = smallest_windows // WINDOWS_PER_LANE
    return max(FEWEST_AUTO_LANES, world, min(by_size, carried, max(MOST_AUTO_LANES, processes)))


def _readable_units(shard: Shard, window_bytes: int, text_documents: TextDocuments) -> int:
    """Number of parts of a shard that can be read independently."""
    if shard.compression != "none" or shard.format == "examples" or shard.size is None:
        return 1
    if shard.format == "text" and text_documents == "file":
        return 1
    return max(1, shard.size // window_bytes)
