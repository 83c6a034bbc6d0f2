"""Masked language modelling."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from stream_pretrain.config import Config, ObjectiveConfig
from stream_pretrain.data.randomness import Hashed, InTurn, keyed_generator
from stream_pretrain.data.rows import native
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.labels import Draws, Labelled
from stream_pretrain.data.rows.masking import CompiledMasks, Masks, label_slots
from stream_pretrain.data.rows.packing import Rows
from stream_pretrain.data.rows.tokenizer_file import kept_tokens
from stream_pretrain.data.rows.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_RATES = 4096
"""Mask rates are rounded to 1/4096, so that rows of neighbouring steps can be labelled together while the rate changes."""


@dataclass(frozen=True)
class Mlm:
    """Masked language modelling: some tokens are hidden and predicted from the others of their document."""

    name: ClassVar = "mlm"
    causal: ClassVar = False

    options: ObjectiveConfig
    vocabulary: Vocabulary
    max_steps: int | None = None
    """Where the schedule of the mask rate ends."""

    @classmethod
    def of(cls, config: Config, tokenizer: PreTrainedTokenizerFast) -> Mlm:
        """Raises: ModelError for a tokenizer without a mask token, or without word boundaries in its ids."""
        kept = kept_tokens(tokenizer, config.data.special_tokens)
        vocabulary = Vocabulary.of(tokenizer, config.objective.selection, list(kept))
        return cls(config.objective, vocabulary, config.train.max_steps)

    @staticmethod
    def framed(encoder: Encoder) -> Encoder:
        """Every segment has the special tokens of a whole text; nothing else ends a document."""
        return replace(encoder, document_end=())

    def label_slots(self, sequence_length: int) -> int:
        return label_slots(self.options, sequence_length)

    def shortest_row(self, framing: int) -> int:
        rates = (self.options.mask_rate, self.options.final_mask_rate or self.options.mask_rate)
        return framing + math.ceil(0.51 / min(rates))

    def rate(self, step: int) -> float:
        """The mask rate: constant, or linear from `mask_rate` at step 0 to `final_mask_rate` at step `max_steps - 1`."""
        first, final = self.options.mask_rate, self.options.final_mask_rate
        if final is None:
            return first
        assert self.max_steps is not None, "a mask rate that changes needs an end"
        progress = min(step / max(self.max_steps - 1, 1), 1.0)
        return round((first * (1 - progress) + final * progress) * _RATES) / _RATES

    def draw(self, rows: Rows, key: tuple[int, ...]) -> Draws:
        if native.compiled is not None and self.options.selection == "token":
            return CompiledMasks(rows, self.vocabulary, self.options, Hashed(key))
        return Masks.of(rows, self.vocabulary, self.options, Hashed(key))

    def label_evaluation(self, rows: Rows, key: tuple[int, ...]) -> Labelled:
        masks = Masks.of(rows, self.vocabulary, self.options, InTurn(keyed_generator(*key)))
        return masks.label(range(len(rows.input_ids)), self.options.mask_rate)
