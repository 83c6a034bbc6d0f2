"""What a model costs, from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from stream_pretrain.config import Config
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.objective import Objective
from stream_pretrain.model.flops import peak_bf16_flops, training_flops
from stream_pretrain.model.loading import sized_model
from stream_pretrain.training.state.checkpoint_size import BYTES_A_WEIGHT, checkpoint_bytes, model_bytes

RATES = 100
"""Steps of a run at which the share of labels is looked at."""


@dataclass(frozen=True)
class ModelCost:
    """Of one model in a run."""

    parameters: int
    tokenizer: PreTrainedTokenizerFast
    settings: PreTrainedConfig
    label_rate: float
    """Mean over the steps of a run."""
    unlabelled: int
    """Positions of a segment that never have a label."""
    peaks: Mapping[str, float]
    """Dense bf16 FLOP/s of GPUs by name."""

    @property
    def model_bytes(self) -> int:
        """Of OUT/model."""
        return model_bytes(BYTES_A_WEIGHT * self.parameters, self.tokenizer)

    def checkpoint_bytes(self, corpus: bytes) -> int:
        """Of a checkpoint of a run on this corpus."""
        return checkpoint_bytes(BYTES_A_WEIGHT * self.parameters, self.parameters, self.tokenizer, corpus)

    def flops_of(self, segments: NDArray[np.int64]) -> float:
        """To train on segments of these lengths."""
        labels = self.label_rate * float((segments - self.unlabelled).sum())
        return training_flops(self.settings, segments, round(labels))


def model_cost(
    config: Config, objective: Objective, encoder: Encoder, tokenizer: PreTrainedTokenizerFast, gpus: tuple[str, ...]
) -> ModelCost:
    """Of a run. Raises: ModelError, also where the configuration shows that a run would be refused."""
    settings, parameters = sized_model(config.model, objective.causal, config.data.sequence_length)
    rates = [objective.rate(int(step)) for step in np.linspace(0, (config.train.max_steps or 1) - 1, RATES)]
    # The last token of a segment has no next one; special tokens are not masked.
    unlabelled = 1 if objective.causal else encoder.framing
    peaks = {gpu: peak for gpu in gpus if (peak := peak_bf16_flops(gpu)) is not None}
    return ModelCost(parameters, tokenizer, settings, float(np.mean(rates)), unlabelled, peaks)
