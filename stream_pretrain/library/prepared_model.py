"""A transformers model for the packed batches of a `TokenStream`."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from stream_pretrain.data.rows.labels import IGNORED
from stream_pretrain.errors import ModelError
from stream_pretrain.library.token_stream import TokenStream
from stream_pretrain.model.isolation import choose_attention, isolation_fault
from stream_pretrain.model.loading import ATTENTION_DROPOUTS
from stream_pretrain.model.positions import refuse_beyond_positions
from stream_pretrain.model.pretraining import PretrainingModel

CAUSAL_MODELS = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()) - frozenset(MODEL_FOR_MASKED_LM_MAPPING_NAMES.values())
"""Names of the classes that predict the next token alone."""


def prepare(model: PreTrainedModel, stream: TokenStream) -> PreTrainedModel:
    """Make a model isolate the documents of a row, proven by a probe on its device; the stream then gives packed batches.

    Changes the model, and returns it: `model(**batch)` has a `loss`, the mean over the labels of the batch, 0 without any, and
    the `logits` of the labelled positions. It is saved, copied, wrapped and trained like any other, and prepared again for each
    other stream, such as one to evaluate on.
    Raises: ModelError where it mixes documents, has attention dropout, is of another objective, or lacks positions or tokens.
    """
    causal, length = stream.plan.objective.causal, stream.plan.layout.sequence_length
    name, mask_id = type(model).__name__, stream.tokenizer.mask_token_id
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"the model is of type {name}: give one of transformers, before it is wrapped or compiled")
    if model.base_model is model and model.get_output_embeddings() is None:
        raise ModelError(
            f"{name} has no language-model head: load it with {'AutoModelForCausalLM' if causal else 'AutoModelForMaskedLM'}"
        )
    for option in ATTENTION_DROPOUTS:
        if getattr(model.config, option, 0):
            raise ModelError(
                f"{name} has {option} {getattr(model.config, option)}, which packed attention does not: load it with "
                f"from_pretrained(..., {option}=0.0)"
            )
    if not causal and name in CAUSAL_MODELS:
        raise ModelError(f'{name} sees no later tokens: give the stream objective="clm", or load an encoder')
    embedded, known = model.get_input_embeddings().num_embeddings, len(stream.tokenizer)
    if known > embedded:
        raise ModelError(f"{name} has {embedded} tokens, the tokenizer {known}: call resize_token_embeddings({known}) first")
    refuse_beyond_positions(model, name, length)
    was_prepared = isinstance(model.forward, functools.partial) and model.forward.func is _forward
    if was_prepared:
        packed = model.forward.args[1]
    else:
        choose_attention(model, length, causal, mask_id)
        packed = PretrainingModel(model)
    fault = isolation_fault(packed, length, causal, mask_id)
    if fault is not None:
        raise ModelError(f"{name} does not isolate the documents of a row on {model.device} ({fault}): choose another model")
    if not was_prepared:
        # No closure: a copy of the model, as of averaged weights, has to call itself.
        model.forward = functools.partial(_forward, model.forward, packed)
    stream.is_prepared = True
    return model


def _forward(original: Any, packed: PretrainingModel, *arguments: Any, cu_seq_lens: Tensor | None = None, **inputs: Any) -> Any:
    if cu_seq_lens is None:  # called by `packed`, or with a batch of another kind
        return original(*arguments, **inputs)
    return _packed_output(packed, *arguments, cu_seq_lens=cu_seq_lens, **inputs)


def _packed_output(
    packed: PretrainingModel,
    input_ids: Tensor,
    *,
    labels: Tensor,
    position_ids: Tensor,
    cu_seq_lens: Tensor,
    label_positions: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> MaskedLMOutput:
    """Loss and logits of a batch, in the shapes of `TokenStream`.

    num_items_in_batch: labels of all micro-batches of a step, which a Trainer gives; the loss is the sum over that number.
    """
    places = torch.arange(labels.numel(), device=labels.device) if label_positions is None else label_positions
    logits = packed.logits(input_ids, position_ids, cu_seq_lens, places)
    labels = labels.reshape(-1)
    total = torch.nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    count = (labels != IGNORED).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return MaskedLMOutput(loss=total / count, logits=logits)
