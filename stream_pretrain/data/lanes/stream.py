"""The rows of every step, read by the data workers of this rank, with the cursors that stand behind them.

Lanes are dealt to ranks, and a rank's lanes to its workers. A worker gives one item a step: as many rows of its lanes as the
least-rows rule asks for, and where those lanes stand after them. The trainer takes one item of each worker a step and keeps the
cursors of what it has trained on; what workers have read ahead is in no cursor, so nothing is drained and nothing lost.

Where a lane ends, its worker finds out when it asks for more rows than there are: it gives those and reads no further. The
trainers agree on what each lane has given (`StepStream.settle`), and the step is dealt again to all lanes. Workers hold the
rows of the steps that this may come to, so nothing is read or tokenized twice; items that were made before are dropped.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stream_pretrain.data.lanes.group_sizes import FEWEST_ROWS
from stream_pretrain.data.lanes.lane import Lane, Place
from stream_pretrain.data.lanes.readers import Readers
from stream_pretrain.data.lanes.row_layout import part_of
from stream_pretrain.data.lanes.rows_per_lane import LaneRows
from stream_pretrain.data.lanes.step_rows import StepRows, merged, step_of
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors
from stream_pretrain.data.transport.store_memory import StoreMemory
from stream_pretrain.errors import StreamPretrainError, TrainingError

LEAST_STEPS_AHEAD = 4

SHUTDOWN_SECONDS = 0.5
"""Workers that have not ended after this, such as those that wait for a server, are killed."""


@dataclass(frozen=True)
class Deal:
    """A message to the workers: deal a step again, with the lanes that turned out to end in it.

    It has only these: a worker may not receive it before the trainer goes on, and a pipe holds 64 KiB.
    """

    generation: int
    step: int
    ended: NDArray[np.int32]
    """Lanes that gave less than they were asked for..."""
    given: NDArray[np.int32]
    """...and how many rows."""


@dataclass(frozen=True)
class Failure:
    """What a worker gives in place of the rows of a step that it cannot read, and of all that come after it."""

    generation: int
    error: StreamPretrainError


class RowStream(IterableDataset[StepRows | Failure | None]):
    """The rows of a rank from given cursors on; endless, with empty items after its lanes have ended."""

    def __init__(
        self,
        plan: StreamPlan,
        cursors: Sequence[LaneCursors],
        lane_rows: LaneRows,
        numbers: Sequence[Sequence[int]],
        deals: Sequence[Connection],
        steps_held: int,
    ) -> None:
        """numbers: lanes of each worker. deals: pipe of each for a `Deal`."""
        assert len(cursors) == plan.layout.lanes
        self.plan = plan
        self.cursors = tuple(cursors)
        self.lane_rows = lane_rows
        self.numbers = numbers
        self.deals = deals
        self.steps_held = steps_held

    def __iter__(self) -> Iterator[StepRows | Failure | None]:
        worker = get_worker_info()
        index = 0 if worker is None else worker.id
        try:
            engine = self.plan.encoder.build()
            memory = StoreMemory()
            readers = [Readers(source, memory) for source in self.plan.sources]
            lanes = [Lane(self.plan, number, engine, readers, self.cursors[number]) for number in self.numbers[index]]
        except StreamPretrainError as error:
            while True:  # a worker that left would leave the trainer with items out of turn
                yield Failure(0, error)
        yield from self._steps(lanes, self.deals[index])

    def _steps(self, lanes: Sequence[Lane], deals: Connection) -> Iterator[StepRows | Failure | None]:
        """The rows of each step; None while a lane has ended and the step is not dealt again."""
        batch, numbers = self.plan.layout.global_batch_size, [lane.number for lane in lanes]
        generation, lane_rows = 0, self.lane_rows
        held: deque[tuple[LaneRows, list[Place]]] = deque()  # in front of the steps that may be dealt again
        while True:
            is_short, failure = False, None
            while not is_short and not deals.poll():
                held.append((lane_rows, [lane.place for lane in lanes]))
                if len(held) > self.steps_held:
                    held.popleft()
                    for lane, place in zip(lanes, held[0][1], strict=True):
                        lane.forget(place)
                asked = lane_rows.asked(batch)
                to_end = (lane_rows.left == asked)[numbers].tolist()
                try:
                    rows = step_of(lanes, asked[numbers].tolist(), to_end, self.plan, lane_rows.step, generation)
                except StreamPretrainError as error:
                    # Raised in the training process: in one line rather than behind a worker's traceback, and in its step.
                    failure = Failure(generation, error)
                    break
                yield rows
                is_short = bool((rows.given < asked[numbers]).any())
                lane_rows = lane_rows.after(asked)
            while not deals.poll():
                yield failure  # items are taken of all workers in turn: of one that waits too
            deal: Deal = deals.recv()
            lane_rows, places = held.pop()
            while lane_rows.step != deal.step:
                lane_rows, places = held.pop()
            for lane, place in zip(lanes, places, strict=True):
                lane.return_to(place)
            given = lane_rows.asked(batch)
            given[deal.ended] = deal.given
            generation, lane_rows = deal.generation, lane_rows.knowing(given, batch)


class StepStream:
    """The steps of a rank, one `StepRows` each, for the training process.

    With one rank, it is iterated over. Several ranks `read` what their lanes give to a step, agree on what all have given, and
    `settle` it: the step is whole, or it is read again.
    """

    def __init__(
        self,
        plan: StreamPlan,
        cursors: Sequence[LaneCursors],
        *,
        step: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        in_worker: Callable[[], None] | None = None,
    ) -> None:
        """step: steps that lie before these cursors. in_worker: called first in every worker process."""
        self.plan = plan
        self.workers = workers
        self.nothing = step_of([], [], [], plan)
        """A step without rows."""
        self._lane_rows = LaneRows.before(step, cursors)
        self._generation = 0
        own = part_of(range(plan.layout.lanes), rank, world)
        numbers = [part_of(own, worker, max(workers, 1)) for worker in range(max(workers, 1))]
        pipes = [multiprocessing.Pipe(duplex=False) for _ in numbers]
        self._pipes = [end for pipe in pipes for end in pipe]
        self._deals = [sending for _, sending in pipes]
        self._waiting = [deque[StepRows | Failure]() for _ in numbers]
        self._turn = 0  # the worker that the next item comes from
        # A worker is ahead of the step that is settled by what it may prefetch, and by what `read` has taken of it meanwhile.
        ahead = steps_ahead(plan.layout.global_batch_size, plan.layout.lanes) if workers else 1
        others = multiprocessing.active_children()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # said by the command, once for all ranks
            loader = DataLoader(
                RowStream(plan, cursors, self._lane_rows, numbers, [receiving for receiving, _ in pipes], 2 * ahead + 2),
                batch_size=None,
                collate_fn=_as_it_is,
                num_workers=workers,
                prefetch_factor=ahead if workers else None,
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
        self._end_workers()
        for end in self._pipes:
            end.close()

    def _end_workers(self) -> None:
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
        """Kill workers that do not end soon: torch waits 5 s for each of them in turn."""
        self._leaving.wait()
        if not self._left.wait(SHUTDOWN_SECONDS):
            for process in self._processes:
                process.kill()  # it holds nothing that is not in a cursor

    @property
    def asked(self) -> NDArray[np.int64]:
        """int64 [lanes], rows that each lane is asked for in the next step; none after all have ended."""
        return self._lane_rows.asked(self.plan.layout.global_batch_size)

    def read(self) -> StepRows:
        """What the lanes of this rank give to the next step: fewer rows than asked for where one has ended."""
        rows = self.peek()
        for waiting in self._waiting:
            waiting.popleft()
        return rows

    def peek(self) -> StepRows:
        """What `read` gives next."""
        while not all(self._waiting):
            item = self._next_item()
            if item is not None and item.generation == self._generation:
                self._waiting[self._turn].append(item)
            self._turn = (self._turn + 1) % len(self._waiting)
        parts: list[StepRows] = []
        for item in [waiting[0] for waiting in self._waiting]:
            if isinstance(item, Failure):
                raise item.error
            parts.append(item)
        return merged(parts)

    def settle(self, given: NDArray[np.int64]) -> bool:
        """Whether the step that was read is whole, so that the next one comes; else it is dealt, and has to be read, again.

        given: int64 [lanes] rows of the lanes of all ranks, so that all ranks settle alike.
        """
        asked = self.asked
        if (given == asked).all():
            self._lane_rows = self._lane_rows.after(asked)
            return True
        ended = np.flatnonzero(given < asked)
        self._generation += 1
        deal = Deal(self._generation, self._lane_rows.step, ended.astype(np.int32), given[ended].astype(np.int32))
        for deals in self._deals:
            deals.send(deal)
        self._lane_rows = self._lane_rows.knowing(given, self.plan.layout.global_batch_size)
        for waiting in self._waiting:
            waiting.clear()
        return False

    def given(self, rows: StepRows) -> NDArray[np.int64]:
        """int64 [lanes], rows of each lane; 0 for those of other ranks."""
        given = np.zeros(self.plan.layout.lanes, dtype=np.int64)
        given[rows.lanes] = rows.given
        return given

    def __iter__(self) -> Iterator[StepRows]:
        return self

    def __next__(self) -> StepRows:
        """The next step; one without rows after all lanes have ended."""
        while True:
            rows = self.read()
            if self.settle(self.given(rows)):
                return rows

    def _next_item(self) -> StepRows | Failure | None:
        try:
            item: StepRows | Failure | None = next(self.items)
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):  # an error that the worker has raised names no process
                raise
            raise worker_died(error) from error
        return item


def worker_died(error: RuntimeError | MemoryError) -> TrainingError:
    """The error for a dead data worker, in one line; torch raises its own anywhere in the training process."""
    reason = str(error).split("\n", 1)[0].rstrip(". ")
    return TrainingError(f"a data worker died ({reason}): out of memory? Try fewer --workers")


def steps_ahead(batch: int, lanes: int) -> int:
    """Steps that a worker prefetches: at least a group of rows of each lane, which a lane packs together."""
    return max(LEAST_STEPS_AHEAD, -(-FEWEST_ROWS * lanes // batch))


def _as_it_is(item: Any) -> Any:
    return item


@dataclass(frozen=True)
class _WorkerInit:
    in_worker: Callable[[], None] | None

    def __call__(self, _worker: int) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker is one core; threads do not survive a fork
        os.environ["RAYON_NUM_THREADS"] = "1"  # of `fastokens`
        if self.in_worker is not None:
            self.in_worker()
