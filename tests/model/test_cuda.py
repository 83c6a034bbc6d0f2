"""What only a GPU can show: the varlen kernel against float32, and a step in which the host waits for nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stream_pretrain.config import TrainConfig
from stream_pretrain.data.rows.batches import Batch, memory_for, micro_batches
from stream_pretrain.data.rows.labels import Labelled
from stream_pretrain.data.rows.packing import assemble
from stream_pretrain.data.rows.train_rows import TrainRows, joined
from stream_pretrain.model.packed_attention import PACKED_ATTENTION, packed_attention
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.training.start.optimizer import adamw
from tests.model.families import CAUSAL, MASKED, packed_rows, tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA knows")

CUDA = torch.device("cuda")
LENGTHS = [1, 7, 128, 300, 76, 512, 511, 1, 200, 312]
"""Documents that fill four rows of 512 positions."""
NO_DROPOUT = {"attention_probs_dropout_prob": 0.0, "attention_dropout": 0.0, "attn_pdrop": 0.0}


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().float(), expected.detach()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("heads", "key_heads", "size", "causal", "window"),
    [
        (12, 12, 64, False, None),
        (12, 12, 64, False, 65),
        (12, 12, 64, True, None),
        (8, 2, 128, True, None),
        (8, 2, 128, True, 100),
        (4, 4, 256, False, None),
    ],
)
def test_the_varlen_kernel_computes_what_float32_computes_one_document_at_a_time(
    heads: int, key_heads: int, size: int, causal: bool, window: int | None
) -> None:
    cu_seq_lens = torch.tensor([0, *LENGTHS, 0, 0, 0], device="cuda").cumsum(0).to(torch.int32)
    generator = torch.Generator("cuda").manual_seed(0)
    states = [torch.randn(4, count, 512, size, device="cuda", generator=generator) for count in (heads, key_heads, key_heads)]
    weights = torch.randn(4, 512, heads, size, device="cuda", generator=generator)
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        inputs = [state.to(torch.bfloat16).to(dtype).requires_grad_() for state in states]
        output, _ = packed_attention(
            nn.Identity(), *inputs, None, is_causal=causal, sliding_window=window, cu_seq_lens_q=cu_seq_lens
        )
        (output.float() * weights).sum().backward()
        results.append([output, *(state.grad for state in inputs)])
    for found, expected in zip(*results, strict=True):
        assert relative_error(found, expected) < 0.02


@pytest.mark.parametrize("family", [*MASKED, *CAUSAL, "mpnet"])
def test_a_model_in_bfloat16_on_a_gpu_has_the_loss_of_float32_on_the_cpu(family: str) -> None:
    model = PretrainingModel(tiny_model(family, None if family == "mpnet" else PACKED_ATTENTION, **NO_DROPOUT))
    batch = labelled_batch()
    expected, _, _ = model(**vars(batch))
    with torch.autocast("cuda", torch.bfloat16):
        found, _, _ = model.cuda()(**{name: value.cuda() for name, value in vars(batch).items()})
    assert relative_error(found.cpu(), expected) < 0.02


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("waiting_is_an_error")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # said by the first call
@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
def test_the_host_waits_for_nothing_in_a_step_but_for_the_norm_of_the_gradient(family: str) -> None:
    model = PretrainingModel(tiny_model(family, PACKED_ATTENTION, use_cache=False, **NO_DROPOUT)).cuda().train()
    optimizer = adamw(model, TrainConfig(learning_rate=5e-4))
    losses = []
    for step in range(3):
        if step == 1:  # the first step compiles kernels and allocates
            torch.cuda.set_sync_debug_mode("error")
        rows = joined([(three_rows(), range(3))], memory_for(CUDA))
        for batch in micro_batches(rows, size=2, count=2, pad=0, device=CUDA):
            with torch.autocast("cuda", torch.bfloat16):
                loss, _, _ = model(**vars(batch))
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(torch.stack([loss.detach(), norm]))
    with pytest.raises(RuntimeError, match="synchronizing"):
        norm.item()
    torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all()


def test_batches_are_made_on_a_gpu_as_on_the_cpu() -> None:
    found, expected = (micro_batches(three_rows(), 2, 2, 0, torch.device(device)) for device in ("cuda", "cpu"))
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(value.cpu(), getattr(other, name)) for name, value in vars(one).items())


def three_rows() -> TrainRows:
    """Of 48 positions, four documents, with two labels each."""
    placements = [(0, 0, 0, 30), (0, 1, 0, 18), (1, 2, 0, 40), (2, 3, 0, 48)]
    ids = np.arange(136, dtype=np.int32) % 90 + 5
    rows = assemble(np.array(placements), ids, np.array([0, 30, 48, 88, 136]), 48, [], [], 0)
    positions = np.array([[3, 35], [0, 7], [1, 0]], dtype=np.int32)
    labels = np.take_along_axis(rows.input_ids, positions, axis=1)
    labels[2, 1] = -100
    return TrainRows.of(rows, Labelled(rows.input_ids, positions, labels), source=0)


def labelled_batch() -> Batch:
    input_ids, position_ids, cu_seq_lens = packed_rows()
    label_positions = torch.tensor([1, 5, 9, 12, 20, 25, 30, 40, 0, 0])
    labels = input_ids.flatten()[label_positions]
    labels[-2:] = -100
    return Batch(input_ids, position_ids, cu_seq_lens, label_positions, labels, torch.zeros_like(labels))
