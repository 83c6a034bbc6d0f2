"""A model and its loss as one module, which the training loop runs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from stream_pretrain.model.labelled_head import LabelledHead
from stream_pretrain.model.packed_attention import PACKED_ATTENTION, block_diagonal_mask
from stream_pretrain.model.positions import first_position


class PretrainingModel(nn.Module):
    """A language model with its loss over packed rows.

    Returns only sums: Accelerate copies every output to float32, and logits are the largest tensor of a step.
    """

    def __init__(self, model: PreTrainedModel, sources: int = 1) -> None:
        """sources: number of sources, each with its own sum of losses."""
        super().__init__()
        self.sources = sources
        self.model = model
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                # Packed rows have no attention mask; the check also makes the host wait for a GPU, at every step.
                module.warn_if_padding_and_no_attention_mask = _no_warning
        self.head = LabelledHead(model)
        self.first_position = first_position(model)
        self.by_mask = model.config._attn_implementation != PACKED_ATTENTION

    def __call__(self, *, cu_seq_lens: Tensor, **inputs: Tensor) -> Any:
        """`forward`; compiled, it is compiled once for any number of segments."""
        if self._compiled_call_impl is not None:
            torch._dynamo.maybe_mark_dynamic(cu_seq_lens, 0)
        return super().__call__(cu_seq_lens=cu_seq_lens, **inputs)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seq_lens: Tensor,
        label_positions: Tensor,
        labels: Tensor,
        label_sources: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of the cross entropy over the labels (float32), number of labels that are the most likely token (int64), and
        the sum for each source (float32 [sources], without gradient).

        Shapes: input_ids, position_ids int64 [B, L], positions from 0 in each segment; cu_seq_lens int32 [S + 1] over the
        flattened B * L, trailing repeats allowed; label_positions int64 [M], indices into B * L; labels int64 [M], -100 is
        padding; label_sources int64 [M].
        """
        logits = self.logits(input_ids, position_ids, cu_seq_lens, label_positions)
        losses = F.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="none")
        correct = (logits.detach().argmax(dim=-1) == labels).sum()
        of_source = losses.new_zeros(self.sources).index_add(0, label_sources, losses.detach())
        return losses.sum(), correct, of_source

    def logits(self, input_ids: Tensor, position_ids: Tensor, cu_seq_lens: Tensor, label_positions: Tensor) -> Tensor:
        """Logits [M, vocabulary] of the labelled positions; arguments as in `forward`."""
        if self.by_mask:
            # Additive, as models with their own attention expect it, and of their dtype: with float64 queries, torch 2.13
            # misreads a float32 mask on processors without AVX-512.
            mask = block_diagonal_mask(cu_seq_lens, *input_ids.shape)
            dtype = self.model.dtype
            additive = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
            isolation = {"attention_mask": additive}
        else:
            isolation = {"cu_seq_lens_q": cu_seq_lens}
        return self.head.logits(
            label_positions, input_ids=input_ids, position_ids=position_ids + self.first_position, **isolation
        )


def _no_warning(*_: object) -> None:
    """In place of a method; a function of the module can be pickled."""
