"""FLOPs of a token, against torch's own counter."""

import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from stream_pretrain.model.flops import attention_reach, peak_bf16_flops, training_flops
from tests.model.families import tiny_model


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bert", {}),
        ("modernbert", {"local_attention": 160}),
        ("electra", {}),
        ("albert", {"num_hidden_layers": 12}),
        ("albert", {"num_hidden_layers": 12, "num_hidden_groups": 4}),
        ("llama", {"use_cache": False}),
        ("mistral", {"use_cache": False, "sliding_window": 64}),
        ("gpt2", {"use_cache": False}),
    ],
)
def test_the_count_is_that_of_torchs_flop_counter(family: str, settings: dict[str, object]) -> None:
    model = tiny_model(family, "eager", **settings)
    # Some versions of transformers make the angles of rotary positions by a product, which counts some hundred FLOPs.
    assert training_flops(named(model), np.array([64, 64]), labels=128) == pytest.approx(counted(model, 64), rel=1e-4)


@pytest.mark.parametrize("family", ["modernbert", "mistral", "gemma3_text"])
def test_a_layer_with_a_window_counts_what_is_inside_it(family: str) -> None:
    """Torch counts all that is computed under a mask: as much more as the segment is longer than the window."""
    model = tiny_model(family, "eager", **({"use_cache": False} if family != "modernbert" else {}))
    windowed, reach = {"modernbert": (2, 9), "mistral": (2, 6), "gemma3_text": (2, 6)}[family]
    heads, width = 4, 8
    too_much = windowed * 12 * heads * width * 64 * (64 - reach) * 2
    expected = counted(model, 64) - too_much
    assert training_flops(named(model), np.array([64, 64]), labels=128) == pytest.approx(expected, rel=0.01)
    assert too_much > 0.05 * expected


def test_the_reach_of_each_layer_is_read_from_the_configuration() -> None:
    full = math.inf
    assert attention_reach(tiny_model("modernbert", local_attention=8).config) == [full, 9, 9, full]
    assert attention_reach(tiny_model("mistral").config) == [6, 6]
    assert attention_reach(tiny_model("mistral", sliding_window=None).config) == [full, full]
    assert attention_reach(tiny_model("gemma3_text", num_hidden_layers=6).config) == [6, 6, 6, 6, 6, full]
    assert attention_reach(tiny_model("qwen2").config) == [full, full]
    assert attention_reach(tiny_model("bert").config) == [full, full]


def test_the_head_counts_at_labelled_positions_and_attention_by_document_length() -> None:
    config = named(tiny_model("bert"))
    encoder = 6 * 2 * (4 * 32 * 32 + 2 * 32 * 48)
    head = 6 * (32 * 100 + 32 * 32)
    assert training_flops(config, np.array([], dtype=np.int32), 5) == 5 * head
    assert training_flops(config, np.array([10], dtype=np.int32), 0) == 10 * encoder + 12 * 32 * 2 * 100
    assert training_flops(config, np.array([3, 7], dtype=np.int32), 2) == 10 * encoder + 12 * 32 * 2 * (9 + 49) + 2 * head
    assert training_flops(config, np.array([60_000] * 9, dtype=np.int32), 0) > 12 * 32 * 2 * 9 * 60_000**2, "no overflow"


def named(model: PreTrainedModel) -> PreTrainedConfig:
    model.config.architectures = [type(model).__name__]
    return model.config


def counted(model: PreTrainedModel, length: int) -> int:
    """FLOPs of forward and backward over two rows, by torch's counter."""
    input_ids = torch.randint(10, 90, (2, length), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        model(input_ids).logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GB200", None),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("NVIDIA A10G", None),
        ("NVIDIA A100X", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("some other accelerator", None),
    ],
)
def test_the_peak_of_a_gpu_is_known_by_its_whole_name(name: str, peak: float | None) -> None:
    assert peak_bf16_flops(name) == peak
