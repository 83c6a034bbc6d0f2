"""A lane: one fixed sub-stream of the corpus. Its rows come from every source of the mixture, by their shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stream_pretrain.data.lanes.cursor import Cursor, Skipped
from stream_pretrain.data.lanes.group import Group
from stream_pretrain.data.lanes.held_rows import HeldRows
from stream_pretrain.data.lanes.mixture import choose, phases_of
from stream_pretrain.data.lanes.readers import Readers
from stream_pretrain.data.lanes.source_lane import SourceEnd, SourceLane
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.rows.engine import Engine


class Run(NamedTuple):
    """Neighbouring rows of a group."""

    source: int
    group: Group
    which: range


class Place(NamedTuple):
    """A position of a lane: for each source, the rows that were returned since the lane was built, and the credit."""

    positions: tuple[int, ...]
    credits: Sequence[int]


class Lane:
    """The rows of one lane, from a cursor for each source on."""

    def __init__(
        self, plan: StreamPlan, number: int, engine: Engine, readers: Sequence[Readers], cursors: Sequence[Cursor]
    ) -> None:
        self.plan = plan
        self.number = number
        self.sources = [
            HeldRows(SourceLane(source, number, plan.encoder, engine, reader, cursor), hold=plan.can_end)
            for source, reader, cursor in zip(plan.sources, readers, cursors, strict=True)
        ]
        self.step = 0
        self._credits: Sequence[int] = [cursor.credit for cursor in cursors]
        self._phases = phases_of(plan.layout.seed, number, plan.layout.lanes, len(plan.sources))
        self._skipped: list[Skipped] = []  # after the last row of a source, until they are reported

    @property
    def cursors(self) -> list[Cursor]:
        """The cursors of the lane."""
        cursors = zip([source.cursor for source in self.sources], self._credits, strict=True)
        return [cursor if cursor.credit == credit else cursor._replace(credit=credit) for cursor, credit in cursors]

    @property
    def place(self) -> Place:
        """The place of the lane, for `return_to` and `forget`."""
        return Place(tuple(source.position for source in self.sources), self._credits)

    def return_to(self, place: Place) -> None:
        """Return to an earlier position, in a plan whose lanes can end; the lane returns the same rows again."""
        for source, position in zip(self.sources, place.positions, strict=True):
            source.rewind(position)
        self._credits, self._skipped = place.credits, []

    def forget(self, place: Place) -> None:
        """Drop positions before this one."""
        for source, position in zip(self.sources, place.positions, strict=True):
            source.forget(position)

    def begin_step(self, step: int) -> None:
        """Set the step of the next rows, which decides their shares."""
        if step > 0 and self.plan.shares_at(step - 1) is not self.plan.shares_at(step):
            self._credits = [0] * len(self.sources)  # even if the lane gives no row to the step
        self.step = step

    def take(self, count: int) -> list[Run]:
        """The next rows, in runs; fewer where all sources end. `report_skipped` has what was skipped on the way."""
        runs: list[Run] = []
        parts = self._parts()
        while count and parts:
            chosen, credits = choose(self._credits, parts, self._phases)
            most = 1 if parts[chosen] < sum(parts) else count  # all at once only where no other source has a share
            group, which = self.sources[chosen].next_rows(most)
            if isinstance(group, SourceEnd):  # from here on, the others share its part
                self._skipped += group.skipped
                self._credits = [0] * len(parts)
                parts = self._parts()
                continue
            if which.start == group.first:
                self._skipped += group.skipped
            self._credits = credits
            count -= len(which)
            if runs and runs[-1].group is group:
                which = range(runs.pop().which.start, which.stop)
            runs.append(Run(chosen, group, which))
        return runs

    def _parts(self) -> Sequence[int]:
        """The parts by which the source of the next row is chosen; empty where all sources have ended."""
        return self.plan.parts_at(self.step, [source.ended for source in self.sources])

    def take_seconds(self) -> list[float]:
        """[causes] seconds spent on all sources since the last call, see `source_lane.CAUSES`."""
        return list(map(sum, zip(*(source.source.take_seconds() for source in self.sources), strict=True)))

    @property
    def sampled(self) -> list[tuple[float, float]]:
        """[sources, 2] as `SourceLane.sampled`."""
        return [source.source.sampled for source in self.sources]

    def report_skipped(self) -> list[Skipped]:
        """What was skipped since the last row; reported once, and again after a `return_to`."""
        skipped, self._skipped = self._skipped, []
        return skipped
