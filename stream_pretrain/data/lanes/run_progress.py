"""The progress of a run that ends with its epochs, as a share of its rows.

Remaining rows are predicted from the remaining bytes of each source, and the rows per byte of its lanes so far. Lanes give
equally many rows, so one with fewer rows per byte has read more and will end first: up to the end of its first epoch, each lane
is predicted separately.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors

DAMPING = 0.05
"""Share of an epoch; a lane that has read less is assumed to be like the others rather than like what it has read."""


def counts_of(plan: StreamPlan, cursors: Mapping[int, LaneCursors]) -> NDArray[np.float64]:
    """[3, sources, lanes] rows that each lane has given, bytes it has read, and epochs it has completed; 0 for other lanes.

    Integers, so that the sum over ranks is exact. Empty where epochs do not end the run.
    """
    if not plan.epochs_end_it:
        return np.zeros((3, 0, 0))
    counts = np.zeros((3, len(plan.sources), plan.layout.lanes))
    for lane, of_lane in cursors.items():
        for number, cursor in enumerate(of_lane):
            counts[:, number, lane] = cursor.rows, cursor.bytes_read, cursor.epoch
    return counts


def progress(plan: StreamPlan, counts: NDArray[np.float64], step: int) -> float:
    """Approximate share of the rows of the run before a step; 0 where epochs do not end the run.

    counts: `counts_of` all lanes, before the step.
    """
    rows, read, epochs = counts
    if not (rows.any() and read.any()):
        return 0.0
    given = _sum(rows)
    left = [
        _rows_left(source, given / _sum(read), *of_source)
        for number, (source, *of_source) in enumerate(zip(plan.sources, rows, read, epochs, strict=True))
        if plan.has_share(number, step)
    ]
    return given / (given + math.fsum(left))


def _rows_left(
    source: SourcePlan, in_a_byte: float, rows: NDArray[np.float64], read: NDArray[np.float64], epochs: NDArray[np.float64]
) -> float:
    """Approximate rows that lanes will give of a source. in_a_byte: rows per byte of all sources so far."""
    of_lane = source.bytes_of_epoch / len(rows)
    to_come = np.maximum((source.max_epochs or 0) - epochs, 0)
    if not to_come.any():
        return 0.0
    damping = DAMPING * of_lane
    by_source = (_sum(rows) + damping * in_a_byte) / (_sum(read) + damping)
    by_lane = (rows + damping * by_source) / (read + damping)
    of_any = _sum(by_lane) / len(rows)
    # Lanes have about equal shares of an epoch; in a later one, a lane may have what any of them has now.
    now = np.where(to_come > 0, np.maximum(of_lane * (epochs + 1) - read, 0.0), 0.0)
    later = of_lane * np.maximum(to_come - 1, 0.0)
    if not (now.any() or later.any()):  # lanes that turn out to have more
        now = np.where(to_come > 0, 1.0, 0.0)
    weighed = _sum(now * np.where(epochs == 0, by_lane, of_any)) + _sum(later) * of_any
    bytes_left = max(0.0, source.bytes_of_epoch * (source.max_epochs or 0) - _sum(read))
    return bytes_left * weighed / (_sum(now) + _sum(later))


def _sum(values: NDArray[np.float64]) -> float:
    """Exact, and so the same on every machine."""
    return math.fsum(values.ravel().tolist())
