"""All that decides the rows of every step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_pretrain.config import Config, ObjectiveConfig
from stream_pretrain.data.lanes.lane_plan import LanePlan
from stream_pretrain.data.rows.masking import label_slots, mask_rates
from stream_pretrain.data.rows.tokenization import Encoder
from stream_pretrain.data.rows.vocabulary import Vocabulary

_RATES = 4096
"""Mask rates are rounded to this fraction, so that the rows of a group are masked together while a schedule moves on."""


@dataclass(frozen=True)
class StreamPlan:
    """All that decides the rows of every step, besides the cursors."""

    lanes: LanePlan
    encoder: Encoder
    objective: ObjectiveConfig
    vocabulary: Vocabulary | None
    max_steps: int | None

    def mask_rate(self, step: int) -> float:
        """The mask rate of a step."""
        if self.objective.final_mask_rate is None:
            return self.objective.mask_rate
        rate = float(mask_rates(self.objective, np.array([step]), self.max_steps)[0])
        return round(rate * _RATES) / _RATES

    @property
    def label_slots(self) -> int:
        """Labels a row can have at most."""
        return label_slots(self.objective, self.lanes.sequence_length)


def stream_plan(config: Config, lanes: LanePlan, encoder: Encoder, vocabulary: Vocabulary | None) -> StreamPlan:
    """The plan of a run whose lanes are fixed."""
    return StreamPlan(
        lanes=lanes,
        encoder=encoder,
        objective=config.objective,
        vocabulary=vocabulary,
        max_steps=config.train.max_steps,
    )
