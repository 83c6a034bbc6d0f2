"""Micro-batches have equal shapes, padding is a segment of its own, and padded rows have no label."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stream_pretrain.data.rows.batches import Batch, micro_batches
from stream_pretrain.data.rows.labels import Labelled
from stream_pretrain.data.rows.packing import Rows, assemble
from stream_pretrain.data.rows.train_rows import TrainRows, joined

CLS, SEP, PAD, MASK = 2, 3, 0, 4

SOURCES = np.array([0, 1], dtype=np.int32)
CPU = torch.device("cpu")


def rows_and_labels() -> tuple[Rows, Labelled]:
    """Two documents in one row and half a row, the second token of each masked."""
    placements = [(0, 0, 0, 3), (0, 1, 0, 1), (1, 1, 1, 3)]
    ids = np.array([10, 11, 12, 20, 21, 22], dtype=np.int32)
    rows = assemble(np.array(placements), ids, np.array([0, 3, 6]), 8, [CLS], [SEP], PAD)
    input_ids = rows.input_ids.copy()
    input_ids[:, 2] = MASK
    labelled = Labelled(
        input_ids=input_ids,
        label_positions=np.array([[2, 6], [2, 0]], dtype=np.int32),
        labels=np.array([[11, 20], [22, -100]], dtype=np.int32),
    )
    return rows, labelled


def batches(size: int, count: int) -> list[Batch]:
    rows = TrainRows.of(*rows_and_labels(), SOURCES)
    return list(micro_batches(rows, size=size, count=count, pad=PAD, device=CPU))


def test_a_batch_is_rows_positions_segments_and_labels() -> None:
    (batch,) = batches(size=2, count=1)
    assert batch.input_ids.tolist() == [[CLS, 10, MASK, 12, SEP, CLS, 20, SEP], [CLS, 21, MASK, SEP, PAD, PAD, PAD, PAD]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 2, 3]]
    assert batch.cu_seq_lens.tolist() == [0, 5, 8, 12, 16]
    assert batch.label_positions.tolist() == [2, 6, 10, 8]
    assert batch.labels.tolist() == [11, 20, 22, -100]
    assert batch.label_sources.tolist() == [0, 0, 1, 1]
    assert {name: value.dtype for name, value in vars(batch).items()} == {
        "input_ids": torch.int64,
        "position_ids": torch.int64,
        "cu_seq_lens": torch.int32,
        "label_positions": torch.int64,
        "labels": torch.int64,
        "label_sources": torch.int64,
    }


def test_where_rows_run_out_padding_without_a_label_fills_the_batches() -> None:
    first, second = batches(size=3, count=2)
    assert first.input_ids[2].tolist() == [PAD] * 8
    assert first.position_ids[2].tolist() == list(range(8))
    assert first.cu_seq_lens.tolist() == [0, 5, 8, 12, 16, 24, 24, 24, 24]
    assert first.labels.tolist() == [11, 20, 22, -100, -100, -100]
    assert first.label_positions.tolist() == [2, 6, 10, 8, 16, 16]
    assert second.input_ids.tolist() == [[PAD] * 8] * 3
    assert second.cu_seq_lens.tolist() == [0, 8, 16, 24, 24]
    assert second.labels.tolist() == [-100] * 6


def test_batches_of_one_row_are_the_rows_of_a_larger_one() -> None:
    first, second = batches(size=1, count=2)
    (both,) = batches(size=2, count=1)
    assert torch.equal(torch.cat([first.input_ids, second.input_ids]), both.input_ids)
    assert torch.equal(torch.cat([first.position_ids, second.position_ids]), both.position_ids)
    assert first.cu_seq_lens.tolist() == [0, 5, 8]
    assert second.cu_seq_lens.tolist() == [0, 4, 8]
    assert second.label_positions.tolist() == [2, 0]


def test_no_rows_at_all_are_one_batch_of_padding() -> None:
    rows, labelled = rows_and_labels()
    nothing = Labelled(labelled.input_ids[:0], labelled.label_positions[:0], labelled.labels[:0])
    no_rows = Rows(rows.input_ids[:0], *(np.empty(0, dtype=np.int32) for _ in range(5)))
    rows_of_none = TrainRows.of(no_rows, nothing, SOURCES[:0])
    (batch,) = micro_batches(rows_of_none, size=2, count=1, pad=PAD, device=CPU)
    assert batch.input_ids.tolist() == [[PAD] * 8] * 2
    assert batch.cu_seq_lens.tolist() == [0, 8, 16]
    assert batch.labels.tolist() == [-100] * 4


@pytest.mark.parametrize("documents", [1, 2, 3, 5, 8, 13])
def test_segments_cover_the_batch_and_are_a_power_of_two(documents: int) -> None:
    placements = [(0, document, 0, 2) for document in range(documents)]
    ids = np.arange(2 * documents, dtype=np.int32)
    offsets = np.arange(0, 2 * documents + 1, 2)
    for full in (True, False):
        length = 2 * documents if full else 2 * documents + 1
        rows = assemble(np.array(placements), ids, offsets, length, [], [], PAD)
        no_labels = np.zeros((1, 1), dtype=np.int32)
        row = TrainRows.of(rows, Labelled(rows.input_ids, no_labels, no_labels), SOURCES[:1])
        (batch,) = micro_batches(row, size=1, count=1, pad=PAD, device=CPU)
        segments = documents + (not full)
        assert len(batch.cu_seq_lens) - 1 == 2 ** int(np.ceil(np.log2(segments)))
        assert batch.cu_seq_lens.diff().tolist()[:segments] == [2] * documents + [1] * (not full)
        assert batch.cu_seq_lens[segments:].tolist() == [length] * (len(batch.cu_seq_lens) - segments)


def test_rows_that_are_cut_and_joined_again_are_the_same() -> None:
    rows = TrainRows.of(*rows_and_labels(), SOURCES)
    assert rows.segments.tolist() == [[0, 5, 8, 12], [5, 3, 4, 0]], "the padding of the second row has no tokens"
    first, second, none = rows.cut(range(1)), rows.cut(range(1, 5)), rows.cut(range(2, 4))
    assert (len(first), len(second), len(none)) == (1, 1, 0)
    assert second.segments.tolist() == [[0, 4], [4, 0]]
    assert second.input_ids.tolist() == [[CLS, 21, MASK, SEP, PAD, PAD, PAD, PAD]]
    assert (second.label_positions.tolist(), second.labels.tolist(), second.source.tolist()) == ([[2, 0]], [[22, -100]], [1])
    again = joined([(none, range(0)), (first, range(1)), (rows, range(1, 2))])
    assert again.buffer.tolist() == rows.buffer.tolist()
    assert (again.count, again.length, again.slots, again.tokens) == (2, 8, 2, 12)
