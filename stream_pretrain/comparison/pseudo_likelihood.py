"""Likelihood of texts by byte, which models of other tokenizers are compared by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.tokenizers_engine import plain_tokenizer
from stream_pretrain.model.pretraining import PretrainingModel

CHARACTERS = 400
"""Of each document: a token is predicted from at most these."""


def beginnings(texts: Sequence[str]) -> list[str]:
    """The first `CHARACTERS` of each text, up to a space if there is one."""
    return [text if len(text) <= CHARACTERS else text[:CHARACTERS].rpartition(" ")[0] or text[:CHARACTERS] for text in texts]


@dataclass(frozen=True)
class Likelihoods:
    """Bits that texts take, and the bytes that they are of: those of tokens that are predicted."""

    bits: NDArray[np.float64]
    """[texts]"""
    bytes: NDArray[np.int64]
    """[texts]"""

    @property
    def bits_per_byte(self) -> float | None:
        """Over all texts; None where no token is predicted."""
        return float(self.bits.sum() / self.bytes.sum()) if self.bytes.any() else None


@torch.no_grad()
def likelihoods_of(
    model: PretrainingModel,
    encoder: Encoder,
    texts: Sequence[str],
    mask_id: int | None,
    *,
    most_tokens: int,
    batch_rows: int,
    report: Callable[[str], None],
) -> Likelihoods:
    """Of each token given those before it, or, where there is a mask id, all others (pseudo-likelihood).

    A text of more than `most_tokens`, special tokens included, is scored in parts. A causal model whose tokenizer puts nothing
    in front of a text does not predict its first token: its bytes do not count.
    Source: Salazar et al., "Masked Language Model Scoring" (2020).
    """
    device = next(model.parameters()).device
    ids, lengths = encoder.build().encode(texts)
    widest = most_tokens - encoder.framing
    needs_context = mask_id is None and not encoder.prefix
    bits, counted = np.zeros(len(texts)), np.zeros(len(texts), dtype=np.int64)
    before = 0
    for number, (text, length) in enumerate(zip(texts, lengths.tolist(), strict=True)):
        report(f"document {number + 1} of {len(texts)}")
        tokens = ids[before : before + length].tolist()
        before += length
        given, given_bytes = first_token(encoder, text) if needs_context and tokens else (0, 0)
        nats = 0.0
        # A part begins with the last token of the one before it, where its own first token would not be predicted.
        for start in range(0, length, widest - needs_context):
            part = tokens[start : start + widest]
            unpredicted = max(given - start, int(needs_context))
            if len(part) <= unpredicted:
                continue
            row = torch.tensor([*encoder.prefix, *part, *encoder.suffix], device=device)
            places = torch.arange(len(encoder.prefix) + unpredicted, len(encoder.prefix) + len(part), device=device)
            if mask_id is None:
                nats += _of_next(model, row, places)
            else:
                for first in range(0, len(places), batch_rows):
                    nats += _of_masked(model, row, places[first : first + batch_rows], mask_id)
        bits[number] = nats / math.log(2)
        counted[number] = len(text.encode()) - given_bytes if length > given else 0
    return Likelihoods(bits, counted)


def first_token(encoder: Encoder, text: str) -> tuple[int, int]:
    """The tokens of the characters that the first token is of, and the bytes of the text up to their end.

    A byte-level tokenizer may need several tokens for a character, and its bytes cannot be divided between them.
    """
    offsets = plain_tokenizer(encoder.serialized).encode(text, add_special_tokens=False).offsets
    end = offsets[0][1]
    return next((at for at, (first, _) in enumerate(offsets) if at and first >= end), len(offsets)), len(text[:end].encode())


def _of_next(model: PretrainingModel, row: torch.Tensor, places: torch.Tensor) -> float:
    return _loss(model, row[None], places - 1, row[places])


def _of_masked(model: PretrainingModel, row: torch.Tensor, places: torch.Tensor, mask_id: int) -> float:
    """Each place is masked in a row of its own."""
    rows = row.repeat(len(places), 1)
    number = torch.arange(len(places), device=row.device)
    rows[number, places] = mask_id
    return _loss(model, rows, number * len(row) + places, row[places])


def _loss(model: PretrainingModel, rows: torch.Tensor, places: torch.Tensor, targets: torch.Tensor) -> float:
    count, length = rows.shape
    positions = torch.arange(length, device=rows.device).repeat(count, 1)
    starts = torch.arange(0, count * length + 1, length, device=rows.device, dtype=torch.int32)
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=rows.device.type == "cuda"):
        logits = model.logits(rows, positions, starts, places)
    return float(F.cross_entropy(logits.float(), targets, reduction="sum"))
