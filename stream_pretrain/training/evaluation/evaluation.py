"""Evaluation on a fixed set of documents with fixed masks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.document import ReadOptions
from stream_pretrain.data.documents.filters import is_heldout
from stream_pretrain.data.documents.reader import windows_of
from stream_pretrain.data.lanes.row_layout import RowLayout
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.randomness import EVAL_MASK
from stream_pretrain.data.rows.batches import Batch, micro_batches
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.labels import Labelled
from stream_pretrain.data.rows.objective import Objective
from stream_pretrain.data.rows.packing import Packing, Rows, assemble, gather, place
from stream_pretrain.data.rows.train_rows import TrainRows
from stream_pretrain.errors import CheckpointError, ContentError, SourceError
from stream_pretrain.training.files.atomic_files import replace_file, writing
from stream_pretrain.training.files.retried_reads import lines_of, parsed
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.typed_json import from_json

LABELLED_ROWS = 256
"""Rows that are labelled at once: bounds the memory of masking."""


def collect(
    shards: Sequence[Shard],
    options: ReadOptions,
    *,
    documents: int,
    heldout_fraction: float | None,
    max_read_bytes: int,
    skip_bad_shards: bool,
    report: Callable[[str], None],
) -> list[str]:
    """The first documents of the shards, or of those held out of training where a fraction is given.

    Reads at most about `max_read_bytes` of text, and may find fewer documents, or none.
    """
    texts: list[str] = []
    read = 0
    for window in _windows(shards, options, skip_bad_shards):
        read += sum(map(len, window))
        texts += window if heldout_fraction is None else [text for text in window if is_heldout(text, heldout_fraction)]
        report(f"{min(len(texts), documents)} of {documents} documents, {read / 1e6:.0f} MB read")
        if len(texts) >= documents or read >= max_read_bytes:
            break
    return texts[:documents]


def _windows(shards: Sequence[Shard], options: ReadOptions, skip_bad_shards: bool) -> Iterator[list[str]]:
    for shard in shards:
        try:
            for window in windows_of(shard, options):
                yield window.texts
        except ContentError:
            if not skip_bad_shards:
                raise  # else training counts and records the damage


def save_documents(path: Path, texts: Mapping[str, Sequence[str]]) -> None:
    """Write the texts of the evaluation sets, by name, to OUT. Raises: CheckpointError."""
    lines = ({"set": name, "text": text} if name else {"text": text} for name, of_set in texts.items() for text in of_set)
    with writing(path):
        replace_file(path, (json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines))


def load_documents(path: Path) -> dict[str, list[str]]:
    """Read the texts of the evaluation sets of OUT, by name; the only one has none. Raises: CheckpointError."""
    texts: dict[str, list[str]] = {}
    for number, line in enumerate(lines_of(path), start=1):
        try:
            found = from_json(dict[str, Any], parsed(line), "")
            name, text = (from_json(str, value, "") for value in (found.get("set", ""), found["text"]))
            texts.setdefault(name, []).append(text)
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{path}, line {number}: not a document; delete the file for a new evaluation set") from error
    return texts


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
