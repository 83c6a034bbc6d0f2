"""The rows of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.lanes.cursor import Cursor, Skipped
from stream_pretrain.data.lanes.lane import Lane
from stream_pretrain.data.lanes.source_lane import CAUSES, Group
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.rows.labels import Labelled
from stream_pretrain.data.rows.packing import Rows, gather


@dataclass(frozen=True)
class StepRows:
    """Rows of one step: of the lanes of a worker, or, merged, of those of a rank, in the order of the lanes."""

    lanes: NDArray[np.int64]
    """[K] numbers of the lanes."""
    cursors: NDArray[np.int64]
    """[K, sources, fields] where they stand after these rows."""
    row_lane: NDArray[np.int64]
    """[R] lane of each row; a lane that has ended gives none."""
    row_source: NDArray[np.int64]
    """[R] source of each row."""
    rows: Rows
    labelled: Labelled
    skipped: tuple[Skipped, ...]
    """Documents skipped on the way to these rows."""
    origins: NDArray[np.int64]
    """[S, 3] epoch, shard and offset of the document of each segment."""
    seconds: NDArray[np.float64]
    """[causes] what the workers spent on them, see `source_lane.CAUSES`."""

    @property
    def tokens(self) -> int:
        """Positions that hold a token of a document or a special token, not padding."""
        return int(self.rows.segment_length.sum())


@dataclass
class _Run:
    """Neighbouring rows of a group."""

    group: Group
    labelled: Labelled
    which: range


def step_of(lanes: Sequence[Lane], plan: StreamPlan) -> StepRows:
    """The next rows of some lanes, `plan.layout.rows_per_lane` of each."""
    runs: list[_Run] = []
    row_source: list[int] = []
    row_lane: list[int] = []
    skipped: list[Skipped] = []
    for lane in lanes:
        step = lane.rows // plan.layout.rows_per_lane
        for _ in range(plan.layout.rows_per_lane):
            row = lane.next_row()
            if row is None:
                skipped += lane.report_skipped()
                break
            source, group, index, passed_over = row
            if runs and runs[-1].group is group:
                runs[-1].which = range(runs[-1].which.start, index + 1)
            else:
                runs.append(_Run(group, _labels_of(group, plan, step), range(index, index + 1)))
            row_source.append(source)
            row_lane.append(lane.number)
            skipped += passed_over
    return StepRows(
        lanes=np.array([lane.number for lane in lanes], dtype=np.int64),
        cursors=np.array([lane.cursors for lane in lanes], dtype=np.int64).reshape(-1, len(plan.sources), len(Cursor._fields)),
        row_lane=np.array(row_lane, dtype=np.int64),
        row_source=np.array(row_source, dtype=np.int64),
        rows=gather([(run.group.rows, run.which) for run in runs], plan.layout.sequence_length),
        labelled=_gather_labels(runs, plan),
        skipped=tuple(skipped),
        origins=np.concatenate(
            [np.empty((0, 3), dtype=np.int64), *(run.group.origins[run.group.rows.segments_of(run.which)] for run in runs)]
        ),
        seconds=np.zeros(len(CAUSES)) + sum(source.take_seconds() for lane in lanes for source in lane.sources),
    )


def _labels_of(group: Group, plan: StreamPlan, step: int) -> Labelled:
    """The labelled rows of a group at the rate of a step; made once for each rate."""
    rate = plan.objective.rate(step)
    if rate not in group.labelled:
        group.labelled.clear()
        group.labelled[rate] = plan.objective.label(group.rows, rate, group.key)
    return group.labelled[rate]


def _gather_labels(runs: Sequence[_Run], plan: StreamPlan) -> Labelled:
    def stacked(name: str, width: int) -> NDArray[np.int32]:
        empty = np.empty((0, width), dtype=np.int32)
        return np.concatenate([empty, *(getattr(run.labelled, name)[run.which.start : run.which.stop] for run in runs)])

    length = plan.layout.sequence_length
    slots = plan.objective.label_slots(length)
    return Labelled(stacked("input_ids", length), stacked("label_positions", slots), stacked("labels", slots))


def merged(parts: Sequence[StepRows]) -> StepRows:
    """The items of a rank's workers as one, in the order of the lanes: the same for any number of workers."""
    if len(parts) == 1:
        return parts[0]
    row_lane = np.concatenate([part.row_lane for part in parts])
    order = np.argsort(row_lane, kind="stable")
    segment_order = np.argsort(np.concatenate([part.row_lane[part.rows.segment_row] for part in parts]), kind="stable")
    first_row = np.cumsum([0] + [len(part.row_lane) for part in parts])
    segment_row = np.concatenate([part.rows.segment_row + first for part, first in zip(parts, first_row, strict=False)])
    new_row = np.empty(len(order), dtype=np.int32)
    new_row[order] = np.arange(len(order), dtype=np.int32)

    def rows(name: str) -> NDArray[np.int32]:
        return np.concatenate([getattr(part.rows, name) for part in parts])

    def labels(name: str) -> NDArray[np.int32]:
        return np.concatenate([getattr(part.labelled, name) for part in parts])[order]

    lanes = np.concatenate([part.lanes for part in parts])
    by_number = np.argsort(lanes)
    return StepRows(
        lanes=lanes[by_number],
        cursors=np.concatenate([part.cursors for part in parts])[by_number],
        row_lane=row_lane[order],
        row_source=np.concatenate([part.row_source for part in parts])[order],
        rows=Rows(
            input_ids=rows("input_ids")[order],
            segment_row=new_row[segment_row][segment_order],
            segment_start=rows("segment_start")[segment_order],
            segment_length=rows("segment_length")[segment_order],
            segment_document=rows("segment_document")[segment_order],
            segment_token=rows("segment_token")[segment_order],
        ),
        labelled=Labelled(labels("input_ids"), labels("label_positions"), labels("labels")),
        skipped=tuple(skip for part in parts for skip in part.skipped),
        origins=np.concatenate([part.origins for part in parts])[segment_order],
        seconds=np.sum([part.seconds for part in parts], axis=0),
    )
