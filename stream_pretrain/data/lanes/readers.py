"""The open units of a source in one process."""

from __future__ import annotations

from dataclasses import replace

from stream_pretrain.data.documents.document import DocumentReader
from stream_pretrain.data.documents.reader import open_unit
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.transport.store_memory import StoreMemory


class Readers:
    """The open units of a source in one process: lanes which read stripes of the same shard share its decompression."""

    def __init__(self, plan: SourcePlan, memory: StoreMemory | None = None) -> None:
        """memory: what the stream has learnt of its stores, where it has other sources as well."""
        self.plan = plan
        self.memory = memory = memory or StoreMemory()
        self._options = replace(plan.read, transport=replace(plan.read.transport, memory=memory))
        self.open: dict[tuple[int, int, int], DocumentReader] = {}

    def follow(self, lane: int, epoch: int, stripe: Stripe, block: int) -> DocumentReader:
        key = self._key(lane, epoch, stripe)
        if key not in self.open:
            self.open[key] = open_unit(self.plan.shards_of(stripe.unit), self._options)
        self.open[key].follow(stripe, block)
        return self.open[key]

    def leave(self, lane: int, epoch: int, stripe: Stripe) -> None:
        key = self._key(lane, epoch, stripe)
        if self.open[key].leave(stripe):
            del self.open[key]

    def _key(self, lane: int, epoch: int, stripe: Stripe) -> tuple[int, int, int]:
        return (epoch, stripe.unit, lane if self.plan.whole else 0)
