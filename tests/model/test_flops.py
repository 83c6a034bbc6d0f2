"""FLOPs of a token, against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stream_pretrain.model.flops import flops_per_token, peak_bf16_flops
from tests.model.families import tiny_model


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bert", {}),
        ("modernbert", {"local_attention": 160}),
        ("albert", {"embedding_size": 4}),  # its projection of the embedding counts once per layer, not once
        ("llama", {"use_cache": False}),
        ("gpt2", {"use_cache": False}),
    ],
)
def test_the_count_is_that_of_torchs_flop_counter(family: str, settings: dict[str, object]) -> None:
    model = tiny_model(family, "eager", **settings)
    model.config.architectures = [type(model).__name__]
    input_ids = torch.randint(10, 90, (2, 64), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        model(input_ids).logits.sum().backward()
    counted = counter.get_total_flops() / input_ids.numel()
    assert flops_per_token(model.config, labelled_fraction=1.0, attended_length=64) == pytest.approx(counted, rel=0.01)


def test_the_head_counts_at_labelled_positions_and_attention_by_document_length() -> None:
    config = tiny_model("bert").config
    config.architectures = ["BertForMaskedLM"]
    encoder = 6 * 2 * (4 * 32 * 32 + 2 * 32 * 48)
    head = 6 * (32 * 100 + 32 * 32)
    assert flops_per_token(config, 0.0, 0.0) == encoder
    assert flops_per_token(config, 0.25, 0.0) == encoder + head / 4
    assert flops_per_token(config, 0.0, 10.0) == encoder + 12 * 32 * 2 * 10


def test_the_peak_of_a_gpu_is_known_by_its_name() -> None:
    assert peak_bf16_flops("NVIDIA H200") == 989e12
    assert peak_bf16_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_bf16_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_bf16_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_bf16_flops("NVIDIA L40S") == 362e12
    assert peak_bf16_flops("some other accelerator") is None
