"""The model of a verification is cut, or refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AlbertConfig, FunnelConfig, GPT2Config, ModernBertConfig, T5Config

from stream_pretrain.config import ModelConfig
from stream_pretrain.errors import ModelError
from stream_pretrain.verification.reduced_model import reduced

SIZES = {"vocab_size": 80, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("settings", "causal"),
    [
        (ModernBertConfig(**SIZES, num_hidden_layers=5, pad_token_id=0), False),
        (AlbertConfig(**SIZES, embedding_size=8, num_hidden_layers=5), False),
        (GPT2Config(vocab_size=80, n_embd=16, n_head=2, n_layer=5), True),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_model_is_cut_to_two_layers(settings: ModernBertConfig, causal: bool, tmp_path: Path) -> None:
    settings.save_pretrained(tmp_path / "model")
    given = ModelConfig(path=str(tmp_path / "model"), init_from="weights")
    (tmp_path / "out").mkdir()
    found = reduced(given, causal=causal, full=False, folder=tmp_path / "out")
    assert (found.settings.num_hidden_layers, found.description) == (2, f"2 of 5 layers of {tmp_path / 'model'}")
    assert found.options == ModelConfig(config=str(tmp_path / "out/model"), tokenizer=str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (FunnelConfig(vocab_size=80, d_model=16, n_head=2, d_head=8, d_inner=16), "no single number|does not support|total"),
        (T5Config(vocab_size=80, d_model=16, d_kv=8, d_ff=16, num_layers=3, num_heads=2), "no masked and no causal"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_model_that_cannot_be_cut_is_refused_by_its_name(settings: T5Config, why: str, tmp_path: Path) -> None:
    settings.save_pretrained(tmp_path / "odd")
    with pytest.raises(ModelError, match=rf"^{tmp_path / 'odd'} .*({why})"):
        reduced(ModelConfig(path=str(tmp_path / "odd")), causal=False, full=False, folder=tmp_path)
