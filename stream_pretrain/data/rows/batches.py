"""Rows to the tensors of micro-batches, of equal shapes at every step and on every rank."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stream_pretrain.data.rows import native
from stream_pretrain.data.rows.labels import IGNORED
from stream_pretrain.data.rows.train_rows import Int32s, TrainRows, int32s


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


AT_ONCE = 1 << 15
"""Positions whose tensors are made at once: an operation costs more than a thousand of them, and these stay in the cache."""


def memory_for(device: torch.device) -> Callable[[int], Int32s]:
    """Memory on the host that is copied to the device without waiting for it: pinned for a GPU."""
    if device.type != "cuda":
        return int32s
    return lambda count: torch.empty(count, dtype=torch.int32, pin_memory=True).numpy()


def micro_batches(rows: TrainRows, size: int, count: int, pad: int, device: torch.device) -> Iterator[Batch]:
    """`count` batches of `size` rows on the device; padding without labels where rows run out.

    The buffer of the rows is copied to the device once, for all of them. All else is made there, and waits for nothing.
    """
    missing, length, slots = size * count - len(rows), rows.length, rows.slots
    assert missing >= 0
    if native.compiled is not None and device.type == "cpu":
        yield from (_compiled_batch(rows, range(first, first + size), pad) for first in range(0, size * count, size))
        return
    buffer = torch.from_numpy(rows.buffer)
    if device.type == "cuda":
        buffer = buffer.pin_memory()  # as it is, where its memory is pinned
    buffer = buffer.to(device, non_blocking=True)
    records, segments = buffer[: rows.records.size].view(-1, rows.width), buffer[rows.records.size :].view(2, -1)
    starts, first_row = segments[0], np.arange(count + 1) * size
    edges = np.searchsorted(rows.segment_start, first_row * length) + np.maximum(first_row - len(rows), 0)
    if missing:
        padding = records.new_zeros(missing, rows.width)
        padding[:, :length] = pad
        padding[:, length + slots : -1] = IGNORED
        records = torch.cat([records, padding])
        starts = torch.cat([starts, torch.arange(len(rows), size * count, dtype=torch.int32, device=device) * length])
    at_once = max(1, AT_ONCE // (size * length))
    for number in range(0, count, at_once):
        here = slice(number * size, (number + at_once) * size)
        yield from _batches(records[here], starts, edges[number : number + at_once + 1].tolist(), here.start, rows, size)


def _compiled_batch(rows: TrainRows, which: range, pad: int) -> Batch:
    """These rows as a batch, filled up with padding, in memory of its own."""
    assert native.compiled is not None
    size, length, slots, here = len(which), rows.length, rows.slots, range(rows.count)[which.start : which.stop]
    starts = rows.segment_start[rows.segments_of(here)]
    batch = Batch(
        input_ids=torch.empty((size, length), dtype=torch.int64),
        position_ids=torch.empty((size, length), dtype=torch.int64),
        cu_seq_lens=torch.empty(_edges(len(starts) + size - len(here)), dtype=torch.int32),
        label_positions=torch.empty(size * slots, dtype=torch.int64),
        labels=torch.empty(size * slots, dtype=torch.int64),
        label_sources=torch.empty(size * slots, dtype=torch.int64),
    )
    made = (tensor.numpy() for tensor in vars(batch).values())
    records = rows.records[here.start : here.stop]
    native.compiled.fill_batch(records, starts, here.start * length, size, length, slots, pad, *made)
    return batch


def _edges(segments: int) -> int:
    """Entries of `cu_seq_lens`: after one, a power of two, so that there are few shapes to compile."""
    return 1 + (1 << (segments - 1).bit_length())


def _batches(
    records: torch.Tensor, starts: torch.Tensor, edges: Sequence[int], row: int, rows: TrainRows, size: int
) -> Iterator[Batch]:
    """The batches of neighbouring records, the first of which is this row.

    starts: first positions of all segments; edges: number of the first one in each batch, and after the last batch.
    """
    length, slots, count = rows.length, rows.slots, len(records) * rows.length
    input_ids, label_positions, labels, source = torch.split(records, [length, slots, slots, 1], dim=1)
    positions = torch.arange(count, dtype=torch.int32, device=records.device)  # with int64, a mixed sum takes ten times as long
    begin = starts[edges[0] : edges[-1]] - row * length
    of_segment = torch.repeat_interleave(begin, torch.diff(begin, append=begin.new_full((1,), count)), output_size=count)
    batches = zip(
        input_ids.long().view(-1, size, length),
        (positions - of_segment).long().view(-1, size, length),
        (label_positions + positions[::length, None] % (size * length)).long().view(-1, size * slots),
        labels.long().view(-1, size * slots),
        source.expand(-1, slots).long().view(-1, size * slots),
        itertools.pairwise(edge - edges[0] for edge in edges),
        strict=True,
    )
    for number, (ids, position_ids, labelled, of_labels, sources, (first, stop)) in enumerate(batches):
        inside = begin[first:stop] - number * size * length
        cu_seq_lens = torch.constant_pad_nd(inside, (0, _edges(stop - first) - len(inside)), size * length)
        yield Batch(ids, position_ids, cu_seq_lens, labelled, of_labels, sources)
