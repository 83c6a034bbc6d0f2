"""Documents to rows: which tokens of which document go where.

Documents are split, never truncated. Every segment has its own special tokens.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Packing = Literal["best_fit", "concat", "none"]

SMALLEST_FRAGMENT = 16
"""Documents are not split into fragments of fewer tokens."""

FILLED_WITH_WHOLE = 0.985
"""Share of the positions that best fit fills with documents of its choice, so that all of them fit."""


@dataclass(frozen=True)
class Rows:
    """Packed rows, and the origins of their segments."""

    input_ids: NDArray[np.int32]
    """[R, L], padded after the last segment of a row."""
    segment_row: NDArray[np.int32]
    """[S] row of each segment; segments are in order of (row, start)."""
    segment_start: NDArray[np.int32]
    """[S] first position of the segment in its row."""
    segment_length: NDArray[np.int32]
    """[S] positions of the segment, with its special tokens."""
    segment_document: NDArray[np.int32]
    """[S] index of the document among those packed together."""
    segment_token: NDArray[np.int32]
    """[S] index of the first token of the segment in the document."""

    def segments_of(self, which: range) -> slice:
        """Indices of the segments of neighbouring rows."""
        return slice(self._first_segments[which.start], self._first_segments[which.stop])

    @cached_property
    def _first_segments(self) -> list[int]:
        """First segment of each row, and the number of segments."""
        edges: list[int] = np.searchsorted(self.segment_row, np.arange(len(self.input_ids) + 1)).tolist()
        return edges


class Placement(NamedTuple):
    """Tokens [start, stop) of a document, placed in a row."""

    row: int
    document: int
    start: int
    stop: int


def place(
    lengths: Sequence[int], first_token: int, rows: int, capacity: int, framing: int, packing: Packing
) -> tuple[list[Placement], tuple[int, int]]:
    """Place documents in rows; returns the placements and the first (document, token) that was not placed.

    lengths: tokens of each document, in reading order. `first_token` of the first were placed before.
    capacity: positions of a row; framing: special tokens of a segment.

    best_fit: the documents that fit are placed largest first into the fullest row with room (best-fit decreasing, Johnson
    1973); one that no row has room for is split; the following documents, in order, fill the gaps and are split as needed.
    At the end of the documents, only rows that they fill are begun. concat: rows are filled in order. none: a row has one
    document, or a part of one. Only the last document is left unfinished.
    """
    assert capacity > framing
    smallest = min(SMALLEST_FRAGMENT, max(1, (capacity - framing) // 2))
    placements: list[Placement] = []
    free = [(capacity, row) for row in range(rows)]
    document, token = 0, first_token
    if packing == "best_fit":
        positions = sum(lengths) - first_token + framing * len(lengths)
        free = free[: max(1, min(rows, positions // capacity))]
        document, placements, free = _place_best(lengths, first_token, free, capacity, framing, smallest)
        token = 0 if document else first_token

    for left, row in free:
        while document < len(lengths):
            rest = lengths[document] - token
            take = _most_of(rest, left - framing, smallest)
            if not take:
                break
            placements.append(Placement(row, document, token, token + take))
            left -= take + framing
            document, token = (document + 1, 0) if take == rest else (document, token + take)
            if take < rest or packing == "none":
                break
    return placements, (document, token)


def _most_of(rest: int, room: int, smallest: int) -> int:
    """How many of the `rest` tokens of a document to place: all, a fragment that leaves another, or none."""
    if rest <= room:
        return rest
    take = min(room, rest - smallest)
    return take if take >= smallest else 0


def _place_best(
    lengths: Sequence[int], first_token: int, free: list[tuple[int, int]], capacity: int, framing: int, smallest: int
) -> tuple[int, list[Placement], list[tuple[int, int]]]:
    """Place as many of the first documents as fit into the rows, whole or split; returns their number and the free positions.

    free: (free positions, row) of each row; returned in descending order. smallest: the fewest tokens of a fragment.
    """
    widest = capacity - framing
    whole = _documents_that_fit(lengths, first_token, FILLED_WITH_WHOLE * len(free) * capacity, widest, framing)
    smallest_gap = smallest + framing
    starts = [first_token] + [0] * (len(lengths) - 1)
    while True:
        left = sorted(free)
        placements = []
        for document in sorted(range(whole), key=lambda d: starts[d] - lengths[d]):
            token, stop = starts[document], lengths[document]
            while (fitting := bisect_left(left, (stop - token + framing,))) == len(left):  # no row has room for the rest
                room, row = left.pop()
                take = _most_of(stop - token, room - framing, smallest)
                if not take:
                    break
                gap = room - framing - take
                if 0 < gap < smallest_gap:
                    take = max(take - (smallest_gap - gap), smallest)  # then a fragment can fill it
                placements.append(Placement(row, document, token, token + take))
                insort(left, (room - take - framing, row))
                token += take
            else:
                room, row = left.pop(fitting)
                placements.append(Placement(row, document, token, stop))
                insort(left, (room - (stop - token) - framing, row))
                continue
            break
        else:
            return whole, placements, left[::-1]
        whole -= 1  # the rows are too fragmented for the last one, which is left for the gaps


def _documents_that_fit(lengths: Sequence[int], first_token: int, room: float, widest: int, framing: int) -> int:
    """How many documents, in order, certainly fit even if some are split."""
    for document, length in enumerate(lengths):
        if document == 0:
            length -= first_token
        room -= length + framing * (1 + length // widest)
        if room < 0:
            return document
    return len(lengths)


def assemble(
    placements: Sequence[Placement],
    ids: NDArray[np.int32],
    offsets: NDArray[np.int64],
    capacity: int,
    prefix: Sequence[int],
    suffix: Sequence[int],
    pad: int,
) -> Rows:
    """Rows from placements. ids: int32 [tokens] of all documents; offsets: int64 [documents + 1] into ids.

    A plain loop: for the twenty or so segments of a group of short rows, vectorised numpy takes twice as long.
    """
    before, after = np.array(prefix, dtype=np.int32), np.array(suffix, dtype=np.int32)
    padding = np.full(capacity, pad, dtype=np.int32)
    begins = offsets.tolist()
    parts = [padding[:0]]
    segments: list[int] = []
    by_row = itertools.groupby(sorted(placements, key=itemgetter(0)), key=itemgetter(0))
    for row, (_, placed) in enumerate(by_row):  # rows without a placement are left out
        filled = 0
        for _, document, token, stop in placed:
            begin, length = begins[document], len(prefix) + stop - token + len(suffix)
            parts += before, ids[begin + token : begin + stop], after
            segments += row, filled, length, document, token
            filled += length
        parts.append(padding[filled:])
    columns = np.array(segments, dtype=np.int32).reshape(-1, 5).T.copy()
    return Rows(np.concatenate(parts).reshape(-1, capacity), *columns)


def gather(runs: Sequence[tuple[Rows, range]], capacity: int) -> Rows:
    """Concatenate runs of neighbouring rows, each given as (rows, indices)."""
    cuts = [(rows, rows.segments_of(which)) for rows, which in runs]
    before = itertools.accumulate((len(which) for _, which in runs), initial=0)
    empty = np.empty(0, dtype=np.int32)

    def joined(name: str) -> NDArray[np.int32]:
        return np.concatenate([empty, *(getattr(rows, name)[cut] for rows, cut in cuts)])

    moved = [first - which.start for first, (_, which) in zip(before, runs, strict=False)]
    return Rows(
        input_ids=np.concatenate(
            [empty.reshape(0, capacity), *(rows.input_ids[which.start : which.stop] for rows, which in runs)]
        ),
        segment_row=np.concatenate(
            [empty, *(rows.segment_row[cut] + by for (rows, cut), by in zip(cuts, moved, strict=True))], dtype=np.int32
        ),
        segment_start=joined("segment_start"),
        segment_length=joined("segment_length"),
        segment_document=joined("segment_document"),
        segment_token=joined("segment_token"),
    )
