"""Floating-point operations of a token, and what GPUs can do: the two halves of MFU."""

from __future__ import annotations

import json
from functools import cache

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

# Dense bf16, FLOP/s, by the name torch gives the device. Source: the vendors' data sheets.
_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def flops_per_token(config: PreTrainedConfig, labelled_fraction: float, attended_length: float) -> float:
    """FLOPs of forward and backward for one real token of a packed row.

    6 for each weight it meets in a matrix product, plus attention; causal attention counts in full, recomputation not at all.
    `config` is that of a loaded model, which names its class; `labelled_fraction` the share of positions that reach the head;
    `attended_length` the positions a token attends to on average: sum(d^2) / sum(d) over documents of d tokens.
    Source: Chowdhery et al. 2022 (PaLM), appendix B.
    """
    assert config.architectures, "the configuration of a loaded model names its class"
    encoder, head = _matrix_weights(config.__class__, config.to_json_string(use_diff=False))
    reuse = config.num_hidden_layers / getattr(config, "num_hidden_groups", config.num_hidden_layers)  # ALBERT shares layers
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * width * attended_length
    return float(6 * reuse * encoder + attention + labelled_fraction * 6 * head)


def peak_bf16_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by its name (`torch.cuda.get_device_name`); None if it is not known."""
    for name, peak in _PEAKS.items():
        if name in device_name:
            return peak
    return None


@cache  # asked at every line of metrics
def _matrix_weights(kind: type[PreTrainedConfig], settings: str) -> tuple[int, int]:
    """Weights of all matrix products in the encoder and in the head of the model with these settings (JSON)."""
    config = kind.from_dict(json.loads(settings))
    with torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, config.architectures[0])(config)

    def count(module: nn.Module) -> int:
        return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear | Conv1D))

    encoder = count(model.base_model)
    return encoder, count(model) - encoder
