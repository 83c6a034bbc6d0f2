"""Everything that decides the rows of every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.lanes import mixture
from stream_pretrain.data.lanes.mixture import Shares
from stream_pretrain.data.lanes.row_layout import RowLayout
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.objective import Objective


@dataclass(frozen=True)
class StreamPlan:
    """Everything but the cursors that decides the rows of every step: the same on all ranks and at each resume."""

    sources: tuple[SourcePlan, ...]
    schedule: tuple[Shares, ...]
    """Shares of the sources, by the step from which they apply; the first from step 0."""
    layout: RowLayout
    encoder: Encoder
    objective: Objective

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """The shards of all sources, as `Skipped.shard` and `Group.origins` number them."""
        return tuple(shard for source in self.sources for shard in source.shards)

    def source_of(self, shard: int) -> SourcePlan:
        """The source of a shard by its number in `shards`."""
        return next(source for source in reversed(self.sources) if source.first_shard <= shard)

    def named(self, shard: int) -> dict[str, str]:
        """A shard in records: its name, and that of its source in a mixture, whose sources may have shards of the same name."""
        source = self.source_of(shard).name
        return {**({"source": source} if source else {}), "shard": self.shards[shard].name}

    def shares_at(self, step: int) -> Shares:
        """The shares of a step."""
        return next(shares for shares in reversed(self.schedule) if shares.from_step <= step)

    def parts_at(self, step: int, ended: Sequence[bool]) -> Sequence[int]:
        """The parts of the sources in a step of a lane, see `mixture.parts_at`. ended: which sources have ended in the lane."""
        return mixture.parts_at(self.schedule, step, ended)

    @property
    def can_end(self) -> bool:
        """Whether a lane can end: not while a source without a limit has a share at the end of the schedule."""
        last = self.schedule[-1].parts
        return all(not part or source.max_epochs is not None for part, source in zip(last, self.sources, strict=True))

    @property
    def epochs_end_it(self) -> bool:
        """Whether the run ends with the epochs of its sources at the latest."""
        return all(source.max_epochs is not None for source in self.sources)

    def has_share(self, source: int, step: int) -> bool:
        """Whether a source has a share in a step or later."""
        now = self.shares_at(step).from_step
        return any(shares.parts[source] for shares in self.schedule if shares.from_step >= now)
