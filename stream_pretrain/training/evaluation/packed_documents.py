"""Documents as labelled rows: packed in their order, and masked alike in every evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from stream_pretrain.data.lanes.row_layout import RowLayout
from stream_pretrain.data.randomness import EVAL_MASK
from stream_pretrain.data.rows.batches import Batch, micro_batches
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.labels import Labelled
from stream_pretrain.data.rows.objective import Objective
from stream_pretrain.data.rows.packing import Packing, Rows, assemble, gather, place
from stream_pretrain.data.rows.train_rows import TrainRows

LABELLED_ROWS = 256
"""Rows that are labelled at once: bounds the memory of masking."""


@dataclass(frozen=True)
class PackedDocuments:
    """Documents as the labelled rows of an evaluation, one after the other."""

    rows: Rows
    labelled: Labelled
    texts: NDArray[np.int64]
    """[documents] index among the texts of each document that has tokens: `rows.segment_document` counts only these."""
    tokens: NDArray[np.int64]
    """[documents] tokens of each, without special tokens."""

    @property
    def labels(self) -> int:
        """Number of labels."""
        return int((self.labelled.labels >= 0).sum())

    @property
    def trained(self) -> TrainRows:
        """What a model sees of them, as of one source."""
        return TrainRows.of(self.rows, self.labelled, source=0)

    def batches(self, size: int, pad: int, device: torch.device) -> Iterator[Batch]:
        """Micro-batches of `size` rows on the device."""
        rows = self.trained
        return micro_batches(rows, size, -(-len(rows) // size), pad, device)


def packed_documents(texts: Sequence[str], encoder: Encoder, objective: Objective, layout: RowLayout) -> PackedDocuments | None:
    """Pack documents in their order, and mask them; None where none of them has a token."""
    length = layout.sequence_length
    ids, lengths = replace(encoder, engine="tokenizers").build().encode(texts)  # no other engine is compared on these
    present = np.flatnonzero(lengths)
    if not len(present):
        return None
    counts = lengths[present].tolist()
    most_rows = sum(-(-count // (length - encoder.framing)) for count in counts)
    packing: Packing = "none" if layout.packing == "none" else "concat"
    placements, left = place(counts, 0, most_rows + 1, length, encoder.framing, packing)
    assert left == (len(counts), 0), "every document of the evaluation set has its rows"
    edges = np.concatenate([[0], np.cumsum(lengths[present])])
    rows = assemble(placements, ids, edges, length, encoder.prefix, encoder.suffix, encoder.pad)
    return PackedDocuments(rows, _labelled(rows, objective, layout.seed), present, lengths[present])


def _labelled(rows: Rows, objective: Objective, seed: int) -> Labelled:
    """The rows with their labels."""
    parts = []
    for first in range(0, len(rows.input_ids), LABELLED_ROWS):
        which = range(first, min(first + LABELLED_ROWS, len(rows.input_ids)))
        part = gather([(rows, which)], rows.input_ids.shape[1])
        parts.append(objective.label_evaluation(part, (seed, EVAL_MASK, first)))
    return Labelled(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])))
