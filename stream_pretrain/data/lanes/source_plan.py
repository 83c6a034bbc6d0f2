"""Everything that decides the rows of a source in a lane."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from stream_pretrain.data.corpus.pinned_corpus import PinnedSource
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.document import Documents, ReadOptions
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.dealing import deal, known_sizes, share_before
from stream_pretrain.data.lanes.group_sizes import GroupSizes
from stream_pretrain.data.lanes.row_layout import RowLayout
from stream_pretrain.data.lanes.window_sizes import FULL_LANES, SMALLEST_BLOCK_BYTES, content_of
from stream_pretrain.data.randomness import DEAL, keyed_generator


@dataclass(frozen=True, kw_only=True)
class SourcePlan(PinnedSource):
    """Everything but the lane and its cursor that decides the rows of a source: the same on all ranks."""

    first_shard: int
    """Number of its first shard among those of all sources."""
    layout: RowLayout
    heldout_fraction: float
    max_epochs: int | None
    read: ReadOptions
    skip_bad_shards: bool
    first_step_rows: int
    """The most rows that a lane contributes of it to the first step."""
    undealt: bool = False
    """Too small to deal: every lane reads all of it, in its own order and with its own masks."""

    @cached_property
    def units(self) -> tuple[range, ...]:
        """The units that are dealt, as the numbers of their shards: one shard, or a bundle."""
        stops = dict(self.bundles)
        units: list[range] = []
        while (first := units[-1].stop if units else 0) < len(self.shards):
            units.append(range(first, stops.get(first, first + 1)))
        return tuple(units)

    @cached_property
    def group_sizes(self) -> GroupSizes:
        """The sizes of its groups."""
        return GroupSizes(self.group_rows, self.first_step_rows, self.layout.lanes)

    def read_by(self, lanes: int) -> ReadOptions:
        """How a process with `lanes` lanes reads: with more than FULL_LANES, blocks are smaller and fewer windows kept."""
        part, transport = FULL_LANES / max(FULL_LANES, lanes), self.read.transport
        block_bytes = max(min(SMALLEST_BLOCK_BYTES, transport.block_bytes), int(transport.block_bytes * part))
        kept_bytes = int(self.read.kept_bytes * part)
        return replace(self.read, kept_bytes=kept_bytes, transport=replace(transport, block_bytes=block_bytes))

    def shards_of(self, unit: int) -> tuple[Shard, ...]:
        """The shards of a unit: more than one of a bundle."""
        return self.shards[self.units[unit].start : self.units[unit].stop]

    def size_of(self, unit: int) -> int | None:
        """Stored bytes of a unit; None where they are unknown."""
        sizes = [shard.size for shard in self.shards_of(unit)]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def windows_of(self, unit: int) -> int:
        """Windows of a unit, estimated from its size."""
        known = self._known_windows(unit)
        if known is not None:
            return math.ceil(known)
        shard = self.shards[self.units[unit].start]
        content = content_of(shard)
        if content is None or shard.format == "examples":
            return self.layout.lanes
        return max(1, round(content / self.read.window_bytes))

    def _known_windows(self, unit: int) -> float | None:
        """Windows of a unit with a fraction for the last one; None where they are unknown, or of different sizes."""
        shard, *others = self.shards_of(unit)
        if others or (shard.format == "text" and self.read.text_documents == "file"):
            return 1.0
        if shard.content_bytes is None or shard.format == "parquet":
            return None
        return max(1.0, shard.content_bytes / self.read.window_bytes)

    def stripes(self, epoch: int, lane: int) -> list[Stripe]:
        """What a lane reads in an epoch, in order."""
        if self.undealt:
            order = keyed_generator(self.layout.seed, DEAL, epoch, self.first_shard, lane).permutation(len(self.units))
            return [Stripe(unit) for unit in order.tolist()]
        if epoch not in self._dealt:
            windows = [self._known_windows(unit) or self.windows_of(unit) for unit in range(len(self.units))]
            for before in [other for other in self._dealt if other < epoch - 1]:
                del self._dealt[before]
            self._dealt[epoch] = deal(self._loads, windows, self.layout.lanes, self.layout.seed, epoch, self.first_shard)
        return self._dealt[epoch][lane]

    @cached_property
    def _dealt(self) -> dict[int, list[list[Stripe]]]:
        return {}

    def ended(self, cursor: Cursor) -> bool:
        """Whether a lane has read all epochs of the source."""
        return self.max_epochs is not None and cursor.epoch >= self.max_epochs

    def knows_bytes(self, unit: int) -> bool:
        """Whether the bytes of each window of a unit are known."""
        shard, *others = self.shards_of(unit)
        return self.size_of(unit) is not None and (bool(others) or shard.format != "examples")

    def bytes_of(self, unit: int, documents: Documents) -> int:
        """Bytes of the content of a unit in a window; 0 where that is unknown. The windows add up to the unit."""
        shard, *others = self.shards_of(unit)
        if not others and shard.content_bytes is not None and not shard.is_content_estimated:
            return documents.content_bytes
        if not self.knows_bytes(unit):
            return 0
        begin, end = (self._sizes[unit] * stored // max(1, self.size_of(unit) or 0) for stored in documents.stored)
        return end - begin

    def bytes_from(self, stripe: Stripe, window: int) -> int:
        """Approximate bytes of the content of a stripe from a window on."""
        before, until = (int(self._sizes[stripe.unit] * part) for part in self._part(stripe))
        windows = math.ceil((self.windows_of(stripe.unit) - stripe.first) / stripe.count)
        return (until - before) * max(0, windows - window) // windows

    def _part(self, stripe: Stripe) -> tuple[float, float]:
        """Begin and end of a stripe in its unit, between 0 and 1."""
        windows = self._known_windows(stripe.unit) or stripe.count
        before, until = (share_before(first, stripe.count, windows) for first in (stripe.first, stripe.first + 1))
        return before, until

    @cached_property
    def fullest_lane(self) -> float:
        """Load of the fullest lane in the first epoch, as a multiple of the mean."""
        sizes, lanes = known_sizes(self._loads), np.zeros(self.layout.lanes)
        for lane in range(self.layout.lanes):
            for stripe in self.stripes(0, lane):
                before, until = self._part(stripe)
                lanes[lane] += sizes[stripe.unit] * (until - before)
        return float(lanes.max() / (lanes.mean() or 1.0))

    @cached_property
    def bytes_of_epoch(self) -> int:
        """Bytes of the content of all shards, estimated where unknown."""
        return sum(self._sizes)

    @cached_property
    def _loads(self) -> list[int | None]:
        """The sizes that are dealt evenly: the content of each unit where that of any is known, else stored bytes."""
        numbers = range(len(self.units))
        if all(shard.content_bytes is None for shard in self.shards):
            return [self.size_of(unit) for unit in numbers]
        contents = [[content_of(shard) for shard in self.shards_of(unit)] for unit in numbers]
        return [None if None in content else sum(size or 0 for size in content) for content in contents]

    @cached_property
    def _sizes(self) -> list[int]:
        """Bytes of the content of each unit, at least one; the mean of the others where they are unknown."""
        return [max(1, int(size)) for size in known_sizes(self._loads)]
