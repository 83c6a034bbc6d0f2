"""A packed document computes what the document alone computes, forward and backward, in every family."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from stream_pretrain.errors import ModelError
from stream_pretrain.model import packed_attention
from stream_pretrain.model.isolation import make_causal
from stream_pretrain.model.packed_attention import PACKED_ATTENTION, block_diagonal_mask
from stream_pretrain.model.pretraining import PretrainingModel
from tests.model.families import (
    CAUSAL,
    MADE_CAUSAL,
    MASKED,
    SEGMENTS,
    causal_masks,
    gradients,
    largest_difference,
    packed_rows,
    tiny_model,
)


@pytest.mark.parametrize("longest_masked_row", [512, 0], ids=["by mask", "one by one"])
@pytest.mark.parametrize("family", [*MASKED, *CAUSAL, "mpnet"])
def test_a_packed_document_equals_the_document_alone(
    family: str, longest_masked_row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "LONGEST_MASKED_ROW", longest_masked_row)
    model = tiny_model(family, None if family == "mpnet" else PACKED_ATTENTION)  # MPNet takes a mask from PretrainingModel
    reference = tiny_model(family).double()
    assert_packed_equals_alone(model.double(), reference, lambda document: reference(document).logits)


@pytest.mark.parametrize("longest_masked_row", [512, 0], ids=["by mask", "one by one"])
@pytest.mark.parametrize("family", MADE_CAUSAL)
def test_a_packed_document_of_an_encoder_made_causal_equals_the_document_alone_under_a_causal_mask(
    family: str, longest_masked_row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "LONGEST_MASKED_ROW", longest_masked_row)
    model, reference = tiny_model(family, PACKED_ATTENTION), tiny_model(family).double()
    make_causal(model, 24, mask_token_id=None)

    def alone(document: Tensor) -> Tensor:
        return reference(document, attention_mask=causal_masks(reference, document.shape[1])).logits

    assert_packed_equals_alone(model.double(), reference, alone)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_packed_document_under_a_mask_equals_the_document_alone_on_every_processor_and_in_every_type(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without AVX-512, torch 2.13 misreads a mask of another type than float64 queries, and says nothing."""
    attend, masks = F.scaled_dot_product_attention, []

    def watched(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **more: Any) -> Tensor:
        masks.append(attn_mask)
        assert attn_mask is None or attn_mask.dtype in (torch.bool, query.dtype)
        return attend(query, key, value, attn_mask=attn_mask, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    model, reference = tiny_model("bert", "sdpa").to(dtype), tiny_model("bert", "sdpa").double()
    if dtype == torch.float64:
        assert_packed_equals_alone(model, reference, lambda document: reference(document).logits)
    else:
        PretrainingModel(model).logits(*packed_rows(), torch.arange(48)).sum().backward()
    assert any(mask is not None for mask in masks)


def assert_packed_equals_alone(model: PreTrainedModel, reference: PreTrainedModel, alone: Callable[[Tensor], Tensor]) -> None:
    """Logits and gradients of packed rows and of their documents. In float64: what differs is no rounding.

    But for some norms, which Gemma computes in float32 whatever the model's type.
    """
    input_ids, position_ids, cu_seq_lens = packed_rows()
    real = torch.cat([torch.arange(24 * row, 24 * row + sum(lengths[:-1])) for row, lengths in enumerate(SEGMENTS)])
    weights = torch.randn(len(real), 100, generator=torch.Generator().manual_seed(2))

    packed = PretrainingModel(model).logits(input_ids, position_ids, cu_seq_lens, real)
    (packed * weights).sum().backward()
    documents = [part for ids, lengths in zip(input_ids, SEGMENTS, strict=True) for part in ids.split(lengths)[:-1]]
    expected = torch.cat([alone(document[None])[0] for document in documents])
    (expected * weights).sum().backward()

    assert packed.dtype == torch.float64
    torch.testing.assert_close(packed, expected, atol=1e-6, rtol=0)
    assert largest_difference(gradients(model), gradients(reference)) < 1e-7


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_rows_computed_one_document_at_a_time_equal_rows_under_a_mask(
    causal: bool, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, cu_seq_lens = packed_rows()
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 24, 8, generator=generator) for heads in (4, 2, 2))
    outputs = []
    for longest_masked_row in (512, 0):
        monkeypatch.setattr(packed_attention, "LONGEST_MASKED_ROW", longest_masked_row)
        output, _ = packed_attention.packed_attention(
            nn.Identity(), query, key, value, None, is_causal=causal, sliding_window=window, cu_seq_lens_q=cu_seq_lens
        )
        outputs.append(output)
    assert outputs[0].shape == (2, 24, 4, 8)
    torch.testing.assert_close(outputs[0], outputs[1])


