"""Sizes of the windows and requests of a source."""

from __future__ import annotations

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.shard import Corpus, Shard
from stream_pretrain.data.transport.compression import expansion_of
from stream_pretrain.data.transport.options import BLOCK_BYTES
from stream_pretrain.units import KIB, MIB

FULL_WINDOW_BYTES = 4 * MIB
"""The window of a large corpus with rows of usual length: the unit of the shuffle, held by each lane."""

SMALLEST_WINDOW_BYTES = 16 * KIB

WINDOW_ROWS = 128
"""Rows of a full window where rows are so long that they need more than `FULL_WINDOW_BYTES`."""

BYTES_PER_TOKEN = 4
"""Of usual text."""

LEAST_WINDOW_ROWS = 50
"""Rows of the smallest window: the last row is half empty on average."""

WINDOWS_PER_LANE = 8
"""The fewest windows of a lane, in a corpus that is large enough: more windows balance the lanes better."""

EVEN_WINDOWS = 16
"""Windows of a lane with which the fullest lane nearly always has at most 1.05 times the mean: of 40 synthetic corpora, one in
twenty was dealt worse; with 8 windows, one in three."""

SMALLEST_BLOCK_BYTES = 512 * KIB
"""Bytes of one request for a source with a small share; a source with all rows has the block of the transport."""

FULL_LANES = 16
"""The most lanes of a process with blocks of full size and all useful windows kept; more lanes share what these would hold."""


def full_window_bytes(sequence_length: int) -> int:
    """The window of a source with all rows, in a corpus that is large enough."""
    return max(FULL_WINDOW_BYTES, WINDOW_ROWS * sequence_length * BYTES_PER_TOKEN)


def most_window_bytes(data: DataConfig, share: float) -> int:
    """The largest window of a source, in proportion to its share: all windows of a lane together have the size of one."""
    full = full_window_bytes(data.sequence_length) if data.window_bytes == "auto" else data.window_bytes
    return full if share == 1 else max(SMALLEST_WINDOW_BYTES, int(full * share))


def window_bytes(data: DataConfig, corpus: Corpus, lanes: int, share: float) -> int:
    """The window of a source: the largest, unless its corpus is too small for that."""
    most, content = most_window_bytes(data, share), content_bytes(corpus)
    if data.window_bytes != "auto" or content is None:
        return most
    return min(most, max(least_window_bytes(data.sequence_length), content // (lanes * EVEN_WINDOWS)))


def least_window_bytes(sequence_length: int) -> int:
    """The smallest window of a small corpus."""
    return max(SMALLEST_WINDOW_BYTES, LEAST_WINDOW_ROWS * sequence_length * BYTES_PER_TOKEN)


def content_bytes(corpus: Corpus) -> int | None:
    """Uncompressed bytes of a corpus, estimated where needed; None where the stored size of a shard is unknown."""
    if any(shard.size is None for shard in corpus.shards):
        return None
    return sum(content_of(shard) or 0 for shard in corpus.shards)


def content_of(shard: Shard) -> int | None:
    """Uncompressed bytes of a shard, else an estimate by its compression; None where its stored size is unknown."""
    if shard.size is None:
        return None
    return int(shard.size * expansion_of(shard.compression)) if shard.content_bytes is None else shard.content_bytes


def request_bytes(share: float) -> int:
    """Bytes of one request for a source: in proportion to its share, so that a lane does not hold a full block of each."""
    return max(SMALLEST_BLOCK_BYTES, int(BLOCK_BYTES * share))
