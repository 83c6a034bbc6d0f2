"""How many rows a run will read of each source, from the rows that an epoch of each has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stream_pretrain.data.lanes.mixture import Shares, parts_at


@dataclass(frozen=True)
class RowsOfRun:
    """An estimate: the numbers need not be whole."""

    steps: float
    """Infinity where no end of the run is known."""
    of_sources: tuple[float, ...]
    epochs_end_it: bool


def rows_of_run(
    schedule: Sequence[Shares],
    in_epoch: Sequence[float | None],
    max_epochs: Sequence[int | None],
    batch: int,
    max_steps: float | None,
) -> RowsOfRun:
    """Each source gives rows by its share until it ends; then the others divide its share.

    in_epoch: rows of each source; a source without a known number does not end here. batch: rows of a step.
    """
    most = math.inf if max_steps is None else max_steps
    limits = [
        math.inf if rows is None or epochs is None else rows * epochs for rows, epochs in zip(in_epoch, max_epochs, strict=True)
    ]
    given, step = [0.0] * len(limits), 0.0
    while step < most:
        parts = parts_at(schedule, int(step), [rows >= limit for rows, limit in zip(given, limits, strict=True)])
        if not parts:
            return RowsOfRun(step, tuple(given), epochs_end_it=True)
        a_step = [batch * part / sum(parts) for part in parts]
        ends = [(limit - rows) / more if more else math.inf for limit, rows, more in zip(limits, given, a_step, strict=True)]
        change = min((shares.from_step - step for shares in schedule if shares.from_step > step), default=math.inf)
        steps = min(*ends, change, most - step)
        if steps == math.inf:
            return RowsOfRun(math.inf, tuple(given), epochs_end_it=False)
        step += steps
        given = [
            limit if end == steps else rows + steps * more
            for limit, end, rows, more in zip(limits, ends, given, a_step, strict=True)
        ]
    return RowsOfRun(step, tuple(given), epochs_end_it=False)
