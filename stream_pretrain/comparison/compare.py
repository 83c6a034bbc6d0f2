"""Models side by side on the same documents."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stream_pretrain.comparison.bootstrap import paired_difference
from stream_pretrain.comparison.documents import Documents
from stream_pretrain.comparison.losses import DocumentLosses, document_losses
from stream_pretrain.comparison.probe import Labelled, accuracies, features
from stream_pretrain.comparison.pseudo_likelihood import beginnings, negative_log_likelihoods
from stream_pretrain.config import Config, ModelConfig
from stream_pretrain.data.lanes.row_layout import RowLayout
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.objective import Objective, objective_of
from stream_pretrain.errors import ConfigError, ModelError
from stream_pretrain.model.loading import load_model
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.model.tokenizer import load_tokenizer
from stream_pretrain.training.evaluation.evaluation import packed_documents

LENGTHS = {"up to 128 tokens": (1, 129), "129 to 512 tokens": (129, 513), "more than 512 tokens": (513, sys.maxsize)}
"""Documents by their tokens, counted by the tokenizer of each model."""

Phase = Callable[[str], AbstractContextManager[Callable[[str], None]]]
"""Shows what is done now, and how far it is."""


@dataclass(frozen=True)
class Judged:
    """What was measured of a model."""

    name: str
    tokenizer: str
    """Fingerprint of all that decides its ids."""
    losses: DocumentLosses
    likelihoods: NDArray[np.float64]
    """[sample] nats of the beginnings of the first documents."""
    folds: list[float]
    """Accuracy of the probe in each fold; empty without one."""


@dataclass(frozen=True)
class _Ready:
    """A model that is ready to be judged."""

    model: PretrainingModel
    encoder: Encoder
    objective: Objective
    mask_id: int | None


def judge(
    name: str,
    config: Config,
    documents: Documents,
    sample: NDArray[np.int64],
    labelled: Labelled | None,
    batch_rows: int,
    phase: Phase,
) -> Judged:
    """Measure one model. sample: the documents whose likelihood is measured. Raises: ModelError, ConfigError."""
    ready = _loaded(name, config, phase)
    length = config.data.sequence_length
    layout = RowLayout(1, batch_rows, length, config.data.packing, config.train.seed)
    with phase(f"{name}: loss") as report:
        packed = packed_documents(documents.texts, ready.encoder, ready.objective, layout)
        if packed is None or not packed.labels:
            raise ConfigError(f"no document gives {name} a label: give another --dataset")
        losses = document_losses(
            ready.model, packed, documents.texts, batch_rows=batch_rows, pad=ready.encoder.pad, report=report
        )
    with phase(f"{name}: likelihood by byte") as report:
        texts = beginnings([documents.texts[index] for index in sample.tolist()])
        likelihoods = negative_log_likelihoods(
            ready.model, ready.encoder, texts, ready.mask_id, most_tokens=length, batch_rows=batch_rows, report=report
        )
    folds: list[float] = []
    if labelled is not None:
        with phase(f"{name}: probe") as report:
            vectors = features(ready.model, ready.encoder, labelled.texts, most_tokens=length, report=report)
            folds = accuracies(vectors, labelled)
    return Judged(name, ready.encoder.fingerprint, losses, likelihoods, folds)


def _loaded(name: str, config: Config, phase: Phase) -> _Ready:
    own = ModelConfig(path=name)
    with phase(f"{name}: loading"):
        tokenizer = load_tokenizer(own)
        objective = objective_of(config, tokenizer)
        loaded = load_model(own, objective.causal, tokenizer, config.data.sequence_length, seed=0)
        if loaded.new_head is not None:
            raise ModelError(f"{loaded.new_head}, and a new one tells nothing: give a model that has one")
        model = PretrainingModel(loaded.model).eval()
        model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    encoder = objective.framed(Encoder.of(tokenizer, config.data.special_tokens))
    return _Ready(model, encoder, objective, None if objective.causal else tokenizer.mask_token_id)


def compared(judged: Sequence[Judged], documents: Documents, sample: NDArray[np.int64], *, causal: bool) -> dict[str, Any]:
    """The measurements of all models, and the differences of each to the first, as JSON."""
    base, *others = judged
    texts = beginnings([documents.texts[index] for index in sample.tolist()])
    sampled_bytes = np.array([len(text.encode()) for text in texts], dtype=np.float64)
    sources = np.array(documents.sources)
    return {
        "documents": len(documents.texts),
        "likelihood_sample": {"documents": len(texts), "bytes": int(sampled_bytes.sum())},
        "models": [_model(one, sources, sampled_bytes, causal=causal) for one in judged],
        "differences": [_difference(one, base, sampled_bytes) for one in others],
    }


def _model(judged: Judged, sources: NDArray[np.str_], sampled_bytes: NDArray[np.float64], *, causal: bool) -> dict[str, Any]:
    losses = judged.losses
    by_source = {name: sources == name for name in dict.fromkeys(sources.tolist())} if len(set(sources.tolist())) > 1 else {}
    by_length = {name: (losses.tokens >= least) & (losses.tokens < beyond) for name, (least, beyond) in LENGTHS.items()}
    return {
        "model": judged.name,
        **_means(losses, causal=causal),
        "bits_per_byte": float(judged.likelihoods.sum() / np.log(2) / sampled_bytes.sum()),
        "by_source": _parts(losses, by_source, causal=causal),
        "by_length": _parts(losses, by_length, causal=causal),
        "probe": {"accuracy": float(np.mean(judged.folds)), "folds": judged.folds} if judged.folds else None,
    }


def _parts(losses: DocumentLosses, which: dict[str, NDArray[np.bool_]], *, causal: bool) -> dict[str, Any]:
    parts = {name: losses.of(documents) for name, documents in which.items()}
    return {name: _means(part, causal=causal) for name, part in parts.items() if part.labels.any()}


def _means(losses: DocumentLosses, *, causal: bool) -> dict[str, Any]:
    perplexity = {"perplexity": float(np.exp(losses.mean_loss))} if causal else {}
    counts = {"documents": int((losses.labels > 0).sum()), "labels": int(losses.labels.sum())}
    return {"loss": losses.mean_loss, "accuracy": losses.accuracy, **perplexity, **counts}


def _difference(judged: Judged, base: Judged, sampled_bytes: NDArray[np.float64]) -> dict[str, Any]:
    bits = paired_difference(judged.likelihoods / np.log(2), base.likelihoods / np.log(2), sampled_bytes)
    found: dict[str, Any] = {"model": judged.name, "base": base.name, "bits_per_byte": bits._asdict()}
    if judged.tokenizer == base.tokenizer:  # else their labels are other tokens
        one, other = judged.losses, base.losses
        assert (one.labels == other.labels).all(), "the same masks"
        labels = one.labels.astype(np.float64)
        found["loss"] = paired_difference(one.loss, other.loss, labels)._asdict()
        found["accuracy"] = paired_difference(
            one.correct.astype(np.float64), other.correct.astype(np.float64), labels
        )._asdict()
    return found
