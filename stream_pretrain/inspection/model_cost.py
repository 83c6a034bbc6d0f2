"""What a model costs, from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from stream_pretrain.config import Config
from stream_pretrain.data.rows.objective import Objective
from stream_pretrain.model.flops import peak_bf16_flops, training_flops
from stream_pretrain.model.loading import sized_model

BYTES_A_WEIGHT = 4
"""float32"""
BYTES_OF_ADAMW = 8
"""Two moments a weight."""
BYTES_OF_HEADERS = 16_384
"""Of a file of tensors, and the small JSON files beside it."""


@dataclass(frozen=True)
class ModelCost:
    """Of one model in a run."""

    parameters: int
    tokenizer_bytes: int
    """Of its files."""
    flops_per_step: float
    peaks: Mapping[str, float]
    """Dense bf16 FLOP/s of GPUs by name."""

    @property
    def model_bytes(self) -> int:
        return BYTES_A_WEIGHT * self.parameters + self.tokenizer_bytes + BYTES_OF_HEADERS

    @property
    def checkpoint_bytes(self) -> int:
        return self.model_bytes + BYTES_OF_ADAMW * self.parameters + BYTES_OF_HEADERS


def model_cost(
    config: Config, objective: Objective, tokenizer: PreTrainedTokenizerFast, tokens_per_segment: float, gpus: tuple[str, ...]
) -> ModelCost:
    """Of full rows of segments of this length. Raises: ModelError."""
    settings, parameters = sized_model(config.model, objective.causal)
    length, rows = config.data.sequence_length, config.train.global_batch_size
    segment = max(1, round(min(tokens_per_segment, length)))
    lengths = np.full(max(1, rows * length // segment), segment)
    labels = round(rows * length * objective.rate(0))
    peaks = {gpu: peak for gpu in gpus if (peak := peak_bf16_flops(gpu)) is not None}
    written = len(tokenizer.backend_tokenizer.to_str(pretty=True).encode())
    return ModelCost(parameters, written, training_flops(settings, lengths, labels), peaks)
