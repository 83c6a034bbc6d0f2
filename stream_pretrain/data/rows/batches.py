"""Rows to the tensors of micro-batches, of equal shapes at every step and on every rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from stream_pretrain.data.rows.labels import IGNORED, Labelled
from stream_pretrain.data.rows.packing import Rows


@dataclass(frozen=True)
class Batch:
    """The input of the model: B rows of L positions, P label slots per row, S segments (padding counts as one)."""

    input_ids: torch.Tensor
    """int64 [B, L]"""
    position_ids: torch.Tensor
    """int64 [B, L], from 0 in every segment"""
    cu_seq_lens: torch.Tensor
    """int32 [S + 1], where the segments begin in the B x L positions; the last value repeats to keep the shape"""
    label_positions: torch.Tensor
    """int64 [B x P], among the B x L positions"""
    labels: torch.Tensor
    """int64 [B x P], -100 where a slot is empty"""
    label_sources: torch.Tensor
    """int64 [B x P], the source each label is from"""

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; copies to a GPU are asynchronous, from pinned memory."""
        if device.type != "cuda":
            return Batch(**{name: value.to(device) for name, value in vars(self).items()})
        return Batch(**{name: value.pin_memory().to(device, non_blocking=True) for name, value in vars(self).items()})


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on a device. A copy to a GPU has its own stream, and overlaps with the computation on earlier batches."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    computing, copying = torch.cuda.current_stream(device), _copy_stream(device)
    for batch in batches:
        with torch.cuda.stream(copying):
            copied = batch.to(device)
        computing.wait_stream(copying)
        for value in vars(copied).values():
            value.record_stream(computing)  # keeps its memory until the computation is done
        yield copied


@cache  # one for the run: the allocator has a pool for every stream
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def micro_batches(
    rows: Rows, labelled: Labelled, row_source: NDArray[np.int64], size: int, count: int, pad: int
) -> Iterator[Batch]:
    """`count` batches of `size` rows; padding without labels where rows run out."""
    present = len(labelled.input_ids)
    assert present <= size * count
    for first in range(0, size * count, size):
        rows_here = range(min(first, present), min(first + size, present))
        yield _batch(rows, labelled, row_source, rows_here, size, pad)


def _batch(rows: Rows, labelled: Labelled, row_source: NDArray[np.int64], which: range, size: int, pad: int) -> Batch:
    length, slots = labelled.input_ids.shape[1], labelled.labels.shape[1]
    here = slice(which.start, which.stop)
    input_ids = np.full((size, length), pad, dtype=np.int64)
    input_ids[: len(which)] = labelled.input_ids[here]
    labels = np.full((size, slots), IGNORED, dtype=np.int64)
    labels[: len(which)] = labelled.labels[here]
    label_positions = np.zeros((size, slots), dtype=np.int64)
    label_positions[: len(which)] = labelled.label_positions[here]
    sources = np.zeros(size, dtype=np.int64)
    sources[: len(which)] = row_source[here]
    label_positions += np.arange(size)[:, None] * length

    starts = _segment_starts(rows, which, size, length)
    static = 1 << (len(starts) - 1).bit_length()  # a power of two: few shapes to compile
    cu_seq_lens = np.full(static + 1, size * length, dtype=np.int32)
    cu_seq_lens[: len(starts)] = starts
    position_ids = np.arange(size * length) - np.repeat(starts, np.diff(cu_seq_lens[: len(starts) + 1]))
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids.reshape(size, length)),
        cu_seq_lens=torch.from_numpy(cu_seq_lens),
        label_positions=torch.from_numpy(label_positions.ravel()),
        labels=torch.from_numpy(labels.ravel()),
        label_sources=torch.from_numpy(np.repeat(sources, slots)),
    )


def _segment_starts(rows: Rows, which: range, size: int, length: int) -> NDArray[np.int64]:
    """First positions of the segments of a micro-batch; the padding of a row is one segment."""
    first, stop = np.searchsorted(rows.segment_row, (which.start, which.stop)).tolist()
    row = rows.segment_row[first:stop].astype(np.int64) - which.start
    starts = row * length + rows.segment_start[first:stop]
    filled = np.zeros(size, dtype=np.int64)
    np.add.at(filled, row, rows.segment_length[first:stop])
    padding = np.flatnonzero(filled < length)
    return np.sort(np.concatenate([starts, padding * length + filled[padding]]))
