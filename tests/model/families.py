"""Tiny random models of every family, and packed batches to run them on."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

VOCABULARY = 100

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
}
_SPECIAL = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED = {**_SIZES, **_SPECIAL, "num_key_value_heads": 2, "head_dim": 8}
_DEBERTA = {**_SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}

MASKED = {
    "bert": _SIZES,
    "roberta": _SIZES,
    "xlm-roberta": _SIZES,
    "camembert": _SIZES,
    "electra": {**_SIZES, "embedding_size": 16},
    "albert": {**_SIZES, "embedding_size": 16},
    "distilbert": {
        "vocab_size": VOCABULARY,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 80,
    },
    "modernbert": {**_SIZES, **_SPECIAL, "num_hidden_layers": 4, "local_attention": 8},
    "eurobert": {**_SIZES, **_SPECIAL, "num_key_value_heads": 2, "mask_token_id": 3},
    "nomic_bert": _SIZES,
}
CAUSAL = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 6},
    "gpt_neox": {**_SIZES, **_SPECIAL},
    "gemma": _GROUPED,
    "gemma3_text": {**_GROUPED, "sliding_window": 6},
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 80,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "opt": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": 80,
        "word_embed_proj_dim": 32,
        "pad_token_id": 1,
    },
}
MADE_CAUSAL = ["albert", "distilbert", "modernbert", "eurobert", "nomic_bert"]
"""Encoders without a causal form in transformers."""
IGNORE_REGISTERED_ATTENTION = {
    "mpnet": _SIZES,
    "mobilebert": {
        **_SIZES,
        "embedding_size": 16,
        "intra_bottleneck_size": 16,
    },
    "deberta": _DEBERTA,
    "deberta-v2": {**_DEBERTA, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
}
ALL = {**MASKED, **CAUSAL, **IGNORE_REGISTERED_ATTENTION}

SEGMENTS = [[10, 9, 5], [4, 11, 3, 6]]
"""Two rows of 24 positions; the last segment of each row is padding."""


def tiny_model(family: str, attention: str | None = None, **settings: object) -> PreTrainedModel:
    """A float32 model in evaluation mode, with weights large enough for attention to matter."""
    config = AutoConfig.for_model(family, **{**ALL[family], **settings})
    auto = AutoModelForCausalLM if family in CAUSAL else AutoModelForMaskedLM
    torch.manual_seed(0)
    model = auto.from_config(config, attn_implementation=attention).float().eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.25)
    return model


def causal_masks(model: PreTrainedModel, length: int) -> Tensor | dict[str, Tensor]:
    """The `attention_mask` under which an encoder sees of one document what is in front: ModernBERT has one for each kind."""
    distance = torch.arange(length)[:, None] - torch.arange(length)
    near = {"full_attention": distance >= 0, "sliding_attention": (distance >= 0) & (distance <= 4)}
    nothing = torch.zeros(1, 1, length, length, dtype=model.dtype)  # another type than the queries' may be misread
    masks = {kind: nothing.masked_fill(~mask, -torch.inf) for kind, mask in near.items()}
    return masks if model.config.model_type == "modernbert" else masks["full_attention"]


def packed_rows(segments: list[list[int]] = SEGMENTS, empty: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Random `input_ids`, `position_ids` [B, L] and `cu_seq_lens` with `empty` documents of length zero at the end."""
    lengths = torch.tensor([length for row in segments for length in row] + [0] * empty)
    ids = torch.randint(10, 90, (len(segments), sum(segments[0])), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(length) for length in lengths]).view_as(ids)
    cu_seq_lens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return ids, positions, cu_seq_lens


def gradients(model: torch.nn.Module) -> list[Tensor]:
    """The gradients of all parameters; a parameter without one is a failure."""
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


def largest_difference(gradients: list[Tensor], expected: list[Tensor]) -> float:
    """Largest norm of a difference, relative to the norm of all expected gradients."""
    assert len(gradients) == len(expected)
    total = torch.stack([gradient.norm() for gradient in expected]).norm()
    return max(float((a - b).norm() / total) for a, b in zip(gradients, expected, strict=True))
