"""Models side by side on the same documents."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stream_pretrain.comparison.bootstrap import paired_difference
from stream_pretrain.comparison.candidates import Candidate
from stream_pretrain.comparison.documents import ComparedDocuments
from stream_pretrain.comparison.losses import DocumentLosses, document_losses
from stream_pretrain.comparison.probe import LabelledTexts, accuracies, features
from stream_pretrain.comparison.pseudo_likelihood import Likelihoods, beginnings, likelihoods_of
from stream_pretrain.config import Config
from stream_pretrain.data.lanes.row_layout import RowLayout
from stream_pretrain.errors import ConfigError, ModelError
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.training.evaluation.packed_documents import packed_documents

LENGTHS = {"up to 128 tokens": (1, 129), "129 to 512 tokens": (129, 513), "more than 512 tokens": (513, sys.maxsize)}
"""Documents by their tokens, counted by the tokenizer of each model."""

MOST_NATS = 700.0
"""Of a loss whose perplexity is a number."""

Phase = Callable[[str], AbstractContextManager[Callable[[str], None]]]
"""Shows what is done now, and how far it is."""


@dataclass(frozen=True)
class Judged:
    """What was measured of a model."""

    name: str
    tokenizer: str
    """Fingerprint of all that decides its ids."""
    losses: DocumentLosses
    likelihoods: Likelihoods
    """Of the beginnings of the documents of the sample."""
    folds: list[float]
    """Accuracy of the probe in each fold; empty without one."""


def judge(
    candidate: Candidate,
    model: PretrainingModel,
    config: Config,
    documents: ComparedDocuments,
    sample: NDArray[np.int64],
    labelled: LabelledTexts | None,
    batch_rows: int,
    phase: Phase,
) -> Judged:
    """Measure one model, which is on the CPU before and after. sample: the documents whose likelihood is measured.

    Raises: ConfigError, ModelError.
    """
    name, encoder, length = candidate.name, candidate.encoder, config.data.sequence_length
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    layout = RowLayout(1, batch_rows, length, config.data.packing, config.train.seed)
    with phase(f"{name}: loss") as report:
        packed = packed_documents(documents.texts, encoder, candidate.objective, layout)
        if packed is None or not packed.labels:
            raise ConfigError(f"no document gives {name} a label: give another --dataset")
        losses = document_losses(model, packed, documents.texts, batch_rows=batch_rows, pad=encoder.pad, report=report)
        if not np.isfinite(losses.loss).all():
            raise ModelError(f"{name}: its loss is not a finite number: give another model")
    with phase(f"{name}: likelihood by byte") as report:
        texts = beginnings([documents.texts[index] for index in sample.tolist()])
        likelihoods = likelihoods_of(
            model, encoder, texts, candidate.mask_id, most_tokens=length, batch_rows=batch_rows, report=report
        )
        if not np.isfinite(likelihoods.bits).all():
            raise ModelError(f"{name}: the likelihood of a text is not a finite number: give another model")
    folds: list[float] = []
    if labelled is not None:
        with phase(f"{name}: probe") as report:
            folds = accuracies(features(model, encoder, labelled.texts, most_tokens=length, report=report), labelled)
    model.to("cpu")
    return Judged(name, encoder.fingerprint, losses, likelihoods, folds)


def compared(
    judged: Sequence[Judged], documents: ComparedDocuments, sample: NDArray[np.int64], objective: str
) -> dict[str, Any]:
    """The measurements of all models, and the differences of each to the first, as JSON."""
    base, *others = judged
    texts = beginnings([documents.texts[index] for index in sample.tolist()])
    sources = np.array(documents.sources)
    causal = objective == "clm"
    return {
        "objective": objective,
        "documents": len(documents.texts),
        "likelihood_sample": {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)},
        "models": [_model(one, sources, causal=causal) for one in judged],
        "differences": [_difference(one, base) for one in others],
    }


def _model(judged: Judged, sources: NDArray[np.str_], *, causal: bool) -> dict[str, Any]:
    losses = judged.losses
    by_source = {name: sources == name for name in dict.fromkeys(sources.tolist())} if len(set(sources.tolist())) > 1 else {}
    by_length = {name: (losses.tokens >= least) & (losses.tokens < beyond) for name, (least, beyond) in LENGTHS.items()}
    return {
        "model": judged.name,
        **_means(losses, causal=causal),
        "bits_per_byte": judged.likelihoods.bits_per_byte,
        "likelihood_bytes": int(judged.likelihoods.bytes.sum()),
        "by_source": {name: _means(losses.of(which), causal=causal) for name, which in by_source.items()},
        "by_length": {name: _means(losses.of(which), causal=causal) for name, which in by_length.items() if which.any()},
        "probe": {"accuracy": float(np.mean(judged.folds)), "folds": judged.folds} if judged.folds else None,
    }


def _means(losses: DocumentLosses, *, causal: bool) -> dict[str, Any]:
    """Without labels, there is no mean."""
    documents, labels = int((losses.labels > 0).sum()), int(losses.labels.sum())
    loss, accuracy = (losses.mean_loss, losses.accuracy) if labels else (None, None)
    perplexity = {"perplexity": None if loss is None or loss > MOST_NATS else math.exp(loss)} if causal else {}
    return {"loss": loss, "accuracy": accuracy, **perplexity, "documents": documents, "labels": labels}


def _difference(judged: Judged, base: Judged) -> dict[str, Any]:
    found: dict[str, Any] = {"model": judged.name, "base": base.name}
    if judged.tokenizer == base.tokenizer:  # else their labels are other tokens
        one, other = judged.losses, base.losses
        assert (one.labels == other.labels).all(), "the same masks"
        found["loss"] = _interval((one.loss, one.labels), (other.loss, other.labels))
        found["accuracy"] = _interval((one.correct, one.labels), (other.correct, other.labels))
    found["bits_per_byte"] = _interval(*((of.likelihoods.bits, of.likelihoods.bytes) for of in (judged, base)))
    return found


def _interval(one: tuple[NDArray[Any], NDArray[Any]], base: tuple[NDArray[Any], NDArray[Any]]) -> dict[str, Any] | None:
    found = paired_difference(one, base)
    return None if found is None else found._asdict()
