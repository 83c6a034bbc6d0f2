"""Estimates, before anything is read, how often processes read the corpus and how much memory readers need."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stream_pretrain.data.documents.document import ReadOptions
from stream_pretrain.data.documents.line_windows import SPARE_BYTES
from stream_pretrain.data.lanes.row_layout import part_of
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.lanes.worker_lanes import lanes_of_workers
from stream_pretrain.data.transport.compression import CODECS, Compression
from stream_pretrain.data.transport.members import CHUNK
from stream_pretrain.data.transport.readings import HELD_BACK_BYTES
from stream_pretrain.data.transport.stored_bytes import LOCAL_BLOCK
from stream_pretrain.units import MIB
from stream_pretrain.urls import is_remote

MOST_AMPLIFICATION = 4.0
"""Above this, remote shards are read only with an explicit --lanes: transfers cost money."""

PARQUET_PAGES = 8 * MIB
"""Bytes of the pages of a column that is read, compressed and decompressed."""

BYTES_A_POSITION = 32
"""Of a group and of one that is held: its tokens as ids, as rows and with labels."""


@dataclass(frozen=True)
class ReadingCost:
    """The cost of reading an epoch, and of a resume in its middle."""

    stored_bytes: int
    epoch_bytes: int
    """Stored bytes that all processes read, in total."""
    resume_bytes: int
    """The most stored bytes that a resume reads again, in shards that can only be read from the start."""
    requests: int
    """Requests to stores for an epoch; a lower bound for Parquet, where each row group is a request."""

    @property
    def amplification(self) -> float:
        """How many times an epoch reads the corpus."""
        return self.epoch_bytes / max(1, self.stored_bytes)


def reading_cost(sources: Sequence[SourcePlan], world: int, workers: int) -> ReadingCost:
    """The cost of the first epoch. A zstd shard is assumed to have one frame, since it is not opened here."""
    stored = epoch = resume = requests = 0
    lanes = sources[0].layout.lanes
    processes = _processes(sources, lanes, world, max(workers, 1))
    lanes_of_process = -(-lanes // (world * max(workers, 1)))
    for source in sources:
        units = range(len(source.units))
        sizes = [1 if (size := source.size_of(unit)) is None else size for unit in units]
        shared = [_is_shared(source, unit) for unit in units]
        block_bytes = source.read_by(lanes_of_process).transport.block_bytes
        requested = [_requests(source, unit, block_bytes) for unit in units]
        read: set[tuple[int, object]] = set()
        alone: dict[int, int] = {}
        lanes_of: Counter[object] = Counter()
        for lane, process in enumerate(processes):
            # Lanes of a process share one pass over a unit that is read from its start, unless each has a pass of its own.
            entered = [
                (stripe.unit, process if shared[stripe.unit] else lane)
                for stripe in source.stripes(0, lane)
                if shared[stripe.unit] is not None
            ]
            read.update(entered)
            alone |= {stripe.unit: stripe.count for stripe in source.stripes(0, lane) if shared[stripe.unit] is None}
            lanes_of.update({how for _, how in entered})
        in_parts = sum(size for size, how in zip(sizes, shared, strict=True) if how is None)
        stored += sum(sizes)
        epoch += in_parts + sum(sizes[unit] for unit, _ in read)
        sizes_of: dict[object, list[int]] = {}
        for unit, how in read:
            sizes_of.setdefault(how, []).append(sizes[unit])
        for how, count in lanes_of.items():  # a lane is in one unit at a time: at worst each in another one, the largest
            resume += sum(sorted(sizes_of[how], reverse=True)[:count])
        requests += sum(requested[unit] for unit, _ in read)
        # Between two windows of a stripe of lines are those of other lanes: each is a request of its own.
        for unit, stripes in alone.items():
            is_jumped = requested[unit] and stripes > 1 and source.shards_of(unit)[0].format != "parquet"
            requests += max(requested[unit], source.windows_of(unit)) if is_jumped else requested[unit]
    return ReadingCost(stored, epoch, resume, requests)


def _requests(source: SourcePlan, unit: int, block_bytes: int) -> int:
    """Requests for a unit that is read from its start to its end; none for local files."""
    remote = [shard for shard in source.shards_of(unit) if is_remote(shard.url)]
    blocks = sum(max(1, math.ceil((shard.size or 0) / block_bytes)) for shard in remote)
    return blocks + sum(shard.format == "parquet" for shard in remote)  # the footer


def _is_shared(source: SourcePlan, unit: int) -> bool | None:
    """Whether lanes of a process share a pass over a unit from its start, or each has its own; None for seekable stripes."""
    shard, *others = source.shards_of(unit)
    if others or shard.format == "examples" or source.undealt:
        return False
    return True if shard.compression != "none" else None


def _processes(sources: Sequence[SourcePlan], lanes: int, world: int, workers: int) -> list[tuple[int, int]]:
    """[lanes] the rank that reads each lane, and its worker."""
    ranks = [lanes_of_workers(sources, part_of(range(lanes), rank, world), workers) for rank in range(world)]
    readers = {lane: (rank, worker) for rank, dealt in enumerate(ranks) for worker, own in enumerate(dealt) for lane in own}
    return [readers[lane] for lane in range(lanes)]


def memory_bound(sources: Sequence[SourcePlan], lanes: int) -> int:
    """The most bytes that `lanes` lanes in one process hold, without the tokenizer and Python.

    It holds for documents of a hundred bytes or more: of shorter ones, the numbers that are kept of each take more than is
    counted here.
    """
    # The window that is opened is there as bytes and, at two bytes a character, as documents, before it is the text of a lane.
    opened = 3 * max(source.read.window_bytes for source in sources)
    return opened + sum(_bytes_of_lanes(source, source.read_by(lanes), lanes) for source in sources)


def _bytes_of_lanes(source: SourcePlan, read: ReadOptions, lanes: int) -> int:
    """The most that `lanes` lanes hold of a source, apart from a window that is opened."""
    kinds = {(shard.format == "parquet", shard.compression, is_remote(shard.url)) for shard in source.shards}
    in_blocks = any(is_parquet or remote for is_parquet, _, remote in kinds)
    decoder = max(_decoder_bytes(compression, is_parquet=is_parquet) for is_parquet, compression, _ in kinds)
    is_held_back = any(compression != "none" and remote for _, compression, remote in kinds)
    of_lane = (
        2 * (read.transport.block_bytes if in_blocks else LOCAL_BLOCK)  # the block that is read, and the next one
        + (decoder + CHUNK if decoder else 0)  # with what is decompressed at once, of which the window may have little
        + (HELD_BACK_BYTES if is_held_back else 0)
        + SPARE_BYTES
        + read.window_bytes * 5 // 4  # the text of a window, and the numbers of its documents
        + BYTES_A_POSITION * source.group_rows * source.layout.sequence_length
    )
    # Windows that others keep for a lane, of the stripe that it reads and of its next one, where it shares shards.
    sharing_lanes = sum(any(stripe.count > 1 for stripe in source.stripes(0, lane)) for lane in range(source.layout.lanes))
    kept = 2 * read.most_kept * read.window_bytes if decoder else 0
    return lanes * of_lane + min(lanes, sharing_lanes) * kept


def _decoder_bytes(compression: Compression, *, is_parquet: bool) -> int:
    """Of a decompressor, or of the pages of a Parquet column."""
    return PARQUET_PAGES if is_parquet else 0 if compression == "none" else CODECS[compression].memory
