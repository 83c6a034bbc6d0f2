"""The rows of a step that this rank trains on: as many as every other rank, whoever read them.

    read        the rows of this rank's lanes
    agree       how many rows each lane gave, where lanes can end; an incomplete step is read again
    exchange    ranks that read more than their part send rows to those that read less

Rows are in the order of the lanes; each rank trains on an equal part of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stream_pretrain.data.lanes.row_layout import part_of
from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_state import LaneCursors
from stream_pretrain.data.rows.train_rows import Int32s, TrainRows, joined
from stream_pretrain.errors import StreamPretrainError
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import Interrupted, StopRequest
from stream_pretrain.training.ranks.watchdog import Watchdog


@dataclass(frozen=True)
class NextRows:
    """The rows of the next step."""

    read: StepRows
    """By this rank."""
    trained: TrainRows
    """By this rank."""
    interrupted: bool
    """Whether a signal ended the wait of this rank for data."""
    have_ended: bool
    """There is no such step: no rank has a row for it."""


def next_rows(stream: StepStream, ranks: Ranks, stop: StopRequest, watchdog: Watchdog) -> NextRows:
    """Read the next step, and exchange its rows with the other ranks.

    An interrupted rank has no rows, and takes part in the step to its end; where all agree on every step, all leave.
    Raises: Interrupted for a single rank, or where all leave; StreamPretrainError.
    """
    while True:
        read, interrupted = rows_read(stream, ranks, stop, watchdog)
        given = stream.requested
        if stream.plan.can_end:
            with watchdog.stage("agreeing on rows with the other ranks"):
                given = _given_by_all(stream.given(read), ranks, interrupted=interrupted)
        if stream.settle(given):
            with watchdog.stage("exchanging rows with the other ranks"):
                trained = _exchanged(read.trained, given, ranks, stream.memory)
            return NextRows(read, trained, interrupted, have_ended=not given.any())


def rows_read(
    stream: StepStream, ranks: Ranks, stop: StopRequest, watchdog: Watchdog, *, peek: bool = False
) -> tuple[StepRows, bool]:
    """What this rank reads of the next step; nothing, and True, where a signal ended its wait for data.

    peek: leave it to be read again. Raises: Interrupted where this rank is alone; StreamPretrainError.
    """
    try:
        with watchdog.stage("waiting for data"), stop.interruptible():
            return stream.peek() if peek else stream.read(), False
    except StreamPretrainError as error:
        if ranks.world == 1:
            raise  # with its cause
        raise ranks.named(error) from error
    except Interrupted:
        if ranks.world == 1:
            raise
        return stream.nothing, True


def cursors_of_all_lanes(cursors: Sequence[LaneCursors], ranks: Ranks) -> list[LaneCursors]:
    """The cursors of each lane from the rank that reads it. Called by all ranks."""
    own = part_of(range(len(cursors)), ranks.index, ranks.world)
    return [lane for of_rank in ranks.gather(cursors[own.start : own.stop]) for lane in of_rank]


def _given_by_all(given: NDArray[np.int64], ranks: Ranks, *, interrupted: bool) -> NDArray[np.int64]:
    """int64 [lanes], rows that each lane gave. Raises: Interrupted where a rank was."""
    if ranks.world == 1:
        return given
    counts = np.append(given, int(interrupted))
    ranks.sum_on_cpu(torch.from_numpy(counts))
    if counts[-1]:
        raise Interrupted
    return counts[:-1]


def _exchanged(own: TrainRows, given: NDArray[np.int64], ranks: Ranks, memory: Callable[[int], Int32s]) -> TrainRows:
    """The rows that this rank trains on, of those that the lanes of all ranks gave, in memory that goes to the device.

    An interrupted rank sends none.
    """
    if ranks.world == 1:
        return own
    rows = range(int(given.sum()))
    trained = [part_of(rows, rank, ranks.world) for rank in range(ranks.world)]
    lanes = [part_of(range(len(given)), rank, ranks.world) for rank in range(ranks.world)]
    ends = np.cumsum([0, *(given[of_rank.start : of_rank.stop].sum() for of_rank in lanes)]).tolist()
    read = [range(begin, end) for begin, end in itertools.pairwise(ends)]

    def shared(reader: int, trainer: int) -> range:
        """Rows that `reader` reads and `trainer` trains on, counted from the first row of the reader."""
        first = read[reader].start
        both = slice(max(0, trained[trainer].start - first), max(0, trained[trainer].stop - first))
        return range(*both.indices(len(read[reader])))

    others = [rank for rank in range(ranks.world) if rank != ranks.index]
    outgoing = {rank: own.cut(which) for rank in others if (which := shared(ranks.index, rank))}
    parts = ranks.exchange(outgoing, [rank for rank in others if shared(rank, ranks.index)])
    parts[ranks.index] = own.cut(shared(ranks.index, ranks.index))
    return joined([(parts[rank], range(len(parts[rank]))) for rank in sorted(parts)], memory)
