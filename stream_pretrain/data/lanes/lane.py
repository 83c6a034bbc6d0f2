"""A lane: one fixed sub-stream of the corpus. Its rows come from every source of the mixture, by their shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.lanes.cursor import Cursor, Skipped
from stream_pretrain.data.lanes.held_rows import HeldRows
from stream_pretrain.data.lanes.mixture import choose, phases_of
from stream_pretrain.data.lanes.readers import Readers
from stream_pretrain.data.lanes.source_lane import Group, SourceEnd, SourceLane
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.rows.engine import Engine


class LaneRow(NamedTuple):
    """A row, and what was skipped before it."""

    source: int
    group: Group
    row: int
    """Of the group."""
    skipped: list[Skipped]


class Place(NamedTuple):
    """A place of a lane: a cursor and a credit for each source."""

    cursors: tuple[Cursor, ...]
    credits: Sequence[int]


class Lane:
    """The rows of one lane, from a cursor for each source on."""

    def __init__(
        self, plan: StreamPlan, number: int, engine: Engine, readers: Sequence[Readers], cursors: Sequence[Cursor]
    ) -> None:
        self.plan = plan
        self.number = number
        self.sources = [
            HeldRows(SourceLane(source, number, plan.encoder, engine, reader, cursor))
            for source, reader, cursor in zip(plan.sources, readers, cursors, strict=True)
        ]
        self.step = 0
        self._credits: Sequence[int] = [cursor.credit for cursor in cursors]
        self._phases = phases_of(plan.layout.seed, number, plan.layout.lanes, len(plan.sources))
        self._skipped: list[Skipped] = []  # behind the last row of a source, until they are reported

    @property
    def cursors(self) -> list[Cursor]:
        """The cursors of the lane."""
        return [source.cursor._replace(credit=credit) for source, credit in zip(self.sources, self._credits, strict=True)]

    @property
    def place(self) -> Place:
        """The place of the lane, for `return_to` and `forget`."""
        return Place(tuple(source.cursor for source in self.sources), self._credits)

    def return_to(self, place: Place) -> None:
        """Return to an earlier place; the lane gives the same rows again."""
        for source, cursor in zip(self.sources, place.cursors, strict=True):
            source.rewind(cursor)
        self._credits, self._skipped = place.credits, []

    def forget(self, place: Place) -> None:
        """Give up places before this one."""
        for source, cursor in zip(self.sources, place.cursors, strict=True):
            source.forget(cursor)

    def begin_step(self, step: int) -> None:
        """Set the step of the next rows, which decides their shares."""
        if step > 0 and self.plan.shares_at(step - 1) is not self.plan.shares_at(step):
            self._credits = [0] * len(self.sources)  # the shares begin anew, whether or not the lane gives the step a row
        self.step = step

    def next_row(self) -> LaneRow | None:
        """The next row; None at the end of all."""
        while True:
            parts = self.plan.parts_at(self.step, [source.ended for source in self.sources])
            if not parts:
                return None
            chosen, credits = choose(self._credits, parts, self._phases) if len(parts) > 1 else (0, self._credits)
            found = self.sources[chosen].next_row()
            self._skipped += found.skipped
            if isinstance(found, SourceEnd):  # it leaves, and the others share its part from here on
                self._credits = [0] * len(parts)
                continue
            self._credits = credits
            return LaneRow(chosen, found.group, found.row, self.report_skipped())

    def take_seconds(self) -> NDArray[np.float64]:
        """[causes] seconds spent on all sources since this was asked last, see `source_lane.CAUSES`."""
        seconds: NDArray[np.float64] = np.sum([source.source.take_seconds() for source in self.sources], axis=0)
        return seconds

    @property
    def sampled(self) -> NDArray[np.float64]:
        """[sources, 2] as `SourceLane.sampled`."""
        return np.array([source.source.sampled for source in self.sources])

    def report_skipped(self) -> list[Skipped]:
        """What was skipped since the last row; given once, and again after a `return_to`."""
        skipped, self._skipped = self._skipped, []
        return skipped
