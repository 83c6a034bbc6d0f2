"""Evaluation sets of a run, and the loss of a model on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.rows.batches import Batch, micro_batches
from stream_pretrain.data.rows.train_rows import TrainRows
from stream_pretrain.errors import SourceError
from stream_pretrain.training.evaluation.packed_documents import packed_documents
from stream_pretrain.training.ranks.ranks import Ranks


@dataclass(frozen=True)
class EvaluationSet:
    """The rows of the evaluation set, and how they are evaluated."""

    rows: TrainRows
    labels: int
    batch_size: int
    pad: int
    fingerprint: str
    """Of the documents."""
    name: str = ""
    weight: float = 1.0

    def batches(self, ranks: Ranks, device: torch.device) -> Iterator[Batch]:
        """The micro-batches of a rank, on its device."""
        for first in range(ranks.index * self.batch_size, len(self.rows), ranks.world * self.batch_size):
            rows = self.rows.cut(range(first, first + self.batch_size))
            yield from micro_batches(rows, self.batch_size, 1, self.pad, device)


def evaluation_set(
    texts: Sequence[str], plan: StreamPlan, batch_size: int, *, name: str = "", weight: float = 1.0
) -> EvaluationSet:
    """Pack and mask an evaluation set: a pure function of the texts, the seed and the objective. Raises: SourceError."""
    packed = packed_documents(texts, plan.encoder, plan.objective, plan.layout)
    one, other = (f"evaluation set {name}", "it another dataset") if name else ("the evaluation set", "another --eval.dataset")
    if packed is None:
        raise SourceError(f"{one} has no tokens: give {other}")
    if not packed.labels:
        raise SourceError(f"the documents of {one} are too short for a label: give {other}")
    fingerprint = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    return EvaluationSet(packed.trained, packed.labels, batch_size, plan.encoder.pad, fingerprint, name, weight)


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    evaluation_set: EvaluationSet,
    device: torch.device,
    ranks: Ranks,
    *,
    stop: Callable[[], bool],
) -> dict[str, float]:
    """Mean loss and accuracy over the labels of the set; empty when a rank is asked to stop before the end.

    Each rank evaluates its share of the micro-batches on the bare `model`, without synchronisation until the sums.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for batch in evaluation_set.batches(ranks, device):
        if stop():
            break
        loss, correct, _ = model(**vars(batch))
        sums[:2] += torch.stack([loss.double(), correct.double()])
    model.train(was_training)
    sums[2] = float(stop())
    ranks.sum(sums)
    loss_sum, correct_sum, stops = sums.tolist()
    if stops:
        return {}
    return {"eval/loss": loss_sum / evaluation_set.labels, "eval/accuracy": correct_sum / evaluation_set.labels}


def of_all_sets(found: Sequence[tuple[EvaluationSet, dict[str, float]]]) -> dict[str, float]:
    """Loss and accuracy of each set with a name, and their means by the weights of the sets."""
    total = sum(one.weight for one, _ in found)
    metrics = {
        metric: sum(one.weight * of_set[metric] for one, of_set in found if one.weight) / total for metric in found[0][1]
    }
    for one, of_set in found:
        if one.name:
            metrics |= {metric.replace("eval/", f"eval/{one.name}/"): value for metric, value in of_set.items()}
    return metrics


def fingerprint_of(sets: Sequence[EvaluationSet]) -> str:
    """Of the documents, names and weights of all sets: what a mean loss depends on besides the model."""
    parts = [(one.name, one.weight, one.fingerprint) for one in sets]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
