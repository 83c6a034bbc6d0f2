"""Rows as a model sees them, and what it has to predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from stream_pretrain.data.rows.packing import Rows


IGNORED = -100
"""Label of an empty slot."""


@dataclass(frozen=True)
class Labelled:
    """Rows as the model sees them, and what it has to predict.

    Shapes: R rows of L positions with P slots for labels.
    """

    input_ids: NDArray[np.int32]
    """[R, L], replacements included."""
    label_positions: NDArray[np.int32]
    """[R, P] positions in the row that have a label, ascending, padded with 0."""
    labels: NDArray[np.int32]
    """[R, P] what is to be predicted there, `IGNORED` where padded."""

    @classmethod
    def room(cls, rows: int, length: int, slots: int) -> Labelled:
        """Memory for the rows and their labels."""
        return cls(*(np.empty((rows, width), dtype=np.int32) for width in (length, slots, slots)))

    def cut(self, which: range) -> Labelled:
        """Neighbouring rows of these, as far as they are there."""
        here = slice(which.start, which.stop)
        return Labelled(self.input_ids[here], self.label_positions[here], self.labels[here])


class Draws(Protocol):
    """The random part of the labels of some rows."""

    def label(self, which: range, rate: float, out: Labelled | None = None) -> Labelled:
        """Label neighbouring rows, so large a share of their positions; each row as it would be alone.

        out: where to, in place of memory of its own.
        """


def flat_starts(rows: Rows) -> NDArray[np.int64]:
    """First position of each segment, counted over the rows one after another."""
    starts: NDArray[np.int64] = rows.segment_row.astype(np.int64) * rows.input_ids.shape[1] + rows.segment_start
    return starts


def filled(rows: Rows) -> NDArray[np.bool_]:
    """[R, L] positions that hold a segment."""
    fills: NDArray[np.bool_] = np.arange(rows.input_ids.shape[1], dtype=np.int32) < rows.filled[:, None]
    return fills


def row_edges(positions: NDArray[np.int64], row_count: int, length: int) -> NDArray[np.int64]:
    """[R + 1] where each row begins among ascending flat positions."""
    return np.searchsorted(positions, np.arange(row_count + 1) * length)


def lay_out(out: Labelled, input_ids: NDArray[np.int32], labelled: NDArray[np.int64], values: NDArray[np.int32]) -> Labelled:
    """Writes rows, and their labels, given by ascending flat position, to the front of their row's slots."""
    (row_count, length), slots = input_ids.shape, out.labels.shape[1]
    count = np.diff(row_edges(labelled, row_count, length)).astype(np.int32)
    used = np.arange(slots, dtype=np.int32) < count[:, None]
    row_starts = np.arange(row_count, dtype=np.int32) * np.int32(length)
    out.input_ids[:] = input_ids
    out.label_positions[:] = 0
    out.label_positions[used] = labelled.astype(np.int32) - row_starts.repeat(count)
    out.labels[:] = IGNORED
    out.labels[used] = values
    return out
