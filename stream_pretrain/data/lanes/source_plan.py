"""Everything that decides the rows of a source in a lane."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.document import ReadOptions
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.dealing import deal
from stream_pretrain.data.lanes.row_layout import RowLayout
from stream_pretrain.data.randomness import DEAL, keyed_generator
from stream_pretrain.data.transport.compression import expansion_of


@dataclass(frozen=True)
class SourcePlan:
    """Everything but its number and cursor that decides the rows of a source in a lane: the same on all ranks."""

    name: str
    shards: tuple[Shard, ...]
    first_shard: int
    """Number of the first of them among the shards of all sources."""
    layout: RowLayout
    heldout_fraction: float
    max_epochs: int | None
    read: ReadOptions
    skip_bad_shards: bool = False
    bundles: tuple[tuple[int, int], ...] = ()
    """Runs of small shards that are read together, each as the number of its first shard and the one behind its last."""
    whole: bool = False
    """Too small to deal: every lane reads all of it, in its own order and with its own masks."""

    @cached_property
    def units(self) -> tuple[range, ...]:
        """What is dealt, as the numbers of its shards: one shard, or a bundle."""
        stops = dict(self.bundles)
        units: list[range] = []
        while (first := units[-1].stop if units else 0) < len(self.shards):
            units.append(range(first, stops.get(first, first + 1)))
        return tuple(units)

    def shards_of(self, unit: int) -> tuple[Shard, ...]:
        """The shards of a unit: more than one of a bundle."""
        return self.shards[self.units[unit].start : self.units[unit].stop]

    def size_of(self, unit: int) -> int | None:
        """Stored bytes of a unit; None where they are not known."""
        sizes = [shard.size for shard in self.shards_of(unit)]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def windows_of(self, unit: int) -> int:
        """Windows of a unit as far as its size tells."""
        shard, *others = self.shards_of(unit)
        if others:
            return 1
        if shard.size is None or shard.format == "examples":
            return self.layout.lanes
        if shard.format == "text" and self.read.text_documents == "file":
            return 1
        return max(1, round(shard.size * expansion_of(shard.compression) / self.read.window_bytes))

    def stripes(self, epoch: int, lane: int) -> list[Stripe]:
        """What a lane reads in an epoch, in order."""
        if self.whole:
            order = keyed_generator(self.layout.seed, DEAL, epoch, self.first_shard, lane).permutation(len(self.units))
            return [Stripe(unit) for unit in order.tolist()]
        if epoch not in self._dealt:
            sizes = [self.size_of(unit) for unit in range(len(self.units))]
            windows = [self.windows_of(unit) for unit in range(len(self.units))]
            self._dealt.pop(epoch - 2, None)
            self._dealt[epoch] = deal(sizes, windows, self.layout.lanes, self.layout.seed, epoch, self.first_shard)
        return self._dealt[epoch][lane]

    @cached_property
    def _dealt(self) -> dict[int, list[list[Stripe]]]:
        return {}

    def ended(self, cursor: Cursor) -> bool:
        """Whether a lane has read all epochs of the source."""
        return self.max_epochs is not None and cursor.epoch >= self.max_epochs

    def bytes_of(self, stripe: Stripe) -> int:
        """Stored bytes of a stripe; those of the stripes of a shard add up to its size."""
        size = self._sizes[stripe.unit]
        return size * (stripe.first + 1) // stripe.count - size * stripe.first // stripe.count

    @cached_property
    def bytes_of_epoch(self) -> int:
        """Stored bytes of all shards."""
        return sum(self._sizes)

    @cached_property
    def _sizes(self) -> list[int]:
        """Stored bytes of each unit; one that is not known is taken for the mean of the others, an empty one for a byte."""
        sizes = [self.size_of(unit) for unit in range(len(self.units))]
        known = [size for size in sizes if size is not None]
        mean = sum(known) // len(known) if known else 1
        return [max(1, mean if size is None else size) for size in sizes]
