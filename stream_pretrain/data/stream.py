"""The rows of every step, read by the data workers of this rank, with the cursors that stand behind them.

Lanes are dealt to ranks, and a rank's lanes to its workers. A worker gives one item a step: the next rows of its lanes
and where those lanes stand after them. The trainer takes one item of each worker a step and keeps the cursors of what it
has trained on; what workers have read ahead is in no cursor, so nothing is drained and nothing lost.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stream_pretrain.config import Config, ObjectiveConfig
from stream_pretrain.data.lanes import Lane, LanePlan
from stream_pretrain.data.objectives import Labelled, Vocabulary, label_slots, mask, mask_rates, next_tokens
from stream_pretrain.data.packing import Rows, gather
from stream_pretrain.data.randomness import keyed_generator
from stream_pretrain.data.source_lane import CAUSES, GROUP_ROWS, Cursor, Group, Readers, Skipped
from stream_pretrain.data.store_memory import StoreMemory
from stream_pretrain.data.tokenization import Encoder
from stream_pretrain.errors import CheckpointError, StreamPretrainError, TrainingError
from stream_pretrain.stored import stored

CURSOR_VERSION = 2
"""Of what `stream.json` holds; raised when the fields of a cursor change, or the rows that follow from one."""
LaneCursors = tuple[Cursor, ...]
"""Where a lane stands: a cursor for each source."""
LEAST_STEPS_AHEAD = 4
LEAVE_SECONDS = 0.5
"""Workers that have not left by themselves after so long, such as those that wait for a server, are killed."""
_RATES = 4096
"""Mask rates are rounded to this fraction, so that the rows of a group are masked together while a schedule moves on."""


@dataclass(frozen=True)
class StreamPlan:
    """All that decides the rows of every step, besides the cursors."""

    lanes: LanePlan
    encoder: Encoder
    objective: ObjectiveConfig
    vocabulary: Vocabulary | None
    max_steps: int | None

    def mask_rate(self, step: int) -> float:
        """The mask rate of a step."""
        if self.objective.final_mask_rate is None:
            return self.objective.mask_rate
        rate = float(mask_rates(self.objective, np.array([step]), self.max_steps)[0])
        return round(rate * _RATES) / _RATES

    @property
    def label_slots(self) -> int:
        """Labels a row can have at most."""
        return label_slots(self.objective, self.lanes.sequence_length)


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


class RowStream(IterableDataset[StepRows | StreamPretrainError]):
    """The rows of a rank from given cursors on; endless, with empty items once its lanes have ended."""

    def __init__(self, plan: StreamPlan, cursors: Sequence[LaneCursors], rank: int, world: int) -> None:
        assert len(cursors) == plan.lanes.lanes
        self.plan = plan
        self.cursors = tuple(cursors)
        self.rank = rank
        self.world = world

    def __iter__(self) -> Iterator[StepRows | StreamPretrainError]:
        worker = get_worker_info()
        index, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        numbers = lanes_of(self.plan.lanes.lanes, self.rank, self.world)[index::workers]
        try:
            tokenizer = self.plan.encoder.build()
            memory = StoreMemory()
            readers = [Readers(source, memory) for source in self.plan.lanes.sources]
            lanes = [
                Lane(self.plan.lanes, number, self.plan.encoder, tokenizer, readers, self.cursors[number]) for number in numbers
            ]
            while True:
                yield step_of(lanes, self.plan)
        except StreamPretrainError as error:
            yield error  # raised in the training process, in one line rather than behind a worker's traceback


def lanes_of(lanes: int, rank: int, world: int) -> list[int]:
    """Numbers of the lanes of a rank: dealt round-robin."""
    return list(range(rank, lanes, world))


@dataclass
class _Run:
    """Neighbouring rows of a group."""

    group: Group
    labelled: Labelled
    which: range


def step_of(lanes: Sequence[Lane], plan: StreamPlan) -> StepRows:
    """The next rows of some lanes, `plan.lanes.rows_per_lane` of each."""
    runs: list[_Run] = []
    row_source: list[int] = []
    row_lane: list[int] = []
    skipped: list[Skipped] = []
    for lane in lanes:
        step = lane.rows // plan.lanes.rows_per_lane
        for _ in range(plan.lanes.rows_per_lane):
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
        cursors=np.array([lane.cursors for lane in lanes], dtype=np.int64).reshape(
            -1, len(plan.lanes.sources), len(Cursor._fields)
        ),
        row_lane=np.array(row_lane, dtype=np.int64),
        row_source=np.array(row_source, dtype=np.int64),
        rows=gather([(run.group.rows, run.which) for run in runs], plan.lanes.sequence_length),
        labelled=_gather_labels(runs, plan),
        skipped=tuple(skipped),
        origins=np.concatenate(
            [np.empty((0, 3), dtype=np.int64), *(run.group.origins[run.group.rows.segments_of(run.which)] for run in runs)]
        ),
        seconds=np.zeros(len(CAUSES)) + sum(source.take_seconds() for lane in lanes for source in lane.sources),
    )


def _labels_of(group: Group, plan: StreamPlan, step: int) -> Labelled:
    """The labelled rows of a group at the mask rate of a step; made once for each rate."""
    rate = 1.0 if plan.vocabulary is None else plan.mask_rate(step)
    if rate not in group.labelled:
        group.labelled.clear()
        if plan.vocabulary is None:
            group.labelled[rate] = next_tokens(group.rows)
        else:
            rates = np.full(len(group.rows.input_ids), rate)
            generator = keyed_generator(*group.key)
            group.labelled[rate] = mask(group.rows, plan.vocabulary, plan.objective, rates, generator)
    return group.labelled[rate]


def _gather_labels(runs: Sequence[_Run], plan: StreamPlan) -> Labelled:
    def stacked(name: str, width: int) -> NDArray[np.int32]:
        empty = np.empty((0, width), dtype=np.int32)
        return np.concatenate([empty, *(getattr(run.labelled, name)[run.which.start : run.which.stop] for run in runs)])

    return Labelled(
        input_ids=stacked("input_ids", plan.lanes.sequence_length),
        label_positions=stacked("label_positions", plan.label_slots),
        labels=stacked("labels", plan.label_slots),
    )


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


class StepStream:
    """The steps of a rank, one `StepRows` each, for the training process."""

    def __init__(
        self,
        plan: StreamPlan,
        cursors: Sequence[LaneCursors],
        *,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        in_worker: Callable[[], None] | None = None,
    ) -> None:
        """in_worker: called first in every worker process, for example to leave signals to the trainer."""
        self.workers = workers
        self.nothing = step_of([], plan)
        """A step without rows."""
        others = multiprocessing.active_children()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # said by the command, once for all ranks
            loader = DataLoader(
                RowStream(plan, cursors, rank, world),
                batch_size=None,
                collate_fn=_as_it_is,
                num_workers=workers,
                prefetch_factor=steps_ahead(plan.lanes.rows_per_lane) if workers else None,
                worker_init_fn=_WorkerInit(in_worker),
                generator=torch.Generator(),  # leaves the global one, which dropout uses, untouched
            )
            self.items = iter(loader)
        self._processes = [process for process in multiprocessing.active_children() if process not in others]
        self._leaving, self._left = threading.Event(), threading.Event()
        if self._processes:
            # Started here: when there is no memory left, a thread cannot be started any more.
            threading.Thread(target=self._kill_those_that_stay, name="workers", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._processes:
            del self.items
            return
        on_death = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise for one that is killed
        self._leaving.set()
        # By name, since the traceback of an error, such as that of a worker that died, keeps the iterator from being deleted.
        self.items._shutdown_workers()  # type: ignore[attr-defined]
        del self.items
        self._left.set()
        signal.signal(signal.SIGCHLD, on_death)

    def _kill_those_that_stay(self) -> None:
        """torch ends the workers one after the other, and waits 5 s for each that is busy."""
        self._leaving.wait()
        if not self._left.wait(LEAVE_SECONDS):
            for process in self._processes:
                process.kill()  # it holds nothing that is not in a cursor

    def __iter__(self) -> Iterator[StepRows]:
        return self

    def __next__(self) -> StepRows:
        parts: list[StepRows] = []
        for _ in range(max(self.workers, 1)):
            try:
                item = next(self.items)
            except RuntimeError as error:
                if "DataLoader worker (pid" not in str(error):  # an error that the worker has raised names no process
                    raise
                raise worker_died(error) from error
            if isinstance(item, StreamPretrainError):
                raise item
            parts.append(item)
        return merged(parts)


def worker_died(error: RuntimeError | MemoryError) -> TrainingError:
    """What torch says of a worker that has died, in one line; it raises that at any place of the training process."""
    reason = str(error).split("\n", 1)[0].rstrip(". ")
    return TrainingError(f"a data worker died ({reason}): out of memory? Try fewer --workers")


def steps_ahead(rows_per_lane: int) -> int:
    """Steps a worker may be ahead: at least a group of rows of each lane, since a lane packs a group in one go."""
    return max(LEAST_STEPS_AHEAD, -(-GROUP_ROWS // rows_per_lane))


def _as_it_is(item: Any) -> Any:
    return item


@dataclass(frozen=True)
class _WorkerInit:
    in_worker: Callable[[], None] | None

    def __call__(self, _worker: int) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker is one core; threads do not survive a fork
        if self.in_worker is not None:
            self.in_worker()


def stream_state(cursors: Sequence[LaneCursors]) -> dict[str, Any]:
    """All lanes' cursors as JSON: what `stream.json` holds."""
    lanes = [{"sources": [list(cursor) for cursor in lane]} for lane in cursors]
    return {"version": CURSOR_VERSION, "fields": list(Cursor._fields), "lanes": lanes}


