"""How many rows each lane gives to a step: the least-rows rule.

A step takes its rows one at a time from the lane that has given the fewest rows in the run; ties go to the lower number. A lane
that ends gives what it has left, and the others the rest. So every step but the last of a run is full, and what a lane gives
does not depend on when its end was found: a step that assumed more rows is dealt again, with those that the lane has.

Two lanes, a batch of 4; lane 0 turns out to have 3 rows in all:

    step    given before    requested    lane 0 has left    rows of the step
    0       0, 0            2, 2         not known          2, 2
    1       2, 2            2, 2         1: dealt again     1, 3
    2       3, 5            0, 4         0                  0, 4
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.lanes.cursor import Cursor

ENDLESS = np.iinfo(np.int64).max // 2
"""Rows left in a lane whose end was not found."""


@dataclass(frozen=True)
class LaneRows:
    """The state that decides how many rows each lane gives to a step: equal on every rank and in every worker."""

    step: int
    """The step, counted from 0."""
    given: NDArray[np.int64]
    """[lanes] rows that each has given in the run before the step."""
    left: NDArray[np.int64]
    """[lanes] rows that each has left before the step, `ENDLESS` where its end was not found."""

    @classmethod
    def before(cls, step: int, cursors: Sequence[Sequence[Cursor]]) -> LaneRows:
        """The state before a step, with all lanes at these cursors."""
        given = np.array([sum(cursor.rows for cursor in lane) for lane in cursors], dtype=np.int64)
        return cls(step, given, np.full(len(given), ENDLESS))

    def requested(self, batch: int) -> NDArray[np.int64]:
        """int64 [lanes] rows that are requested of each lane: `batch` in total, or all that are left."""
        # The highest level to which all lanes can be filled.
        low, high = int(self.given.min()) + batch // len(self.given), int(self.given.max()) + batch
        while low < high:
            middle = (low + high + 1) // 2
            if int(self._filled_to(middle).sum()) <= batch:
                low = middle
            else:
                high = middle - 1
        rows = self._filled_to(low)
        next_in_line = np.flatnonzero((self.given + rows == low) & (rows < self.left))
        rows[next_in_line[: batch - int(rows.sum())]] += 1
        return rows

    def _filled_to(self, level: int) -> NDArray[np.int64]:
        """Rows of each lane when all that can are filled up to `level` in the run."""
        return np.minimum(np.maximum(level - self.given, 0), self.left)  # `np.clip` takes three times as long

    def after(self, rows: NDArray[np.int64]) -> LaneRows:
        """The state before the next step, when the lanes have given these rows."""
        left = np.where(self.left == ENDLESS, ENDLESS, self.left - rows)
        return LaneRows(self.step + 1, self.given + rows, left)

    def knowing(self, rows: NDArray[np.int64], batch: int) -> LaneRows:
        """The state before the same step, when lanes that gave fewer rows than requested have no more than these."""
        return replace(self, left=np.where(rows < self.requested(batch), rows, self.left))
