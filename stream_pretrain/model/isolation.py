"""Probes whether documents of one row influence each other; every model is probed before it trains."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stream_pretrain.errors import ModelError
from stream_pretrain.model.packed_attention import PACKED_ATTENTION
from stream_pretrain.model.positions import evaluating, ordinary_token_ids
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.model.quiet_transformers import unreported

# Relative to the largest logit. A masked key has weight exactly 0, so another document must change nothing; a document alone
# takes matrix products of other shapes, which round differently.
_INFLUENCE_TOLERANCE = 1e-6
_ALONE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Probe:
    """Two rows of two documents each, and a second text for every document."""

    input_ids: Tensor  # int64 [2, L]
    other_ids: Tensor  # int64 [2, L]
    position_ids: Tensor  # int64 [2, L]
    cu_seq_lens: Tensor  # int32 [7], the last two documents are empty
    document: Tensor  # int64 [2 * L], 0 to 3
    final: Tensor  # bool [2 * L], the last token of each document


def choose_attention(model: PreTrainedModel, sequence_length: int, causal: bool, mask_token_id: int | None) -> tuple[str, ...]:
    """Set an attention that isolates packed documents exactly; returns a note where that is the slow one.

    Packed attention is tried first; a bidirectional model that ignores it falls back to a block-diagonal mask.
    Raises: ModelError with the reason when neither isolates.
    """
    original = model.config._attn_implementation
    probe = _probe(model, sequence_length, mask_token_id)
    with evaluating(model):
        alone = _documents_alone(model, probe)
    if not alone.isfinite().all():
        raise ModelError(
            f"{type(model).__name__}: its logits are not finite numbers, as of damaged weights: choose another model"
        )
    with unreported():  # a note or the error says whether the model has this attention
        model.set_attn_implementation(PACKED_ATTENTION)
    if model.config._attn_implementation == PACKED_ATTENTION:
        fault = _fault(model, probe, alone, causal)
        if fault is None:
            return ()
        model.set_attn_implementation(original)
    else:
        fault = "the model ignores transformers' attention interface"
    name = type(model).__name__
    if not causal:
        mask_fault = _fault(model, probe, alone, causal)
        if mask_fault is None:
            return (
                f"{name}: documents are isolated by a block-diagonal mask, which is slower than packed attention ({fault})",
            )
        fault = f"{fault}; with a block-diagonal mask: {mask_fault}"
    raise ModelError(f"{name} cannot isolate the documents of a row ({fault}): choose another model")


def make_causal(model: PreTrainedModel, sequence_length: int, mask_token_id: int | None) -> tuple[str, ...]:
    """Make the attention of an encoder causal; returns the notes. Call `choose_attention` first.

    Sets `is_causal` on modules of an encoder that has no causal class in transformers. Exports do not keep that: no
    configuration can.
    Raises: ModelError where tokens still see later tokens.
    """
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = True
    trained = PretrainingModel(model)
    fault = isolation_fault(trained, sequence_length, True, mask_token_id)
    trained.head.detach()
    if fault is not None:
        raise ModelError(f"{type(model).__name__} cannot be trained on next tokens ({fault}): choose another model")
    return (f"{model.config.model_type} becomes causal while it trains: its exports are when given a causal attention_mask",)


def isolation_fault(model: PretrainingModel, sequence_length: int, causal: bool, mask_token_id: int | None) -> str | None:
    """Why documents of one row are not isolated in this model on its device; None if they are."""
    probe = _probe(model.model, sequence_length, mask_token_id)
    with evaluating(model.model):
        return _influence(model, probe, causal)


def _fault(model: PreTrainedModel, probe: _Probe, alone: Tensor, causal: bool) -> str | None:
    trained = None
    try:
        trained = PretrainingModel(model)
        with evaluating(model):
            difference = (_logits(trained, probe, probe.input_ids) - alone).abs().max()
            if not difference <= _ALONE_TOLERANCE * alone.abs().max():
                return f"a packed document differs from the document alone by {difference:.1e}"
            return _influence(trained, probe, causal)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        first_line = str(error).partition("\n")[0]
        return f"{type(error).__name__}: {first_line}"
    finally:
        if trained is not None:
            trained.head.detach()


def _influence(model: PretrainingModel, probe: _Probe, causal: bool) -> str | None:
    before = _logits(model, probe, probe.input_ids)
    tolerance = _INFLUENCE_TOLERANCE * before.abs().max()

    def change(replaced: Tensor) -> Tensor:
        """Largest change of any logit outside the replaced positions [2 * L]."""
        input_ids = torch.where(replaced.view_as(probe.input_ids), probe.other_ids, probe.input_ids)
        return (_logits(model, probe, input_ids) - before)[~replaced].abs().max()

    for which in (0, 1):
        leak = change(probe.document % 2 == which)
        if not leak <= tolerance:
            return f"documents leak into each other by {leak:.1e}"
    if causal and not (leak := change(probe.final)) <= tolerance:
        return f"tokens see later tokens, by {leak:.1e}"
    return None


def _logits(model: PretrainingModel, probe: _Probe, input_ids: Tensor) -> Tensor:
    every_position = torch.arange(input_ids.numel(), device=input_ids.device)
    return model.logits(input_ids, probe.position_ids, probe.cu_seq_lens, every_position)


def _documents_alone(model: PreTrainedModel, probe: _Probe) -> Tensor:
    flat = probe.input_ids.flatten()
    return torch.cat(
        [model(flat[None, start:end]).logits[0] for start, end in pairwise(probe.cu_seq_lens.tolist()) if start < end]
    )


def _probe(model: PreTrainedModel, sequence_length: int, mask_token_id: int | None) -> _Probe:
    # Only a document that is longer than a window or chunk shows it.
    windows = [getattr(model.config, name, None) or 0 for name in ("sliding_window", "local_attention", "attention_chunk_size")]
    length = max(4, min(sequence_length, max(32, *(2 * window + 8 for window in windows if window < sequence_length))))
    lengths = [length // 3, length - length // 3, length // 2, length - length // 2]
    boundaries = [0, *accumulate(lengths)]
    document = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    other_ids = ordinary_token_ids(model, 2 * length, seed=1)
    if mask_token_id is not None:  # some models count the mask tokens of a row
        other_ids[::5] = mask_token_id
    final = torch.zeros(2 * length, dtype=torch.bool)
    final[[boundary - 1 for boundary in boundaries[1:]]] = True
    device = model.device
    return _Probe(
        input_ids=ordinary_token_ids(model, 2 * length).view(2, length),
        other_ids=other_ids.view(2, length),
        position_ids=torch.cat([torch.arange(n) for n in lengths]).view(2, length).to(device),
        cu_seq_lens=torch.tensor([*boundaries, 2 * length, 2 * length], dtype=torch.int32, device=device),
        document=document.to(device),
        final=final.to(device),
    )
