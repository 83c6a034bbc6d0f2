"""Likelihood of texts by byte, which models of other tokenizers are compared by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.model.pretraining import PretrainingModel

CHARACTERS = 400
"""Of each document: a token is predicted from at most these."""


def beginnings(texts: Sequence[str]) -> list[str]:
    """The first `CHARACTERS` of each text, up to a space if there is one."""
    return [text if len(text) <= CHARACTERS else text[:CHARACTERS].rpartition(" ")[0] or text[:CHARACTERS] for text in texts]


@torch.no_grad()
def negative_log_likelihoods(
    model: PretrainingModel,
    encoder: Encoder,
    texts: Sequence[str],
    mask_id: int | None,
    *,
    most_tokens: int,
    batch_rows: int,
    report: Callable[[str], None],
) -> NDArray[np.float64]:
    """[texts] nats: of each token given those before it, or, where there is a mask id, all others (pseudo-likelihood).

    A text of more than `most_tokens`, special tokens included, is scored in parts.
    Source: Salazar et al., "Masked Language Model Scoring" (2020).
    """
    device = next(model.parameters()).device
    ids, lengths = encoder.build().encode(texts)
    widest = most_tokens - len(encoder.prefix) - len(encoder.suffix)
    sums = np.zeros(len(texts))
    before = 0
    for number, length in enumerate(lengths.tolist()):
        report(f"document {number + 1} of {len(texts)}")
        for start in range(before, before + length, widest):
            part = ids[start : min(start + widest, before + length)].tolist()
            row = torch.tensor([*encoder.prefix, *part, *encoder.suffix], device=device)
            places = torch.arange(len(encoder.prefix), len(encoder.prefix) + len(part), device=device)
            if mask_id is None:
                # The first token of a text is given where nothing stands in front of it.
                places = places[0 if encoder.prefix else 1 :]
                if len(places):
                    sums[number] += _of_next(model, row, places)
            else:
                for first in range(0, len(places), batch_rows):
                    sums[number] += _of_masked(model, row, places[first : first + batch_rows], mask_id)
        before += length
    return sums


def _of_next(model: PretrainingModel, row: torch.Tensor, places: torch.Tensor) -> float:
    return _loss(model, row[None], places - 1, row[places])


def _of_masked(model: PretrainingModel, row: torch.Tensor, places: torch.Tensor, mask_id: int) -> float:
    """Each place is masked in a row of its own."""
    rows = row.repeat(len(places), 1)
    number = torch.arange(len(places), device=row.device)
    rows[number, places] = mask_id
    return _loss(model, rows, number * len(row) + places, row[places])


def _loss(model: PretrainingModel, rows: torch.Tensor, places: torch.Tensor, answers: torch.Tensor) -> float:
    count, length = rows.shape
    positions = torch.arange(length, device=rows.device).repeat(count, 1)
    starts = torch.arange(0, count * length + 1, length, device=rows.device, dtype=torch.int32)
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=rows.device.type == "cuda"):
        logits = model.logits(rows, positions, starts, places)
    return float(F.cross_entropy(logits.float(), answers, reduction="sum"))
