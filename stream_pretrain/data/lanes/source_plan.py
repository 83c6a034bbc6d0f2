"""All that decides the rows of a source in a lane."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

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

    def progress(self, lane: int, cursor: Cursor) -> float:
        """Share of a lane's epochs that lies before a cursor."""
        assert self.max_epochs is not None
        if self.ended(cursor):
            return 1.0
        key = (cursor.epoch, lane)
        if key not in self._weights:
            stripes = self.stripes(cursor.epoch, lane)
            sizes = np.array([(self.shards[stripe.shard].size or 1) / stripe.count for stripe in stripes], dtype=float)
            self._weights[key] = np.concatenate([[0.0], np.cumsum(sizes)])
        before = self._weights[key]
        share = 0.0
        if cursor.stripe + 1 < len(before):
            stripe = self.stripes(cursor.epoch, lane)[cursor.stripe]
            within = min(1.0, cursor.window * stripe.count / self.windows_of(self.shards[stripe.shard]))
            share = (before[cursor.stripe] * (1 - within) + before[cursor.stripe + 1] * within) / before[-1]
        return float((cursor.epoch + share) / self.max_epochs)

    @cached_property
    def _weights(self) -> dict[tuple[int, int], NDArray[np.float64]]:
        return {}