def cursors_from(state: Mapping[str, Any], lanes: int) -> list[LaneCursors]:
    """Cursors from `stream.json`. Raises CheckpointError for another version or number of lanes."""
    if state.get("version") != CURSOR_VERSION or state.get("fields") != list(Cursor._fields):
        raise CheckpointError(
            f"stream.json: cursors of version {state.get('version')}, this program reads version {CURSOR_VERSION}"
        )
    found = stored(list[dict[str, list[list[int]]]], state.get("lanes"), "stream.json: lanes")
    if len(found) != lanes:
        raise CheckpointError(f"stream.json: cursors of {len(found)} lanes, the run has {lanes}")
    for number, lane in enumerate(found):
        if lane.keys() != {"sources"} or any(len(cursor) != len(Cursor._fields) for cursor in lane["sources"]):
            raise CheckpointError(f"stream.json: lane {number} has no cursor of {len(Cursor._fields)} numbers a source")
    return [tuple(Cursor(*cursor) for cursor in lane["sources"]) for lane in found]


def first_cursors(lanes: int, sources: int = 1) -> list[LaneCursors]:
    """Where all lanes stand at the start of a run."""
    return [(Cursor(),) * sources for _ in range(lanes)]


def stream_plan(config: Config, lanes: LanePlan, encoder: Encoder, vocabulary: Vocabulary | None) -> StreamPlan:
    """The plan of a run whose lanes are fixed."""
    return StreamPlan(
        lanes=lanes,
        encoder=encoder,
        objective=config.objective,
        vocabulary=vocabulary,
        max_steps=config.train.max_steps,
    )
