"""The first and last position of a model, found by running it: configurations do not say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from stream_pretrain.errors import ModelError
from stream_pretrain.model.packed_attention import one_document

_LEARNT_POSITIONS = (".position_embeddings", ".wpe")
"""How the names of embeddings of positions end."""


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Dropout and gradients off; the mode of the model is restored."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def ordinary_token_ids(model: PreTrainedModel, count: int, seed: int = 0) -> Tensor:
    """Random token ids without padding, the same for the same seed: int64 [count]."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.get_input_embeddings().num_embeddings
    padding = getattr(model.config, "pad_token_id", None)
    ids = torch.randint(0, vocabulary, (count,), generator=generator)
    if padding is not None:
        ids = torch.where(ids == padding, (ids + 1) % vocabulary, ids)
    return ids.to(model.device)


def first_position(model: PreTrainedModel) -> int:
    """The position id of the first token: 0, or `padding_idx + 1` in the RoBERTa family.

    It is the offset that gives the same logits as no position ids.
    """
    input_ids = ordinary_token_ids(model, 6)[None]
    positions = torch.arange(6, device=input_ids.device)[None]
    candidates = (0, (getattr(model.config, "pad_token_id", None) or 0) + 1)
    document = one_document(model, 6)
    with evaluating(model):
        unaided = model(input_ids, **document).logits
        errors = []
        for first in candidates:
            try:
                errors.append(
                    float((model(input_ids, position_ids=positions + first, **document).logits - unaided).abs().max())
                )
            except (IndexError, RuntimeError):  # beyond the last position
                errors.append(math.inf)
    return candidates[errors.index(min(errors))]


def padding_misfit(name: str, settings: PreTrainedConfig) -> ModelError:
    """What is wrong where a model whose positions start after the id of the padding token cannot be built or computed."""
    padding, count = settings.pad_token_id, getattr(settings, "max_position_embeddings", None)
    if padding is None:
        return ModelError(
            f"the positions of {name} start after the id of the padding token, and the tokenizer has none: "
            "give a --model.tokenizer that has one"
        )
    return ModelError(
        f"the padding token has id {padding}, after which the positions of {name} start, but there are only {count}: "
        "give a --model.tokenizer whose padding token has a small id, such as 1"
    )


def refuse_beyond_positions(model: PreTrainedModel, name: str, sequence_length: int) -> None:
    """Raises: ModelError for rows longer than the model has positions; rotary models have no limit."""
    try:
        first = first_position(model)
    except (IndexError, RuntimeError, TypeError) as error:
        is_none = isinstance(error, TypeError) and model.config.pad_token_id is None
        if is_none or isinstance(error, IndexError) or "out of bounds" in str(error):
            raise padding_misfit(name, model.config) from error
        raise
    token = ordinary_token_ids(model, 1)[None]
    try:
        with evaluating(model):
            model(token, position_ids=torch.full_like(token, first + sequence_length - 1), **one_document(model, 1))
    except (IndexError, RuntimeError) as error:
        raise _beyond(name, model.config.max_position_embeddings, first, sequence_length) from error


def refuse_beyond_outline(outline: PreTrainedModel, name: str, sequence_length: int) -> None:
    """Raises: ModelError for rows longer than a model without weights has positions, where it has an embedding of them."""
    count = getattr(outline.config, "max_position_embeddings", None)
    for key, module in outline.named_modules():
        if isinstance(module, nn.Embedding) and key.endswith(_LEARNT_POSITIONS) and module.num_embeddings == count:
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            if first + sequence_length > count:
                raise _beyond(name, count, first, sequence_length)


def _beyond(name: str, count: int, first: int, sequence_length: int) -> ModelError:
    after = f", since they start after {first - 1}, the id of the padding token" if first > 2 else ""
    return ModelError(
        f"{name} has positions for {count - first} tokens{after}: --sequence-length {sequence_length} must be at most "
        f"{count - first}"
    )
