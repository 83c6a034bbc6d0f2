"""Attention in which the documents of a packed row do not see each other, registered with transformers.

A row holds several documents one after the other; `cu_seq_lens` has their boundaries. On CUDA in bf16, torch's varlen kernel
takes them as they are. Elsewhere short rows take a block-diagonal mask, and long rows one call per document.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

from stream_pretrain.errors import ModelError

# Must not contain "flash", "sdpa" or "flex_attention": transformers would treat it as one of them.
PACKED_ATTENTION = "packed_documents"

# Up to this length, a mask is faster than a call per document. Measured on one CPU core, forward and backward of attention with
# 4 heads of 64: 19 ms against 24 for 24 rows of 128 tokens with 99 documents, 21 against 15 for 8 rows of 256 with 28, 87
# against 46 for 8 rows of 512 with 35. Documents of ten tokens cost 1.8 times as much by calls, in rows of 256. Calls need the
# boundaries on the host: a synchronisation with the GPU in every layer, and a graph break when compiled.
LONGEST_MASKED_ROW = 128
LONGEST_MASKED_ROW_WITHOUT_HOST = 512

# Arguments of some models that no kernel here supports.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cache")

_VARLEN_LARGEST_HEAD = 256
_VARLEN_HAS_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters  # torch >= 2.12


def block_diagonal_mask(
    cu_seq_lens: Tensor, batch: int, length: int, window: int | None = None, causal: bool = False
) -> Tensor:
    """True where a query may see a key: in the same document, at most `window` apart, and not later if `causal`.

    Shapes: cu_seq_lens int32 [S + 1] over the flattened batch * length; returns bool [batch, 1, length, length].
    """
    positions = torch.arange(batch * length, dtype=cu_seq_lens.dtype, device=cu_seq_lens.device)
    document = torch.searchsorted(cu_seq_lens, positions, right=True).view(batch, 1, length, 1)
    mask = document == document.transpose(2, 3)
    if causal or window is not None:
        mask = mask & _near(length, window, causal, cu_seq_lens.device)
    return mask


def one_document(model: PreTrainedModel, length: int) -> dict[str, Tensor]:
    """The arguments of a forward pass for a row of `length` tokens that is one document."""
    if model.config._attn_implementation != PACKED_ATTENTION:
        return {}
    return {"cu_seq_lens_q": torch.tensor([0, length], dtype=torch.int32, device=model.device)}


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls.

    Shapes: query [B, H, L, D]; key, value [B, H or fewer, L, D]; cu_seq_lens_q int32 [S + 1], no document crossing a row,
    trailing repeats allowed; returns [B, L, H, D].
    Raises: ModelError for arguments that no kernel here supports, and without cu_seq_lens_q.
    """
    if cu_seq_lens_q is None or attention_mask is not None:
        raise ModelError(
            "packed attention takes cu_seq_lens_q and no attention_mask: for other rows, call"
            ' set_attn_implementation("sdpa") first'
        )
    unsupported = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if unsupported:
        raise ModelError(f"{type(module).__name__} needs {', '.join(unsupported)} in its attention")
    assert dropout == 0, "packed attention has no dropout"

    batch, heads, length, size = query.shape
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    window = None if sliding_window is None or sliding_window > length else sliding_window - 1
    grouped = key.shape[1] != heads

    # Under autocast, rotary embeddings leave query and key in float32: use the autocast dtype.
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else value.dtype
    if query.is_cuda and dtype == torch.bfloat16 and size % 8 == 0 and size <= _VARLEN_LARGEST_HEAD:
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        return _varlen(query, key, value, cu_seq_lens_q, causal, window, scaling), None
    at_hand = query.device.type == "cpu" and not torch.compiler.is_compiling()
    if length > (LONGEST_MASKED_ROW if at_hand else LONGEST_MASKED_ROW_WITHOUT_HOST):
        return _one_by_one(query, key, value, cu_seq_lens_q, causal, window, scaling), None
    mask = block_diagonal_mask(cu_seq_lens_q, batch, length, window, causal)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=grouped)
    return output.transpose(1, 2), None


def _near(length: int, window: int | None, causal: bool, device: torch.device) -> Tensor:
    """Bool [length, length]: the key is at most `window` away from the query, and not later if `causal`."""
    index = torch.arange(length, device=device)
    distance = index[:, None] - index[None, :]
    near = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    return near if window is None else near & (distance.abs() <= window)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_lens: Tensor, causal: bool, window: int | None, scale: float | None
) -> Tensor:
    batch, heads, length, size = query.shape
    q, k, v = (states.transpose(1, 2).reshape(batch * length, -1, size) for states in (query, key, value))
    extra: dict[str, Any] = {}
    if k.shape[1] != heads:
        if _VARLEN_HAS_GQA:
            extra["enable_gqa"] = True
        else:
            k, v = (states.repeat_interleave(heads // states.shape[1], dim=1) for states in (k, v))
    left = -1 if window is None else window
    output = varlen_attn(
        q, k, v, cu_seq_lens, cu_seq_lens, length, length, scale=scale, window_size=(left, 0 if causal else left), **extra
    )
    assert isinstance(output, Tensor)
    return output.view(batch, length, heads, size)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the number and lengths of the documents are data
def _one_by_one(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_lens: Tensor, causal: bool, window: int | None, scale: float | None
) -> Tensor:
    """One call per document. On a GPU, only for long rows in float32 or float16, or heads too large for the varlen kernel."""
    batch, heads, length, size = query.shape
    grouped = key.shape[1] != heads
    boundaries = cu_seq_lens.tolist()
    lengths = [end - start for start, end in pairwise(boundaries)]
    # Split, not sliced: the gradient of a slice is as large as all rows.
    flat = (states.transpose(1, 2).reshape(1, batch * length, -1, size) for states in (query, key, value))
    documents = zip(*(states.split_with_sizes(lengths, dim=1) for states in flat), strict=True)
    outputs = []
    for start, tokens, (q, k, v) in zip(boundaries, lengths, documents, strict=False):
        if tokens == 0:
            continue
        assert start % length + tokens <= length, "a document crosses the end of its row"
        q, k, v = (states.transpose(1, 2) for states in (q, k, v))
        mask = None if window is None else _near(tokens, window, causal, query.device)
        output = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scale, enable_gqa=grouped
        )
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, dim=1).view(batch, length, heads, size)


# No mask function has this name, so transformers makes no mask. For causal models it would read the position ids on the host, a
# synchronisation with the GPU in every forward pass.
AttentionInterface.register(PACKED_ATTENTION, packed_attention)
