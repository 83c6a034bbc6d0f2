"""How full rows of a length would be, with the documents of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.lanes.group_sizes import full_group_rows
from stream_pretrain.data.rows.packing import Packing, place


@dataclass(frozen=True)
class Packed:
    """Rows of one length, as JSON shows them."""

    sequence_length: int
    rows: int
    tokens: int
    """In the rows, special tokens included."""
    real: float
    """Share of the positions that hold a token, special tokens included."""
    segments_per_row: float
    segments_per_document: float


def packed(
    windows: Sequence[NDArray[np.int64]], length: int, framing: int, packing: Packing, lanes: int
) -> tuple[Packed, NDArray[np.int64]]:
    """The documents of each window, placed as a lane does, in groups of rows; and the positions that each segment has."""
    rows = documents = 0
    of_segments = [np.empty(0, dtype=np.int64)]
    group = full_group_rows(length, lanes, 1.0)
    for lengths in windows:
        left = lengths[lengths > 0].tolist()
        documents += len(left)
        first = token = 0
        while first < len(left):
            # No more documents than the rows may hold: a lane tokenizes no more either.
            needed = int(np.searchsorted(np.cumsum(left[first:]), group * length + token)) + 1
            placements, (done, token) = place(left[first : first + needed], token, group, length, framing, packing)
            if not len(placements):
                break
            rows += len(np.unique(placements[:, 0]))
            of_segments.append(placements[:, 3] - placements[:, 2] + framing)
            first += done
    lengths = np.concatenate(of_segments)
    tokens, segments = int(lengths.sum()), len(lengths)
    shown = Packed(length, rows, tokens, tokens / max(1, rows * length), segments / max(1, rows), segments / max(1, documents))
    return shown, lengths
