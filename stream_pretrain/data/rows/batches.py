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


def _batches(
    records: torch.Tensor, starts: torch.Tensor, edges: Sequence[int], row: int, rows: TrainRows, size: int
) -> Iterator[Batch]:
    """The batches of neighbouring records, the first of which is this row.

    starts: first positions of all segments; edges: number of the first one in each batch, and behind the last batch.
    """
    length, slots = rows.length, rows.slots
    begin = starts[edges[0] : edges[-1]] - row * length
    shapes = [(size, length)] * 2 + [(size * slots,)] * 3
    widened = zip(_widened(records, begin, length, slots, size), shapes, strict=True)
    batches = zip(
        *(tensor.view(-1, *shape).unbind() for tensor, shape in widened),
        itertools.pairwise(edge - edges[0] for edge in edges),
        strict=True,
    )
    for number, (ids, position_ids, labelled, of_labels, sources, (first, stop)) in enumerate(batches):
        static = 1 << (stop - first - 1).bit_length()  # a power of two: few shapes to compile
        inside = begin[first:stop] - number * size * length
        cu_seq_lens = torch.constant_pad_nd(inside, (0, static + 1 - len(inside)), size * length)
        yield Batch(ids, position_ids, cu_seq_lens, labelled, of_labels, sources)


def _widened(records: torch.Tensor, begin: torch.Tensor, length: int, slots: int, size: int) -> Sequence[torch.Tensor]:
    """Ids, position ids, label positions, labels and their sources in int64, of all records one after another.

    begin: where the segments begin in their positions.
    """
    count = len(records) * length
    if native.compiled is not None and records.device.type == "cpu":
        made = [torch.empty(len(records) * of_each, dtype=torch.int64) for of_each in (length, length, slots, slots, slots)]
        native.compiled.widen(records.numpy(), begin.numpy(), length, slots, size, *(tensor.numpy() for tensor in made))
        return made
    input_ids, label_positions, labels, source = torch.split(records, [length, slots, slots, 1], dim=1)
    positions = torch.arange(count, dtype=torch.int32, device=records.device)  # with int64, a mixed sum takes ten times as long
    of_segment = torch.repeat_interleave(begin, torch.diff(begin, append=begin.new_full((1,), count)), output_size=count)
    labelled = label_positions + positions[::length, None] % (size * length)
    return [part.long() for part in (input_ids, positions - of_segment, labelled, labels, source.expand(-1, slots))]
