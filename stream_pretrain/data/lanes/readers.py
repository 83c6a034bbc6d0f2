"""The open units of a source in one process."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TypeAlias

from stream_pretrain.data.documents.document import DocumentReader
from stream_pretrain.data.documents.reader import open_unit
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.transport.store_memory import StoreMemory

_Key: TypeAlias = tuple[int, int, int]
"""Epoch and unit, and the lane where each lane reads all units."""


class Readers:
    """The open units of a source in one process: lanes which read stripes of the same shard share its decompression.

    A lane also follows the unit of its next stripe while it reads the one before, so that windows of that stripe are kept for
    it when other lanes pass them.
    """

    def __init__(self, plan: SourcePlan, memory: StoreMemory | None = None, lanes: int = 1) -> None:
        """memory: shared by the sources of a stream. lanes: of the process."""
        self.plan = plan
        self.memory = memory = memory or StoreMemory()
        read = plan.read_by(lanes)
        self._options = replace(read, transport=replace(read.transport, memory=memory))
        self.open: dict[_Key, DocumentReader] = {}
        self._next: dict[_Key, set[Stripe]] = defaultdict(set)

    def follow(self, lane: int, epoch: int, stripe: Stripe, block: int) -> DocumentReader:
        key = self._key(lane, epoch, stripe)
        if key not in self.open:
            self.open[key] = open_unit(self.plan.shards_of(stripe.unit), self._options)
            for awaited in self._next[key]:
                self.open[key].follow(awaited, awaited.first)
        self._next[key].discard(stripe)
        self.open[key].follow(stripe, block)
        if (following := self._after(lane, epoch, stripe)) is not None:
            self._await(self._key(lane, *following), following[1])
        return self.open[key]

    def leave(self, lane: int, epoch: int, stripe: Stripe) -> None:
        key = self._key(lane, epoch, stripe)
        if self.open[key].leave(stripe):
            del self.open[key], self._next[key]

    def _await(self, key: _Key, stripe: Stripe) -> None:
        self._next[key].add(stripe)
        if key in self.open:
            self.open[key].follow(stripe, stripe.first)

    def _after(self, lane: int, epoch: int, stripe: Stripe) -> tuple[int, Stripe] | None:
        """The epoch and stripe that a lane reads after this one; None at its end."""
        stripes = self.plan.stripes(epoch, lane)
        if stripe != stripes[-1]:
            return epoch, stripes[stripes.index(stripe) + 1]
        if self.plan.max_epochs is not None and epoch + 1 >= self.plan.max_epochs:
            return None
        return next(((epoch + 1, first) for first in self.plan.stripes(epoch + 1, lane)), None)

    def _key(self, lane: int, epoch: int, stripe: Stripe) -> _Key:
        return (epoch, stripe.unit, lane if self.plan.undealt else 0)
