"""FLOPs of training, and peak FLOP/s of GPUs: the two halves of MFU."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

# Dense bf16, FLOP/s, by what is left of the name torch gives the device. Source: the vendors' data sheets.
_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H100 PCIE": 756e12,
    "H100 NVL": 835e12,
    "A100": 312e12,
    "A100 PCIE": 312e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
_SAYS_NOTHING_OF_SPEED = re.compile(r"NVIDIA|TESLA|GEFORCE|SXM\d*|\d+GB|HBM\d\w*")


def training_flops(config: PreTrainedConfig, lengths: NDArray[np.integer], labels: int) -> float:
    """FLOPs of forward and backward over packed segments of `lengths` tokens, of which `labels` positions reach the head.

    6 per token and weight of a matrix product, plus attention; recomputation does not count. A token attends to its whole
    segment, also with causal attention, or to the window of the layer.
    config: of a loaded model, which names its class.
    Source: Chowdhery et al. 2022 (PaLM), appendix B.
    """
    assert config.architectures, "the configuration of a loaded model names its class"
    encoder, head = _matrix_weights(config.__class__, config.to_json_string(use_diff=False))
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens = lengths.astype(np.float64)
    attended = sum(float((tokens * np.minimum(tokens, reach)).sum()) for reach in attention_reach(config))
    attention = 12 * config.num_attention_heads * width * attended
    return float(6 * encoder * tokens.sum() + attention + 6 * head * labels)


def attention_reach(config: PreTrainedConfig) -> Sequence[float]:
    """Positions that a token can attend to in each layer, itself included; infinity without a window."""
    layers: int = config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    if window is None:
        return [math.inf] * layers
    # ModernBERT counts the neighbours on either side; decoders count the token and those before it.
    reach = 2 * window + 1 if hasattr(config, "local_attention") else window
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return [reach if kind == "sliding_attention" else math.inf for kind in kinds]


def peak_bf16_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by its name (`torch.cuda.get_device_name`); None for an unknown one."""
    words = (word for word in re.split(r"[\s-]+", device_name.upper()) if not _SAYS_NOTHING_OF_SPEED.fullmatch(word))
    return _PEAKS.get(" ".join(words))


@cache  # called for every line of metrics
def _matrix_weights(kind: type[PreTrainedConfig], settings: str) -> tuple[float, int]:
    """Weights in matrix products of the encoder and of the head; shared layers count as often as they are applied."""
    config = kind.from_dict(json.loads(settings))
    with torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, config.architectures[0])(config)

    def count(module: nn.Module) -> int:
        return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear | Conv1D))

    encoder = count(model.base_model)
    head = count(model) - encoder
    shared = [part for name, part in model.base_model.named_modules() if name.endswith("albert_layer_groups")]
    if shared:  # ALBERT; the projection of its embedding is applied once
        encoder += (config.num_hidden_layers / config.num_hidden_groups - 1) * sum(map(count, shared))
    return encoder, head
