"""All that decides the rows of a source in a lane."""

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
    """All that decides the rows of a source in a lane besides the lane's number and cursor: equal on every rank."""

    name: str
    shards: tuple[Shard, ...]
    first_shard: int
    """Number of the first of them among the shards of all sources."""
    layout: RowLayout
    heldout_fraction: float
    max_epochs: int | None
    read: ReadOptions
    skip_bad_shards: bool = False
    whole: bool = False
    """Too small to be dealt: every lane reads all of it, in an order and with masks of its own."""

    def windows_of(self, shard: Shard) -> int:
        """Windows of a shard as far as its size tells."""
        if shard.size is None or shard.format == "examples":
            return self.layout.lanes
        if shard.format == "text" and self.read.text_documents == "file":
            return 1
        return max(1, round(shard.size * expansion_of(shard.compression) / self.read.window_bytes))

    def stripes(self, epoch: int, lane: int) -> list[Stripe]:
        """What a lane reads in an epoch, in order."""
        if self.whole:
            order = keyed_generator(self.layout.seed, DEAL, epoch, self.first_shard, lane).permutation(len(self.shards))
            return [Stripe(shard) for shard in order.tolist()]
        if epoch not in self._dealt:
            sizes = [shard.size for shard in self.shards]
            windows = [self.windows_of(shard) for shard in self.shards]
            self._dealt.pop(epoch - 2, None)
            self._dealt[epoch] = deal(sizes, windows, self.layout.lanes, self.layout.seed, epoch, self.first_shard)
        return self._dealt[epoch][lane]

    @cached_property
    def _dealt(self) -> dict[int, list[list[Stripe]]]:
        return {}

    def ended(self, cursor: Cursor) -> bool:
        """Whether a lane has read all the epochs it was asked for."""
        return self.max_epochs is not None and cursor.epoch >= self.max_epochs

    def bytes_of(self, stripe: Stripe) -> int:
        """Stored bytes of a stripe; those of the stripes of a shard add up to its size."""
        size = self._sizes[stripe.shard]
        return size * (stripe.first + 1) // stripe.count - size * stripe.first // stripe.count

    @cached_property
    def bytes_of_epoch(self) -> int:
        """Stored bytes of all shards."""
        return sum(self._sizes)

    @cached_property
    def _sizes(self) -> list[int]:
        """Stored bytes of each shard; one that is not known is taken for the mean of the others, an empty one for a byte."""
        known = [shard.size for shard in self.shards if shard.size is not None]
        mean = sum(known) // len(known) if known else 1
        return [max(1, mean if shard.size is None else shard.size) for shard in self.shards]
