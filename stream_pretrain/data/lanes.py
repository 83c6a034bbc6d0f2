"""A lane: one fixed sub-stream of the corpus. Its rows come from every source of the mixture, by their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from stream_pretrain.data.mixture import Weights, choose, phases_of, weights_at
from stream_pretrain.data.packing import Packing
from stream_pretrain.data.source_lane import Cursor, Group, Readers, Skipped, SourceLane, SourcePlan
from stream_pretrain.data.sources import Shard
from stream_pretrain.data.tokenization import BatchTokenizer, Encoder


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


class Lane:
    """The rows of one lane, from cursors on: one cursor a source."""

    def __init__(
        self,
        plan: LanePlan,
        number: int,
        encoder: Encoder,
        tokenizer: BatchTokenizer,
        readers: Sequence[Readers],
        cursors: Sequence[Cursor],
    ) -> None:
        self.plan = plan
        self.number = number
        self.sources = [
            SourceLane(source, number, encoder, tokenizer, reader, cursor)
            for source, reader, cursor in zip(plan.sources, readers, cursors, strict=True)
        ]
        self.credits: Sequence[int] = [cursor.credit for cursor in cursors]
        self.phases = phases_of(plan.seed, number, plan.lanes, len(plan.sources))
        self.rows = sum(cursor.rows for cursor in cursors)
        """Rows the lane has given out since the run began."""
        self.left: list[Skipped] = []

    @property
    def cursors(self) -> list[Cursor]:
        """Where the lane stands in each source."""
        return [source.cursor._replace(credit=credit) for source, credit in zip(self.sources, self.credits, strict=True)]

    def next_row(self) -> tuple[int, Group, int, list[Skipped]] | None:
        """The next row as (source, group, index in it), with what was skipped on the way to it; None at the end of all."""
        if len(self.sources) == 1:  # nothing to choose
            alone = self.sources[0].next_row()
            if alone is None:
                return None
            self.rows += 1
            return 0, *alone
        while True:
            row = self.rows
            parts = self.plan.parts_of_row(row, [source.ended for source in self.sources])
            if not parts:
                return None
            credits = self.credits
            if row > 0 and self.plan.weights_of_row(row - 1) is not self.plan.weights_of_row(row):  # the shares begin anew
                credits = [0] * len(parts)
            chosen, credits = choose(credits, parts, self.phases)
            found = self.sources[chosen].next_row()
            if found is None:  # the source has ended: it leaves, and the others share its part from here on
                self.left += self.sources[chosen].report_skipped()
                self.credits = [0] * len(parts)
                continue
            self.credits = credits
            self.rows += 1
            group, index, skipped = found
            skipped, self.left = self.left + skipped, []
            return chosen, group, index, skipped

    def report_skipped(self) -> list[Skipped]:
        """What was skipped behind the last row of a lane that has ended; told once, like what rides with a row."""
        skipped, self.left = self.left, []
        return skipped + [skip for source in self.sources for skip in source.report_skipped()]
