"""Documents to rows: which tokens of which document go where.

Documents are split, never truncated. Every segment has its own special tokens.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.rows import native

Packing = Literal["best_fit", "concat", "none"]

SMALLEST_FRAGMENT = 16
"""Documents are not split into fragments of fewer tokens."""

MOST_ROWS_COMPILED = 1024
"""Into more rows, Python places documents faster: the compiled loop looks at every row for each."""

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
    def filled(self) -> NDArray[np.int32]:
        """[R] positions of each row that hold a segment: padding is at its end."""
        filled = np.bincount(self.segment_row, weights=self.segment_length, minlength=len(self.input_ids))
        return filled.astype(np.int32)

    @cached_property
    def _first_segments(self) -> list[int]:
        """First segment of each row, and the number of segments."""
        edges: list[int] = self.segment_row.searchsorted(np.arange(len(self.input_ids) + 1, dtype=np.int32)).tolist()
        return edges


def place(
    lengths: Sequence[int] | NDArray[np.int64], first_token: int, rows: int, capacity: int, framing: int, packing: Packing
) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """Place documents in rows; returns the placements and the first (document, token) that was not placed.

    A placement is (row, document, start, stop): tokens [start, stop) of a document; the placements are int64 [S, 4].
    lengths: tokens of each document, in reading order. `first_token` of the first were placed before.
    capacity: positions of a row; framing: special tokens of a segment.

    best_fit: the documents that fit are placed largest first into the fullest row with room (best-fit decreasing, Johnson
    1973); one that no row has room for is split; the following documents, in order, fill the gaps and are split as needed.
    At the end of the documents, only rows that they fill are begun. concat: rows are filled in order. none: a row has one
    document, or a part of one. Only the last document is left unfinished.
    """
    assert capacity > framing
    rests = np.array(lengths, dtype=np.int64)
    if first_token:
        rests[:1] -= first_token
    smallest = min(SMALLEST_FRAGMENT, max(1, (capacity - framing) // 2))
    most = 1 if packing == "none" else len(rests)
    if packing == "best_fit":
        positions = int(rests.sum()) + framing * len(rests)
        rows = max(1, min(rows, positions // capacity))
        # How many documents, in order, certainly fit even if some are split.
        needed = (rests + framing * (1 + rests // (capacity - framing))).cumsum()
        whole = int(needed.searchsorted(FILLED_WITH_WHOLE * rows * capacity, side="right"))
        while True:
            placements, left_over, over = _placed(rests, _stable_order(-rests[:whole]), rows, capacity, framing, smallest, most)
            if not over:
                break
            whole = min(whole - 1, int(needed.searchsorted(needed[whole - 1] - over)))  # the last are left for the gaps
    else:
        placements, left_over, _ = _placed(rests, None, rows, capacity, framing, smallest, most)
    if first_token:
        placements[placements[:, 1] == 0, 2:] += first_token
    return placements, left_over if left_over[0] else (0, first_token + left_over[1])


def _stable_order(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the values in ascending order; equal ones keep theirs. Several times as fast as a stable `argsort`."""
    keys = values << 32 | np.arange(len(values))
    keys.sort()
    keys &= 0xFFFFFFFF
    return keys


def _placed(
    lengths: NDArray[np.int64],
    largest_first: NDArray[np.int64] | None,
    rows: int,
    capacity: int,
    framing: int,
    smallest: int,
    most: int,
) -> tuple[NDArray[np.int64], tuple[int, int], int]:
    """Placements of the first documents, largest first by best fit, and of those after them in order, to the end of the rows.

    largest_first: None where all are placed in order. smallest: the fewest tokens of a fragment. most: documents of a row.
    Returns the placements, the first (document, token) that was not placed, and how many tokens of the first documents the
    rows are too fragmented for: then the others mean nothing.
    """
    order = np.empty(0, dtype=np.int64) if largest_first is None else largest_first
    if native.compiled is not None and rows <= MOST_ROWS_COMPILED:
        placements = np.empty((2 * (len(lengths) + rows + 1), 4), dtype=np.int64)
        free = np.full(rows, capacity, dtype=np.int64)
        count, over, *left_over = native.compiled.place(
            lengths, order, free, framing, smallest, most, largest_first is not None, placements
        )
        return placements[:count], tuple(left_over), over
    placing = _Placing(rows, capacity, framing, smallest)
    over = sum(placing.place_best(document, int(lengths[document])) for document in order.tolist())
    left_over = (0, 0)
    if not over:
        emptiest_first = placing.free[::-1] if largest_first is not None else placing.free
        left_over = placing.fill(emptiest_first, lengths.tolist(), len(order), most)
    return np.array(placing.placements, dtype=np.int64).reshape(-1, 4), left_over, over


