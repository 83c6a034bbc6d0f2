"""A lane: one fixed sub-stream of the corpus. Its rows come from every source of the mixture, by their shares."""

from __future__ import annotations

from collections.abc import Sequence

from stream_pretrain.data.lanes.cursor import Cursor, Skipped
from stream_pretrain.data.lanes.mixture import choose, phases_of
from stream_pretrain.data.lanes.readers import Readers
from stream_pretrain.data.lanes.source_lane import Group, SourceLane
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.rows.engine import Engine


class Lane:
    """The rows of one lane, from cursors on: one cursor a source."""

    def __init__(
        self,
        plan: StreamPlan,
        number: int,
        engine: Engine,
        readers: Sequence[Readers],
        cursors: Sequence[Cursor],
    ) -> None:
        self.plan = plan
        self.number = number
        self.sources = [
            SourceLane(source, number, plan.encoder, engine, reader, cursor)
            for source, reader, cursor in zip(plan.sources, readers, cursors, strict=True)
        ]
        self.credits: Sequence[int] = [cursor.credit for cursor in cursors]
        self.phases = phases_of(plan.layout.seed, number, plan.layout.lanes, len(plan.sources))
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
            if row > 0 and self.plan.shares_of_row(row - 1) is not self.plan.shares_of_row(row):  # the shares begin anew
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
