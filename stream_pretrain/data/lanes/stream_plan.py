"""All that decides the rows of every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.mixture import Shares, shares_at
from stream_pretrain.data.lanes.row_layout import RowLayout
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.objective import Objective


@dataclass(frozen=True)
class StreamPlan:
    """All that decides the rows of every step, besides the cursors: equal on every rank and at every resume."""

    sources: tuple[SourcePlan, ...]
    schedule: tuple[Shares, ...]
    """Shares of the sources, by the step they come into force at; the first at step 0."""
    layout: RowLayout
    encoder: Encoder
    objective: Objective

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """The shards of all sources, as `Skipped.shard` and `Group.origins` number them."""
        return tuple(shard for source in self.sources for shard in source.shards)

    def shares_of_row(self, row: int) -> Shares:
        """The shares that a lane's row of this number is chosen by."""
        return shares_at(self.schedule, row // self.layout.rows_per_lane)

    def parts_of_row(self, row: int, ended: Sequence[bool]) -> Sequence[int]:
        """The parts that a lane's row of this number is chosen by, of the sources that have not ended.

        Where none of them has one, the next shares that give one come early; without such a change, nothing.
        """
        now = self.shares_of_row(row)
        for shares in self.schedule[self.schedule.index(now) :]:
            parts = [0 if over else part for part, over in zip(shares.parts, ended, strict=True)]
            if any(parts):
                return parts
        return ()

    def progress(self, lane: int, cursors: Sequence[Cursor]) -> float:
        """Share of a lane's epochs that lies before its cursors; 0 where the epochs do not end the run."""
        if any(source.max_epochs is None for source in self.sources):
            return 0.0
        now = self.shares_of_row(sum(cursor.rows for cursor in cursors)).from_step
        has_share = map(any, zip(*(shares.parts for shares in self.schedule if shares.from_step >= now), strict=True))
        read = [
            size * source.progress(lane, cursor)
            for size, source, cursor in zip(self._bytes_of, self.sources, cursors, strict=True)
        ]
        # What is left of a source that has no share from here on is not read.
        to_read = [size if share else before for size, before, share in zip(self._bytes_of, read, has_share, strict=True)]
        return sum(read) / sum(to_read)

    @cached_property
    def _bytes_of(self) -> list[int]:
        """Bytes of each source, in all its epochs."""
        return [sum(shard.size or 1 for shard in source.shards) * (source.max_epochs or 1) for source in self.sources]