class _Placing:
    """The same as `_native.c`, several times slower."""

    def __init__(self, rows: int, capacity: int, framing: int, smallest: int) -> None:
        self.framing = framing
        self.smallest = smallest
        self.free = [(capacity, row) for row in range(rows)]
        """(free positions, row) in ascending order."""
        self.placements: list[tuple[int, int, int, int]] = []

    def place_best(self, document: int, length: int) -> int:
        """Place a document in the fullest row with room, or in parts where none has; returns the tokens that are left of it."""
        token = 0
        while (which := bisect_left(self.free, (length - token + self.framing,))) == len(self.free):
            room = self.free[-1][0] - self.framing
            take = self._most_of(length - token, room)
            if room <= 0 or take == 0:
                return length - token
            if 0 < (gap := room - take) < self.smallest + self.framing:  # a fragment can fill a larger one
                take = max(take - (self.smallest + self.framing - gap), self.smallest)
            self._put(-1, document, token, token + take)
            token += take
        self._put(which, document, token, length)
        return 0

    def fill(self, free: Sequence[tuple[int, int]], lengths: Sequence[int], document: int, most: int) -> tuple[int, int]:
        """Fill rows, at most `most` documents in each, with the documents in order from one on.

        Returns the first (document, token) that was not placed.
        """
        token = 0
        for room, row in free:
            for _ in range(most):
                if document == len(lengths):
                    return document, token
                rest = lengths[document] - token
                take = self._most_of(rest, room - self.framing)
                if take == 0:
                    break
                self.placements.append((row, document, token, token + take))
                room -= take + self.framing
                token += take
                if take < rest:
                    break
                document, token = document + 1, 0
        return document, token

    def _put(self, which: int, document: int, start: int, stop: int) -> None:
        free, row = self.free.pop(which)
        insort(self.free, (free - (stop - start) - self.framing, row))
        self.placements.append((row, document, start, stop))

    def _most_of(self, rest: int, room: int) -> int:
        """How many of the `rest` tokens of a document to place: all, a fragment that leaves another, or none."""
        if rest <= room:
            return rest
        take = min(room, rest - self.smallest)
        return take if take >= self.smallest else 0


def assemble(
    placements: NDArray[np.int64],
    ids: NDArray[np.int32],
    offsets: NDArray[np.int64],
    capacity: int,
    prefix: Sequence[int],
    suffix: Sequence[int],
    pad: int,
) -> Rows:
    """Rows from placements [S, 4]. ids: int32 [tokens] of all documents; offsets: int64 [documents + 1] into ids.

    Rows that nothing was placed in are left out. The segments of a row stand in the order they were placed in.
    """
    placed = placements[_stable_order(placements[:, 0])]
    if native.compiled is not None:
        rows = np.count_nonzero(placed[1:, 0] != placed[:-1, 0]) + len(placed[:1])
        grid, segments = np.empty((rows, capacity), dtype=np.int32), np.empty((5, len(placed)), dtype=np.int32)
        special = (np.array(tokens, dtype=np.int32) for tokens in (prefix, suffix))
        native.compiled.assemble(placed, ids, offsets, *special, capacity, pad, grid, segments)
        return Rows(grid, *segments)
    _, document, token, stop = placed.T.astype(np.int32)
    begins = np.ones(len(placed), dtype=np.bool_)  # a row
    np.not_equal(placed[1:, 0], placed[:-1, 0], out=begins[1:])
    row = begins.cumsum(dtype=np.int32) - np.int32(1)
    length = stop - token + np.int32(len(prefix) + len(suffix))
    before = length.cumsum(dtype=np.int32) - length
    start = before - before[begins].take(row)
    grid = np.full((int(begins.sum()), capacity), pad, dtype=np.int32)
    flat, first = grid.ravel(), row * np.int32(capacity) + start
    first_token = offsets.take(document) + token
    for position, begin, end in zip(
        (first + len(prefix)).tolist(), first_token.tolist(), (first_token + stop - token).tolist(), strict=True
    ):
        flat[position : position + end - begin] = ids[begin:end]
    for index, token_id in enumerate(prefix):
        flat[first + index] = token_id
    for index, token_id in enumerate(reversed(suffix)):
        flat[first + length - 1 - index] = token_id
    return Rows(grid, row, start, length, document, token)


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
