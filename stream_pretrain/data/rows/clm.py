"""Next-token prediction."""

# ruff: noqa: ARG002, ARG003 (the arguments of all objectives)

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stream_pretrain.config import Config
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.labels import Labelled, filled, flat_starts, lay_out
from stream_pretrain.data.rows.packing import Rows, gather

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Clm:
    """Next-token prediction: every token is predicted from those before it in its document."""

    name: ClassVar = "clm"
    causal: ClassVar = True

    @classmethod
    def of(cls, config: Config, tokenizer: PreTrainedTokenizerFast) -> Clm:
        return cls()

    @staticmethod
    def framed(encoder: Encoder) -> Encoder:
        """An end-of-text token ends a document; nothing else ends a segment."""
        return replace(encoder, suffix=())

    def label_slots(self, sequence_length: int) -> int:
        return sequence_length

    def shortest_row(self, framing: int) -> int:
        return framing + 2

    def rate(self, step: int) -> float:
        return 1.0

    def draw(self, rows: Rows, key: tuple[int, ...]) -> NextTokens:
        return NextTokens(rows)

    def label_evaluation(self, rows: Rows, key: tuple[int, ...]) -> Labelled:
        return NextTokens(rows).label(range(len(rows.input_ids)), 1.0)


@dataclass(frozen=True)
class NextTokens:
    """The labels of some rows, in which nothing is random."""

    rows: Rows

    def label(self, which: range, rate: float, out: Labelled | None = None) -> Labelled:
        """Every position predicts the token after it in its segment; the last position of a segment has no label."""
        length = self.rows.input_ids.shape[1]
        rows = gather([(self.rows, which)], length)
        has_next = filled(rows).ravel()
        has_next[flat_starts(rows) + rows.segment_length - 1] = False
        labelled = np.flatnonzero(has_next)
        out = out or Labelled.room(len(which), length, length)
        return lay_out(out, rows.input_ids, labelled, rows.input_ids.take(labelled + 1))
