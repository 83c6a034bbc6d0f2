"""A linear probe of a frozen model: logistic regression on the mean of the hidden states."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import orjson
import torch
from numpy.typing import NDArray

from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.errors import ConfigError
from stream_pretrain.model.packed_attention import one_document
from stream_pretrain.model.pretraining import PretrainingModel

FOLDS = 5


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with a class each."""

    texts: list[str]
    labels: NDArray[np.int64]
    """[texts] index of the class."""
    classes: list[str]


def read_labelled(path: Path) -> LabelledTexts:
    """JSON lines of `text` and `label`. Raises: ConfigError."""
    option = f"--evaluate.probe {path}"
    if find_spec("sklearn") is None:
        raise ConfigError("--evaluate.probe needs scikit-learn: pip install 'stream_pretrain[probe]'")
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        raise ConfigError(f"{option}: {error.strerror}") from error
    texts: list[str] = []
    labels: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"{option}, line {number} is not JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise ConfigError(f'{option}, line {number}: a "text" and a "label" are needed')
        if not isinstance(record.get("label"), str | int | float):
            raise ConfigError(f'{option}, line {number}: a "label" is needed, a word or a number')
        texts.append(record["text"])
        labels.append(str(record["label"]))
    classes, indices, counts = np.unique(labels, return_inverse=True, return_counts=True)
    found = ", ".join(
        f"{name!r} has {count}" for name, count in zip(classes.tolist(), counts.tolist(), strict=True) if count < FOLDS
    )
    if len(classes) < 2 or found:
        found = found or (f"all have {labels[0]!r}" if len(classes) else "there is none")
        raise ConfigError(f"{option}: at least two labels with {FOLDS} texts each are needed for {FOLDS} folds; {found}")
    return LabelledTexts(texts, indices.astype(np.int64), classes.tolist())


@torch.no_grad()
def features(
    model: PretrainingModel, encoder: Encoder, texts: Sequence[str], *, most_tokens: int, report: Callable[[str], None]
) -> NDArray[np.float32]:
    """[texts, hidden] mean of the last hidden states over the first tokens of each text, special tokens included.

    Raises: ConfigError.
    """
    bare = model.model
    ids, lengths = encoder.build().encode(texts)
    widest = most_tokens - encoder.framing
    means: dict[int, NDArray[np.float32]] = {}
    before = 0
    for number, length in enumerate(lengths.tolist()):
        report(f"text {number + 1} of {len(texts)}")
        row = [*encoder.prefix, *ids[before : before + min(length, widest)].tolist(), *encoder.suffix]
        before += length
        if not row:
            continue  # no token: a feature of zeros
        hidden = bare.base_model(
            input_ids=torch.tensor([row], device=bare.device),
            position_ids=torch.arange(len(row), device=bare.device)[None] + model.first_position,
            **one_document(bare, len(row)),
        ).last_hidden_state
        means[number] = hidden[0].float().mean(dim=0).cpu().numpy()
    if not means:
        raise ConfigError("--evaluate.probe: no text has a token: give another file")
    nothing = np.zeros_like(next(iter(means.values())))
    return np.stack([means.get(number, nothing) for number in range(len(texts))])


def accuracies(vectors: NDArray[np.float32], labelled: LabelledTexts) -> list[float]:
    """Accuracy of each of `FOLDS` folds, stratified by label and the same for all models."""
    from sklearn.linear_model import LogisticRegression  # of an extra, see `read_labelled`
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    scores: list[float] = cross_val_score(classifier, vectors, labelled.labels, cv=folds).tolist()
    return scores
