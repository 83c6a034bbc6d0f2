"""What a model is trained on, in one buffer, which goes as it is from a data worker to the device or to another rank."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.rows.labels import Labelled, flat_starts
from stream_pretrain.data.rows.packing import Rows

Int32s = NDArray[np.int32]


def int32s(count: int) -> Int32s:
    """Memory for `count` integers."""
    return np.empty(count, dtype=np.int32)


@dataclass(frozen=True)
class TrainRows:
    """Rows and their labels: R rows of L positions with P slots for labels, in S segments (the padding of a row is one too).

    The buffer is int32 [R x (L + 2P + 1) + 2S]: for each row its ids, label positions, labels and source; then where the
    segments begin, and their tokens.
    """

    buffer: Int32s
    count: int
    """R"""
    length: int
    """L"""
    slots: int
    """P"""

    @classmethod
    def nothing(cls, length: int, slots: int) -> TrainRows:
        """No rows."""
        return cls(int32s(0), 0, length, slots)

    @classmethod
    def of(cls, rows: Rows, labelled: Labelled, source: int | Int32s) -> TrainRows:
        """source: of all rows, or [R] of each."""
        made = cls.unlabelled(rows, labelled.labels.shape[1], source)
        for name, values in vars(labelled).items():
            getattr(made.labelled, name)[:] = values
        return made

    @classmethod
    def unlabelled(cls, rows: Rows, slots: int, source: int | Int32s) -> TrainRows:
        """With segments and sources, and room for the rest: `labelled`."""
        count, length = rows.input_ids.shape
        filled = rows.filled
        padded = (filled < length).nonzero()[0]
        # Padding begins where nothing else does, and so the first half of these decides their order.
        segments = np.concatenate([flat_starts(rows) << 32 | rows.segment_length, padded * length + filled[padded] << 32])
        segments.sort()
        made = cls._empty(count, length, slots, len(segments), int32s)
        made.source[:] = source
        made.segment_start[:] = segments >> 32
        made.segment_tokens[:] = segments & 0xFFFFFFFF
        return made

    @classmethod
    def _empty(cls, count: int, length: int, slots: int, segments: int, memory: Callable[[int], Int32s]) -> TrainRows:
        assert count * length < 1 << 31, "positions are int32"
        return cls(memory(count * (length + 2 * slots + 1) + 2 * segments), count, length, slots)

    def __len__(self) -> int:
        return self.count

    def __reduce__(self) -> tuple[Any, ...]:
        return TrainRows, (self.buffer, self.count, self.length, self.slots)  # without the views of it that are kept

    @property
    def width(self) -> int:
        """Integers of a row."""
        return self.length + 2 * self.slots + 1

    @cached_property
    def records(self) -> Int32s:
        """[R, width]"""
        return self.buffer[: self.count * self.width].reshape(self.count, self.width)

    @property
    def input_ids(self) -> Int32s:
        """[R, L] as the model sees them, replacements included; padded after the last segment of a row."""
        return self.records[:, : self.length]

    @property
    def label_positions(self) -> Int32s:
        """[R, P] positions in the row that have a label, ascending, padded with 0."""
        return self.records[:, self.length : self.length + self.slots]

    @property
    def labels(self) -> Int32s:
        """[R, P] what is to be predicted there, `IGNORED` where padded."""
        return self.records[:, self.length + self.slots : -1]

    @property
    def labelled(self) -> Labelled:
        """The rows with their labels, in this memory."""
        return Labelled(self.input_ids, self.label_positions, self.labels)

    @property
    def source(self) -> Int32s:
        """[R] source of each row."""
        return self.records[:, -1]

    @cached_property
    def segments(self) -> Int32s:
        """[2, S] `segment_start` and `segment_tokens`."""
        return self.buffer[self.count * self.width :].reshape(2, -1)

    @property
    def segment_start(self) -> Int32s:
        """[S] first position of each segment, counted over the rows one after another; ascending."""
        starts: Int32s = self.segments[0]
        return starts

    @property
    def segment_tokens(self) -> Int32s:
        """[S] tokens of each segment, special tokens included; 0 for padding."""
        tokens: Int32s = self.segments[1]
        return tokens

    @property
    def tokens(self) -> int:
        """Positions that hold a token of a document or a special token, not padding."""
        return int(self.segment_tokens.sum())

    def segments_of(self, which: range) -> slice:
        """Indices of the segments of neighbouring rows."""
        return slice(self._first_segments[which.start], self._first_segments[which.stop])

    @cached_property
    def _first_segments(self) -> list[int]:
        """First segment of each row, and the number of segments."""
        row_starts = np.arange(self.count + 1, dtype=np.int32) * np.int32(self.length)
        edges: list[int] = self.segment_start.searchsorted(row_starts).tolist()
        return edges

    def cut(self, which: range) -> TrainRows:
        """Neighbouring rows of these, as far as they are there."""
        return joined([(self, range(self.count)[which.start : which.stop])])


def joined(runs: Sequence[tuple[TrainRows, range]], memory: Callable[[int], Int32s] = int32s) -> TrainRows:
    """Runs of neighbouring rows one after another, copied into one buffer of this memory."""
    length, slots = runs[0][0].length, runs[0][0].slots
    cuts = [rows.segments_of(which) for rows, which in runs]
    count, segments = sum(len(which) for _, which in runs), [cut.stop - cut.start for cut in cuts]
    made = TrainRows._empty(count, length, slots, sum(segments), memory)
    np.concatenate([rows.records[which.start : which.stop] for rows, which in runs], out=made.records)
    np.concatenate([rows.segments[:, cut] for (rows, _), cut in zip(runs, cuts, strict=True)], axis=1, out=made.segments)
    before = itertools.accumulate((len(which) for _, which in runs), initial=0)
    moved = [row - which.start for row, (_, which) in zip(before, runs, strict=False)]
    made.segment_start[:] += np.repeat(np.array(moved, dtype=np.int32) * np.int32(length), segments)
    return made
