"""The rows of one step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter, itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.lanes.cursor import Cursor, Skipped
from stream_pretrain.data.lanes.lane import Lane, Run
from stream_pretrain.data.lanes.source_lane import CAUSES
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors
from stream_pretrain.data.rows.packing import gather
from stream_pretrain.data.rows.train_rows import Int32s, TrainRows, int32s, joined


class Segment(NamedTuple):
    """A segment of a row of a step, by its document."""

    row: int
    """Of the step."""
    source: int
    epoch: int
    shard: int
    """Of all sources."""
    offset: int
    """Of the document: an uncompressed byte of a line format, otherwise a row number."""
    tokens: int
    """With special tokens."""


@dataclass(frozen=True)
class StepRows:
    """Rows of one step: of the lanes of a worker, or, merged, of those of a rank, in the order of the lanes."""

    step: int
    """The step, counted from 0."""
    generation: int
    """How often steps were dealt again before these rows were read."""
    lanes: NDArray[np.int64]
    """[K] numbers of the lanes."""
    given: NDArray[np.int64]
    """[K] rows that each gave."""
    cursors: NDArray[np.int64]
    """[K, sources, fields] where they stand after these rows."""
    trained: TrainRows
    """What a model is trained on."""
    skipped: tuple[Skipped, ...]
    """Documents skipped on the way to these rows."""
    origins: NDArray[np.int64]
    """[S, 3] epoch, shard and offset of the document of each segment."""
    seconds: NDArray[np.float64]
    """[causes] what the workers spent on them, see `source_lane.CAUSES`."""
    sampled: NDArray[np.float64]
    """[sources, 2] tokens and bytes of the windows that were opened for them and before, see `SourceLane.sampled`."""

    def origins_of(self, which: range) -> NDArray[np.int64]:
        """[S', 3] those of the segments of neighbouring rows."""
        segments = self.trained.segments_of(which)
        return self.origins[self._origins_before[segments.start] : self._origins_before[segments.stop]]

    @cached_property
    def _origins_before(self) -> list[int]:
        """Origins of the segments before each, and of all: padding has none."""
        return [0, *np.cumsum(self.trained.segment_tokens > 0).tolist()]

    @property
    def row_lane(self) -> NDArray[np.int64]:
        """[R] lane of each row."""
        return np.repeat(self.lanes, self.given)

    def segments(self) -> list[Segment]:
        """The segments of the rows, in order, without padding."""
        rows, is_padding = self.trained, self.trained.segment_tokens == 0
        row = rows.segment_start[~is_padding] // rows.length
        columns = np.column_stack([row, rows.source[row], self.origins, rows.segment_tokens[~is_padding]])
        return [Segment(*values) for values in columns.tolist()]

    def advance(self, cursors: list[LaneCursors]) -> None:
        """Set the cursors of the lanes to where they stand after these rows. cursors: of all lanes of the run."""
        for lane, of_sources in zip(self.lanes.tolist(), self.cursors.tolist(), strict=True):
            cursors[lane] = tuple(Cursor(*cursor) for cursor in of_sources)


def step_of(
    lanes: Sequence[Lane],
    requested: Sequence[int],
    ends: Sequence[bool],
    plan: StreamPlan,
    step: int = 0,
    generation: int = 0,
) -> StepRows:
    """The next rows of some lanes; fewer than requested of one that has ended.

    ends: whether these are known to be the last rows of a lane. What is skipped after them is reported with them.
    """
    runs: list[Run] = []
    skipped: list[Skipped] = []
    given: list[int] = []  # by each lane
    for lane, rows_requested, is_last in zip(lanes, requested, ends, strict=True):
        lane.begin_step(step)
        of_lane = lane.take(rows_requested + is_last)  # one more reads what is skipped after the last row
        skipped += lane.report_skipped()
        given.append(sum(len(run.which) for run in of_lane))
        runs += of_lane
    nothing = TrainRows.nothing(plan.layout.sequence_length, plan.objective.label_slots(plan.layout.sequence_length)), range(0)
    return StepRows(
        step=step,
        generation=generation,
        given=np.array(given, dtype=np.int64),
        lanes=np.array([lane.number for lane in lanes], dtype=np.int64),
        cursors=np.array([lane.cursors for lane in lanes], dtype=np.int64).reshape(-1, len(plan.sources), len(Cursor._fields)),
        trained=joined([nothing, *(_labelled(run, plan, step) for run in runs)]),
        skipped=tuple(skipped),
        origins=np.concatenate(
            [np.empty((0, 3), dtype=np.int64), *(run.group.origins[run.group.rows.segments_of(run.which)] for run in runs)]
        ),
        seconds=np.array([lane.take_seconds() for lane in lanes]).reshape(-1, len(CAUSES)).sum(axis=0),
        sampled=np.array([lane.sampled for lane in lanes]).reshape(-1, len(plan.sources), 2).sum(axis=0),
    )


def _labelled(run: Run, plan: StreamPlan, step: int) -> tuple[TrainRows, range]:
    """Rows of a group with labels at the rate of a step, as a part of some; of all its rows while the rate stays."""
    group, objective, length = run.group, plan.objective, plan.layout.sequence_length
    rate, slots = objective.rate(step), objective.label_slots(length)
    if rate not in group.labelled:
        draws = group.draws or objective.draw(group.rows, group.key)
        if objective.rate(step + 1) != rate:
            group.draws = draws
            labelled = TrainRows.unlabelled(gather([(group.rows, run.which)], length), slots, run.source)
            draws.label(run.which, rate, labelled.labelled)
            return labelled, range(len(run.which))
        labelled = TrainRows.unlabelled(group.rows, slots, run.source)
        draws.label(range(len(group)), rate, labelled.labelled)
        group.draws, group.labelled = None, {rate: labelled}
    return group.labelled[rate], run.which


def merged(parts: Sequence[StepRows], memory: Callable[[int], Int32s] = int32s) -> StepRows:
    """The rows of some lanes as one step: of the workers of a rank, or of all ranks, in the order of the lanes.

    It shares no memory with the parts. memory: of what a model is trained on.
    """
    assert all(part.step == parts[0].step for part in parts)
    lanes = np.concatenate([part.lanes for part in parts])
    order = np.argsort(lanes)
    assert (np.diff(lanes[order]) > 0).all()
    runs = _runs(parts, order)
    return StepRows(
        step=parts[0].step,
        generation=parts[0].generation,
        lanes=lanes[order],
        given=np.concatenate([part.given for part in parts])[order],
        cursors=np.concatenate([part.cursors for part in parts])[order],
        trained=joined([(part.trained, which) for part, which in runs], memory),
        skipped=tuple(sorted((skip for part in parts for skip in part.skipped), key=attrgetter("epoch", "shard", "offset"))),
        origins=np.concatenate([part.origins_of(which) for part, which in runs]),
        seconds=np.sum([part.seconds for part in parts], axis=0),
        sampled=np.sum([part.sampled for part in parts], axis=0),
    )


def _runs(parts: Sequence[StepRows], order: NDArray[np.int64]) -> list[tuple[StepRows, range]]:
    """The rows of the parts in as few runs as may be. order: of the lanes of all parts, one part after the other."""
    rows_of_lanes: list[tuple[int, range]] = []
    for number, part in enumerate(parts):
        edges = itertools.pairwise([0, *np.cumsum(part.given).tolist()])
        rows_of_lanes += [(number, range(first, stop)) for first, stop in edges]
    runs = [(parts[0], range(0))]  # of a rank without lanes, all that it has
    for number, of_part in itertools.groupby((rows_of_lanes[lane] for lane in order.tolist()), key=itemgetter(0)):
        rows = [which for _, which in of_part]
        runs.append((parts[number], range(rows[0].start, rows[-1].stop)))
    return runs
