"""Rows that a lane tokenizes, packs and labels together, and its cursor after each of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.lanes.cursor import Cursor, Skipped
from stream_pretrain.data.rows.labels import Draws
from stream_pretrain.data.rows.packing import Rows
from stream_pretrain.data.rows.train_rows import TrainRows


@dataclass
class Group:
    """The next few rows of a window."""

    rows: Rows
    key: tuple[int, ...]
    """Key of the masks: (seed, position in the corpus), the same on any topology."""
    origins: NDArray[np.int64]
    """[S, 3] epoch, shard and offset in it of the document of each segment."""
    begin: Cursor
    """Before the first row, with the documents on the way to it counted."""
    end: Cursor
    """After the last row."""
    first: int
    """The first row that was not returned before; above 0 where a run resumes inside of the group."""
    skipped: list[Skipped]
    """Documents that were skipped on the way to that row."""
    begins: NDArray[np.bool_]
    """[S] whether a document begins with a segment."""
    content: tuple[int, int]
    """Bytes of the content of the window before the first row and up to the last, by the characters of the documents."""
    draws: Draws | None = None
    """The random part of the labels, once they are needed."""
    labelled: dict[float, TrainRows] = field(default_factory=dict)
    """The rows with labels, at the rate of their last request."""

    def __len__(self) -> int:
        return len(self.rows.input_ids)

    def cursor_after(self, rows: int) -> Cursor:
        """The cursor after this number of the rows."""
        if rows == len(self):
            return self.end
        begin, (before, after) = self.begin, self.content
        return begin._replace(
            taken=rows,
            rows=begin.rows + rows,
            documents=begin.documents + int(np.count_nonzero(self.begins[: self.rows.segments_of(range(rows)).stop])),
            window_bytes=before + (after - before) * rows // len(self),
        )