@pytest.mark.parametrize("kernel_has_gqa", [False, True])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_what_the_varlen_kernel_is_given_is_what_rows_under_a_mask_are(
    key_heads: int, causal: bool, window: int | None, kernel_has_gqa: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the kernel of torch, which runs on GPUs only: plain attention of each document."""

    def varlen_attn(
        q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
        *, scale: float, window_size: tuple[int, int], enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        assert kernel_has_gqa or not enable_gqa
        assert enable_gqa or q.shape == k.shape == v.shape
        assert cu_seq_q is cu_seq_k
        assert cu_seq_q.diff().max() <= max_q == max_k
        k, v = (states.repeat_interleave(q.shape[1] // states.shape[1], dim=1) for states in (k, v))
        position = torch.arange(len(q))
        behind = position[:, None] - position
        left, right = (size if size >= 0 else len(q) for size in window_size)
        document = torch.searchsorted(cu_seq_q, position, right=True)
        seen = (document[:, None] == document) & (behind <= left) & (behind >= -right)
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)

    monkeypatch.setattr(packed_attention, "varlen_attn", varlen_attn)
    monkeypatch.setattr(packed_attention, "_VARLEN_HAS_GQA", kernel_has_gqa)
    _, _, cu_seq_lens = packed_rows()
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 24, 8, generator=generator) for heads in (4, key_heads, key_heads))
    found = packed_attention._varlen(query, key, value, cu_seq_lens, causal, None if window is None else window - 1, 0.3)
    expected, _ = packed_attention.packed_attention(
        nn.Identity(), query, key, value, None,
        scaling=0.3, is_causal=causal, sliding_window=window, cu_seq_lens_q=cu_seq_lens,
    )  # fmt: skip
    torch.testing.assert_close(found, expected)


def test_the_mask_lets_a_position_see_its_document_within_the_window() -> None:
    cu_seq_lens = torch.tensor([0, 3, 5, 6, 10, 10], dtype=torch.int32)
    mask = block_diagonal_mask(cu_seq_lens, batch=2, length=5)
    assert mask[:, 0].int().tolist() == [
        [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]],
        [[1, 0, 0, 0, 0], [0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 1, 1, 1, 1]],
    ]
    causal = block_diagonal_mask(cu_seq_lens, batch=2, length=5, window=1, causal=True)
    assert causal[1, 0].int().tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama", "mistral"])
def test_a_padded_batch_is_refused_rather_than_attended_to(family: str) -> None:
    input_ids, _, _ = packed_rows()
    model = tiny_model(family, PACKED_ATTENTION)
    with pytest.raises(ModelError, match="packed attention takes cu_seq_lens_q and no attention_mask"):
        model(input_ids, attention_mask=torch.ones_like(input_ids))


def test_autocast_to_bfloat16_works_on_the_cpu() -> None:
    model = PretrainingModel(tiny_model("qwen3", PACKED_ATTENTION, initializer_range=0.02))
    rows = packed_rows()
    positions = torch.arange(48)
    with torch.no_grad():
        expected = model.logits(*rows, positions)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.logits(*rows, positions)
    assert logits.dtype == torch.bfloat16
    assert float((logits - expected).norm() / expected.norm()) < 0.05


def test_attention_with_a_soft_cap_is_refused() -> None:
    states = torch.zeros(1, 1, 4, 8)
    with pytest.raises(ModelError, match="Identity needs softcap in its attention"):
        packed_attention.packed_attention(
            nn.Identity(), states, states, states, None, softcap=30.0, cu_seq_lens_q=torch.tensor([0, 4])
        )


def test_rows_of_middling_length_make_no_gpu_wait_for_the_host() -> None:
    """On the device that has shapes but no values, reading where documents begin is an error."""
    states = torch.zeros(2, 1, 512, 8, device="meta")
    cu_seq_lens = torch.tensor([0, 512, 1024], dtype=torch.int32).to("meta")
    output, _ = packed_attention.packed_attention(nn.Identity(), states, states, states, None, cu_seq_lens_q=cu_seq_lens)
    assert output.shape == (2, 512, 1, 8)


def test_rows_of_middling_length_break_no_compiled_graph() -> None:
    states = torch.zeros(2, 1, 512, 8)
    cu_seq_lens = torch.tensor([0, 512, 1024], dtype=torch.int32)
    compiled = torch.compile(packed_attention.packed_attention, backend="eager", fullgraph=True)
    output, _ = compiled(nn.Identity(), states, states, states, None, cu_seq_lens_q=cu_seq_lens)
    assert output.shape == (2, 512, 1, 8)


def test_a_document_that_crosses_a_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_attention, "LONGEST_MASKED_ROW", 0)
    states = torch.zeros(2, 1, 4, 8)
    with pytest.raises(AssertionError, match="crosses the end of its row"):
        packed_attention.packed_attention(
            nn.Identity(), states, states, states, None, cu_seq_lens_q=torch.tensor([0, 5, 8], dtype=torch.int32)
        )
