"""All that decides the rows of a lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.mixture import Weights, weights_at
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.rows.packing import Packing


@dataclass(frozen=True)
class LanePlan:
    """All that decides the rows of a lane besides its number and cursors: equal on every rank and at every resume."""

    sources: tuple[SourcePlan, ...]
    weights: tuple[Weights, ...]
    """Of the sources, by the step they come into force at; the first at step 0."""
    rows_per_lane: int
    """Rows every lane gives to a step."""
    lanes: int
    seed: int
    sequence_length: int
    packing: Packing

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """The shards of all sources, as `Skipped.shard` and `Group.origins` number them."""
        return tuple(shard for source in self.sources for shard in source.shards)

    def weights_of_row(self, row: int) -> Weights:
        """The weights that a lane's row of this number is chosen by."""
        return weights_at(self.weights, row // self.rows_per_lane)

    def parts_of_row(self, row: int, ended: Sequence[bool]) -> Sequence[int]:
        """The weights that a lane's row of this number is chosen by, of the sources that have not ended.

        Where none of them has one, the next weights that give one come early; without such a change, nothing.
        """
        now = self.weights_of_row(row)
        for weights in self.weights[self.weights.index(now) :]:
            parts = [0 if over else part for part, over in zip(weights.parts, ended, strict=True)]
            if any(parts):
                return parts
        return ()

    def progress(self, lane: int, cursors: Sequence[Cursor]) -> float:
        """Share of a lane's epochs that lies before its cursors; 0 where the epochs do not end the run."""
        if any(source.max_epochs is None for source in self.sources):
            return 0.0
        now = self.weights_of_row(sum(cursor.rows for cursor in cursors)).from_step
        has_weight = map(any, zip(*(weights.parts for weights in self.weights if weights.from_step >= now), strict=True))
        read = [
            size * source.progress(lane, cursor)
            for size, source, cursor in zip(self._bytes_of, self.sources, cursors, strict=True)
        ]
        # What is left of a source that has no weight from here on is not read.
        to_read = [size if weight else before for size, before, weight in zip(self._bytes_of, read, has_weight, strict=True)]
        return sum(read) / sum(to_read)

    @cached_property
    def _bytes_of(self) -> list[int]:
        """Bytes of each source, in all its epochs."""
        return [sum(shard.size or 1 for shard in source.shards) * (source.max_epochs or 1) for source in self.sources]
