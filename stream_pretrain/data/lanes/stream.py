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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stream_pretrain.data.lanes.lane import Lane
from stream_pretrain.data.lanes.readers import Readers
from stream_pretrain.data.lanes.source_lane import GROUP_ROWS
from stream_pretrain.data.lanes.step_rows import StepRows, merged, step_of
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors
from stream_pretrain.data.transport.store_memory import StoreMemory
from stream_pretrain.errors import StreamPretrainError, TrainingError

LEAST_STEPS_AHEAD = 4

LEAVE_SECONDS = 0.5
"""Workers that have not left by themselves after so long, such as those that wait for a server, are killed."""


class RowStream(IterableDataset[StepRows | StreamPretrainError]):
    """The rows of a rank from given cursors on; endless, with empty items once its lanes have ended."""

    def __init__(self, plan: StreamPlan, cursors: Sequence[LaneCursors], rank: int, world: int) -> None:
        assert len(cursors) == plan.layout.lanes
        self.plan = plan
        self.cursors = tuple(cursors)
        self.rank = rank
        self.world = world

    def __iter__(self) -> Iterator[StepRows | StreamPretrainError]:
        worker = get_worker_info()
        index, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        numbers = lanes_of(self.plan.layout.lanes, self.rank, self.world)[index::workers]
        try:
            engine = self.plan.encoder.build()
            memory = StoreMemory()
            readers = [Readers(source, memory) for source in self.plan.sources]
            lanes = [Lane(self.plan, number, engine, readers, self.cursors[number]) for number in numbers]
            while True:
                yield step_of(lanes, self.plan)
        except StreamPretrainError as error:
            yield error  # raised in the training process, in one line rather than behind a worker's traceback


def lanes_of(lanes: int, rank: int, world: int) -> list[int]:
    """Numbers of the lanes of a rank: dealt round-robin."""
    return list(range(rank, lanes, world))


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
                prefetch_factor=steps_ahead(plan.layout.rows_per_lane) if workers else None,
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
