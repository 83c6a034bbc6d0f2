"""The loss of a model on each document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from stream_pretrain.data.rows.labels import IGNORED, flat_starts
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.training.evaluation.packed_documents import PackedDocuments


@dataclass(frozen=True)
class DocumentLosses:
    """Sums over the labels of each document; documents without a label have none."""

    loss: NDArray[np.float64]
    """[documents] cross entropy in nats."""
    labels: NDArray[np.int64]
    """[documents]"""
    correct: NDArray[np.int64]
    """[documents] labels that are the most likely token."""
    tokens: NDArray[np.int64]
    """[documents] tokens, without special tokens."""

    def of(self, which: NDArray[np.bool_]) -> DocumentLosses:
        """Some of the documents."""
        return DocumentLosses(**{name: value[which] for name, value in vars(self).items()})

    @property
    def mean_loss(self) -> float:
        """Over all labels."""
        return float(self.loss.sum() / self.labels.sum())

    @property
    def accuracy(self) -> float:
        """Over all labels."""
        return float(self.correct.sum() / self.labels.sum())


@torch.no_grad()
def document_losses(
    model: PretrainingModel,
    packed: PackedDocuments,
    texts: Sequence[str],
    *,
    batch_rows: int,
    pad: int,
    report: Callable[[str], None],
) -> DocumentLosses:
    """Losses of a model, where it is, on packed documents. texts: those that the documents are of."""
    device = next(model.parameters()).device
    document = packed.texts[packed.rows.segment_document[_segment_of_each_label(packed)]]
    losses: list[torch.Tensor] = []
    correct: list[torch.Tensor] = []
    count = -(-len(packed.rows.input_ids) // batch_rows)
    for number, batch in enumerate(packed.batches(batch_rows, pad, device), start=1):
        report(f"micro-batch {number} of {count}")
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model.logits(batch.input_ids, batch.position_ids, batch.cu_seq_lens, batch.label_positions)
        labelled = batch.labels != IGNORED
        losses.append(F.cross_entropy(logits.float(), batch.labels, ignore_index=IGNORED, reduction="none")[labelled].cpu())
        correct.append((logits.argmax(dim=-1) == batch.labels)[labelled].cpu())
    tokens = np.zeros(len(texts), dtype=np.int64)
    tokens[packed.texts] = packed.tokens
    return DocumentLosses(
        loss=np.bincount(document, torch.cat(losses).double().numpy(), len(texts)).astype(np.float64),
        labels=np.bincount(document, minlength=len(texts)),
        correct=np.bincount(document, torch.cat(correct).numpy(), len(texts)).astype(np.int64),
        tokens=tokens,
    )


def _segment_of_each_label(packed: PackedDocuments) -> NDArray[np.int64]:
    """[labels] segment that each label is in, in the order of the rows."""
    length = packed.rows.input_ids.shape[1]
    labelled = packed.labelled.labels != IGNORED
    places = packed.labelled.label_positions + np.arange(len(labelled))[:, None] * length
    segments: NDArray[np.int64] = np.searchsorted(flat_starts(packed.rows), places[labelled], side="right") - 1
    return segments
