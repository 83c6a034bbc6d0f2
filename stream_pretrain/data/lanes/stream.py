"""The rows of every step, read by the data workers of this rank, with the cursors after them.

Lanes are dealt to ranks, and a rank's lanes to its workers. A worker gives one item a step: as many rows of its lanes as the
least-rows rule asks for, and where those lanes stand after them. The trainer takes one item of each worker a step and keeps the
cursors of what it has trained on; what workers have read ahead is in no cursor, so nothing is drained and nothing lost.

Where a lane ends, its worker finds out when it asks for more rows than there are: it gives those and reads no further. The
trainers agree on what each lane has given (`StepStream.settle`), and the step is dealt again to all lanes. Workers hold the
rows of the steps that this may come to, so nothing is read or tokenized twice; items that were made before are dropped.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Self

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.lanes.lane import Lane, Place
from stream_pretrain.data.lanes.readers import Readers
from stream_pretrain.data.lanes.row_layout import part_of
from stream_pretrain.data.lanes.rows_per_lane import LaneRows
from stream_pretrain.data.lanes.step_rows import StepRows, merged, step_of
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors
from stream_pretrain.data.lanes.worker_lanes import lanes_of_workers
from stream_pretrain.data.lanes.workers import AHEAD_BYTES, InProcess, SharedMemory, Workers, cannot_start
from stream_pretrain.data.rows.train_rows import Int32s, int32s
from stream_pretrain.data.transport.store_memory import StoreMemory
from stream_pretrain.errors import StreamPretrainError

LEAST_STEPS_AHEAD = 8


@dataclass(frozen=True)
class Deal:
    """A message to the workers: deal a step again, with the lanes that turned out to end in it.

    It has only these: a worker may not receive it before the trainer goes on, and a pipe holds 64 KiB.
    """

    generation: int
    step: int
    ended: NDArray[np.int32]
    """Lanes that gave fewer rows than requested..."""
    given: NDArray[np.int32]
    """...and how many rows."""


@dataclass(frozen=True)
class Failure:
    """What a worker gives in place of the rows of a step that it cannot read, and of all that come after it; or its death."""

    generation: int
    error: Exception


class RowStream:
    """The rows of the lanes of a worker from given cursors on; endless, with empty items after its lanes have ended."""

    def __init__(
        self,
        plan: StreamPlan,
        cursors: Sequence[LaneCursors],
        lane_rows: LaneRows,
        numbers: Sequence[int],
        deals: Connection,
        steps_held: int,
    ) -> None:
        """numbers: lanes of the worker. deals: pipe for a `Deal`."""
        assert len(cursors) == plan.layout.lanes
        self.plan = plan
        self.cursors = tuple(cursors)
        self.lane_rows = lane_rows
        self.numbers = numbers
        self.deals = deals
        self.steps_held = steps_held

    def __iter__(self) -> Iterator[StepRows | Failure | None]:
        try:
            engine = self.plan.encoder.build()
            memory = StoreMemory()
            readers = [Readers(source, memory, len(self.numbers)) for source in self.plan.sources]
            lanes = [Lane(self.plan, number, engine, readers, self.cursors[number]) for number in self.numbers]
        except StreamPretrainError as error:
            while True:  # a worker that left would leave the trainer with items out of turn
                yield Failure(0, error)
        yield from self._steps(lanes)

    def _steps(self, lanes: Sequence[Lane]) -> Iterator[StepRows | Failure | None]:
        """The rows of each step; None while a lane has ended and the step is not dealt again."""
        batch, numbers, deals = self.plan.layout.global_batch_size, [lane.number for lane in lanes], self.deals
        generation, lane_rows = 0, self.lane_rows
        held: deque[tuple[LaneRows, list[Place]]] = deque()  # before each step that may be dealt again
        while True:
            is_short, failure = False, None
            while not is_short and not deals.poll():
                if self.plan.can_end:
                    held.append((lane_rows, [lane.place for lane in lanes]))
                if len(held) > self.steps_held:
                    held.popleft()
                    for lane, place in zip(lanes, held[0][1], strict=True):
                        lane.forget(place)
                requested = lane_rows.requested(batch)
                ends = (lane_rows.left == requested)[numbers].tolist()
                try:
                    rows = step_of(lanes, requested[numbers].tolist(), ends, self.plan, lane_rows.step, generation)
                except StreamPretrainError as error:
                    # Raised in the training process, at its step: one line rather than a worker's traceback.
                    failure = Failure(generation, error)
                    break
                yield rows
                is_short = bool((rows.given < requested[numbers]).any())
                lane_rows = lane_rows.after(requested)
            while not deals.poll():
                yield failure
            deal: Deal = deals.recv()
            lane_rows, places = held.pop()
            while lane_rows.step != deal.step:
                lane_rows, places = held.pop()
            for lane, place in zip(lanes, places, strict=True):
                lane.return_to(place)
            given = lane_rows.requested(batch)
            given[deal.ended] = deal.given
            generation, lane_rows = deal.generation, lane_rows.knowing(given, batch)


class StepStream:
    """The steps of a rank, one `StepRows` each, for the training process.

    With one rank, it is iterated over. Several ranks `read` what their lanes give to a step, agree on what all have given, and
    `settle` it: the step is complete, or it is read again.
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
        memory: Callable[[int], Int32s] = int32s,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        """step: steps that lie before these cursors. in_worker: called first in every worker process.

        memory: of what a model is trained on.
        """
        self.plan = plan
        self.memory = memory
        self.nothing = step_of([], [], [], plan)
        """A step without rows."""
        self._lane_rows = LaneRows.before(step, cursors)
        self.requested = self._lane_rows.requested(plan.layout.global_batch_size)
        """int64 [lanes], rows that are requested of each lane in the next step; none after all have ended."""
        self._generation = 0
        own = part_of(range(plan.layout.lanes), rank, world)
        epochs = [min(lane[source].epoch for lane in cursors) for source in range(len(plan.sources))]
        dealt = lanes_of_workers(plan.sources, own, max(workers, 1), epochs)
        numbers = [lanes for lanes in dealt if lanes] or [[]]  # a worker without lanes is not started
        try:
            pipes = [multiprocessing.Pipe(duplex=False) for _ in numbers]
        except OSError as error:
            raise cannot_start(error) from error
        self._pipes = [end for pipe in pipes for end in pipe]
        self._deals = [sending for _, sending in pipes]
        self._items: list[StepRows | Failure | None] = [None for _ in numbers]
        """Of the next step, from each worker, until they are merged."""
        self._merged: StepRows | None = None
        """The next step."""
        ahead = steps_ahead(sum(source.group_rows for source in plan.sources), plan.layout.lanes, plan.layout.global_batch_size)
        # A worker makes an item more than it may be ahead, and the step that was read last may be dealt again.
        held = ahead + 2 if workers else 1
        streams = [
            RowStream(plan, cursors, self._lane_rows, part, receiving, held)
            for part, (receiving, _) in zip(numbers, pipes, strict=True)
        ]
        self._workers: Workers[StepRows | Failure | None] | InProcess[StepRows | Failure | None] = (
            Workers(streams, _memories(plan, numbers, ahead, warn), ahead, in_worker) if workers else InProcess(streams)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()
        for end in self._pipes:
            end.close()

    def read(self) -> StepRows:
        """The rows of the lanes of this rank in the next step: fewer than requested where one has ended."""
        rows, self._merged = self.peek(), None
        return rows

    def peek(self) -> StepRows:
        """What `read` gives next."""
        self._receive(wait=True)
        for item in self._items:
            if isinstance(item, Failure):
                raise item.error
        assert self._merged is not None
        return self._merged

    def prepare(self) -> None:
        """Have ready what `read` gives next, if the workers have: for while the device computes, and the host would wait."""
        self._receive(wait=False)

    def _receive(self, *, wait: bool) -> None:
        """Receive the next step, unless a worker has failed. wait: also for items that were not sent yet."""
        if self._merged is not None:
            return
        for worker in range(len(self._items)):
            while self._items[worker] is None:
                if any(isinstance(item, Failure) for item in self._items) or not (wait or self._workers.has_sent(worker)):
                    return
                try:
                    self._items[worker] = self._received(worker)
                except Exception as error:
                    if wait:
                        raise
                    # Raised with the step that it is of.
                    self._items[worker] = Failure(self._generation, error)
        parts = [item for item in self._items if isinstance(item, StepRows)]
        if len(parts) == len(self._items):
            # What a worker has made lies in memory that the next of its items takes.
            self._merged = merged(parts, self.memory) if isinstance(self._workers, Workers) else parts[0]
            for worker in range(len(parts)):
                self._workers.release(worker)
                self._items[worker] = None

    def settle(self, given: NDArray[np.int64]) -> bool:
        """Whether the step that was read is complete; else it is dealt again, and has to be read again.

        given: int64 [lanes] rows of the lanes of all ranks, so that all ranks settle alike.
        """
        batch, is_complete = self.plan.layout.global_batch_size, bool((given == self.requested).all())
        if is_complete:
            self._lane_rows = self._lane_rows.after(self.requested)
        else:
            self._deal_again(given)
        self.requested = self._lane_rows.requested(batch)
        return is_complete

    def _deal_again(self, given: NDArray[np.int64]) -> None:
        ended = np.flatnonzero(given < self.requested)
        self._generation += 1
        deal = Deal(self._generation, self._lane_rows.step, ended.astype(np.int32), given[ended].astype(np.int32))
        for deals in self._deals:
            deals.send(deal)
        self._lane_rows = self._lane_rows.knowing(given, self.plan.layout.global_batch_size)

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

    def _received(self, worker: int) -> StepRows | Failure | None:
        """What a worker gives next; None for what was made before the last deal."""
        item = self._workers.receive(worker)
        if item is None or item.generation != self._generation:
            self._workers.release(worker)
            return None
        return item


def steps_ahead(group_rows: int, lanes: int, batch: int) -> int:
    """Steps that a worker may be ahead: as many as a full group of each lane covers, since it tokenizes one at a time.

    group_rows: of all sources.
    """
    return max(LEAST_STEPS_AHEAD, -(-group_rows * lanes // batch))


def _memories(
    plan: StreamPlan, numbers: Sequence[Sequence[int]], ahead: int, warn: Callable[[str], None]
) -> Sequence[SharedMemory | None]:
    """For the items of each worker, which has these lanes."""
    layout, slots = plan.layout, plan.objective.label_slots(plan.layout.sequence_length)
    memories: list[SharedMemory] = []
    try:
        for lanes in numbers:
            rows = -(-layout.global_batch_size * len(lanes) // layout.lanes)
            item = rows * 8 * (layout.sequence_length + slots)  # int32, and room for segments and origins
            memories.append(SharedMemory.of(min(AHEAD_BYTES, ahead * item + 65536)))
    except OSError as error:
        warn(f"rows come from the data workers through pipes, which is slower: no shared memory ({error.strerror})")
    return [*memories, *[None] * (len(numbers) - len(memories))]
