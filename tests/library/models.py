"""Models of a few thousand weights for the tokenizer of the tests."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM

from tests.corpora import VOCABULARY

SIZES = {"vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def bert(**options: Any) -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(**SIZES, intermediate_size=48, max_position_embeddings=64, attention_probs_dropout_prob=0.0, **options)
    return BertForMaskedLM(config)
