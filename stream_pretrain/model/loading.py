"""Loads a model and its tokenizer; refuses what does not fit the run, before any data is read."""

from __future__ import annotations

import copy
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from stream_pretrain.config import ModelConfig
from stream_pretrain.errors import ModelError
from stream_pretrain.model.hub import first_line, not_cached, only_cached, refuse_file, refuse_known
from stream_pretrain.model.isolation import choose_attention, make_causal
from stream_pretrain.model.kept_in_exports import KeptInExports, kept_in_exports, weights_left_over
from stream_pretrain.model.kinds import AUTO_CLASSES, is_only_causal, kind_to_load, read_config
from stream_pretrain.model.packed_attention import one_document
from stream_pretrain.model.positions import (
    evaluating,
    ordinary_token_ids,
    padding_misfit,
    refuse_beyond_outline,
    refuse_beyond_positions,
)
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.model.quiet_transformers import unreported
from stream_pretrain.model.tokenizer import load_tokenizer

ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
"""Names of the dropout of attention probabilities, by model family."""

_VOCABULARY_MULTIPLE = 64
"""An embedding that grows is padded to a multiple of this, for faster matrix products."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to train, with notes for the user."""

    model: PreTrainedModel
    """float32 weights on the CPU, packed attention set, attention dropout 0."""
    tokenizer: PreTrainedTokenizerFast
    notes: tuple[str, ...]
    """Changes and additions, one line each."""
    original_settings: dict[str, Any]
    """Settings that training changes and an export restores."""
    kept: KeptInExports
    new_head: str | None = None
    """Why there is a head that was never trained."""


@dataclass(frozen=True)
class Export:
    """The content of a folder that `from_pretrained` reads."""

    weights: Mapping[str, Tensor]
    """Tied weights once; with untrained weights that came with the model."""
    settings: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Content by name of files that are exported as they came with the model and its tokenizer."""


def load_model(
    config: ModelConfig,
    causal: bool,
    tokenizer: PreTrainedTokenizerFast,
    sequence_length: int,
    seed: int,
    *,
    local_files_only: bool = False,
    vocabulary: int | None = None,
) -> LoadedModel:
    """The model to train: pretrained, or from scratch with weights that depend on `seed` alone.

    Keeps the global random state. With `local_files_only`, reads only the cache.
    causal: whether the objective lets a position see only those before it.
    vocabulary: the size of the embedding of the run that is resumed.
    Raises: ModelError where the model or tokenizer does not fit the run.
    """
    name = config.path or config.config
    assert name is not None, "validated: a model or a configuration is given"
    local_files_only = local_files_only or only_cached(name, config.revision)
    settings = read_config(name, config, local_files_only)
    kind = kind_to_load(settings, causal)
    if config.path is not None and getattr(settings, "quantization_config", None):
        raise ModelError(f"{name} is quantized, and cannot be trained: give the model that it was made from")
    if not causal:
        _refuse_without_masks(name, settings, tokenizer)
    original_settings, notes = _prepare(settings, kind, causal)
    if config.path is None:
        _take_special_tokens(settings, tokenizer)
    known = settings.vocab_size
    vocabulary = vocabulary or _vocabulary(config, tokenizer, known, local_files_only)
    notes += _notes_of_vocabulary(known, vocabulary)
    notes += _notes_of_another_tokenizer(config, tokenizer, local_files_only)

    unexpected: set[str] = set()
    new_head: str | None = None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if config.init_from is not None:
            settings.vocab_size = vocabulary
            model, unexpected = _from_checkpoint(config.init_from, config, settings, kind, local_files_only)
        elif config.path is not None:
            model, unexpected, new_head = _from_pretrained(name, config, settings, kind, local_files_only)
            notes += [] if new_head is None else [new_head]
            if vocabulary > known:
                model.resize_token_embeddings(vocabulary)
        else:
            settings.vocab_size = vocabulary
            model = _from_scratch(name, config, settings, kind)

    kept, of_exports = kept_in_exports(config, tokenizer, model, unexpected, local_files_only)
    notes += of_exports
    model.config.architectures = [type(model).__name__]
    refuse_beyond_positions(model, name, sequence_length)
    notes += choose_attention(model, sequence_length, kind == "causal", tokenizer.mask_token_id)
    if causal and kind == "masked":
        notes += make_causal(model, sequence_length, tokenizer.mask_token_id)
        original_settings["is_decoder"] = True  # `evaluate` reads it
    notes += _leave_out_unused(model, name)
    if config.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ModelError(f"{name} does not support --model.gradient-checkpointing: leave the option out")
        recompute_activations(model)
    return LoadedModel(model, tokenizer, tuple(notes), original_settings, kept, new_head)


def _refuse_without_masks(name: str, settings: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a model or a tokenizer that cannot be used with masks. Raises: ModelError."""
    _refuse_only_causal(name, settings)
    if tokenizer.mask_token_id is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path} has no mask token, which --objective.name mlm needs: "
            "give a --model.tokenizer that has one, or --objective.name clm"
        )


def _refuse_only_causal(name: str, settings: PreTrainedConfig) -> None:
    if is_only_causal(settings):
        raise ModelError(
            f"{name} is a causal language model ({settings.model_type}), which --objective.name mlm cannot train: "
            "give --objective.name clm, or another model"
        )


def _notes_of_vocabulary(known: int, vocabulary: int) -> list[str]:
    if vocabulary > known:
        return [f"the embedding grows from {known} to {vocabulary} tokens: the new rows are untrained"]
    return [f"the embedding has {vocabulary} tokens, as the tokenizer needs, not {known}"] if vocabulary < known else []


def _notes_of_another_tokenizer(config: ModelConfig, tokenizer: PreTrainedTokenizerFast, local_files_only: bool) -> list[str]:
    """A warning where most tokens have other ids than the pretrained embedding was made for."""
    if config.path is None or config.tokenizer is None:
        return []
    try:
        own = load_tokenizer(replace(config, tokenizer=None), local_files_only=local_files_only).get_vocab()
    except ModelError:  # the model has none of its own, or only a slow one
        return []
    given = tokenizer.get_vocab()
    moved = sum(given.get(token) != place for token, place in own.items())
    if moved <= len(own) / 2:
        return []
    return [
        f"{config.tokenizer} is not the tokenizer of {config.path}: {moved:,} of the {len(own):,} tokens have other ids or "
        "none, so most embeddings begin as those of other tokens"
    ]


def sized_model(config: ModelConfig, causal: bool, sequence_length: int | None = None) -> tuple[PreTrainedConfig, int]:
    """The configuration of a model, with its class, and its parameters, without loading it.

    Raises: ModelError, also where rows of `sequence_length` are too long for it.
    """
    name = config.path or config.config
    assert name is not None, "a model or a configuration is given"
    settings = read_config(name, config, only_cached(name, config.revision))
    if not causal:
        _refuse_only_causal(name, settings)
    kind = kind_to_load(settings, causal)
    with torch.device("meta"):
        model = _from_scratch(name, config, settings, kind)
    if sequence_length is not None:
        refuse_beyond_outline(model, name, sequence_length)
    settings.architectures = [type(model).__name__]
    return settings, model.num_parameters()


def recompute_activations(model: PreTrainedModel) -> None:
    """Enable gradient checkpointing."""
    # Renamed in transformers 5.23.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def export_of(loaded: LoadedModel, model: nn.Module) -> Export:
    """The model as it is now. The tensors are live: copy them before the next step.

    model: the unwrapped PretrainingModel, or the model in it.
    """
    bare = model.model if isinstance(model, PretrainingModel) else model
    assert isinstance(bare, PreTrainedModel), "unwrap the model before exporting it"
    tied = bare.all_tied_weights_keys
    weights = {key: tensor.detach() for key, tensor in bare.state_dict().items() if key not in tied}
    settings = copy.deepcopy(bare.config)
    for option, value in loaded.original_settings.items():
        setattr(settings, option, value)
    return Export(weights | dict(loaded.kept.weights), settings, loaded.tokenizer, loaded.kept.files)


def _leave_out_unused(model: PreTrainedModel, name: str) -> list[str]:
    """Freeze the parameters without influence on the loss, such as a bias of BERT heads that are not tied; DDP needs that."""
    used = _parameters_in_logits(model)
    unused = {key: weight for key, weight in model.named_parameters() if weight.requires_grad and id(weight) not in used}
    kinds = {re.sub(r"\.\d+\.", ".*.", key) for key, weight in model.named_parameters() if id(weight) in used}
    for key, weight in unused.items():
        if re.sub(r"\.\d+\.", ".*.", key) in kinds:  # used in another layer, or by another expert
            raise ModelError(f"{name} does not use all its parameters for every token, for example {key}: choose another model")
        weight.requires_grad_(False)
    return [f"not trained, as the loss does not depend on them: {', '.join(unused)}"] if unused else []


def _parameters_in_logits(model: PreTrainedModel) -> set[int]:
    """The `id` of every parameter that the logits depend on, from the autograd graph."""
    input_ids = ordinary_token_ids(model, 8)[None]
    with evaluating(model), torch.enable_grad():
        waiting = [model(input_ids, **one_document(model, 8)).logits.grad_fn]
    seen, found = set(waiting), set()
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        following = {next_node for next_node, _ in node.next_functions if next_node is not None} - seen
        seen |= following
        waiting += following
    return found


def _vocabulary(config: ModelConfig, tokenizer: PreTrainedTokenizerFast, known: int, local_files_only: bool) -> int:
    """The size of the embedding of a new run; `known` is that of the configuration. Raises: ModelError."""
    from_scratch = config.path is None and config.resize_embeddings
    if from_scratch and config.init_from is not None:
        known = int(read_config(config.init_from, replace(config, revision=None), local_files_only).vocab_size)
    needed: int = max(tokenizer.get_vocab().values()) + 1
    if needed > known and not config.resize_embeddings:
        raise ModelError(
            f"the tokenizer has {needed} tokens, the embedding of {config.path or config.config} only {known}: use the model's "
            "own tokenizer, or let the embedding grow with --model.resize-embeddings"
        )
    if needed > known or (from_scratch and config.init_from is None):
        return -(-needed // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    return known


def _prepare(settings: PreTrainedConfig, kind: str, causal: bool) -> tuple[dict[str, Any], list[str]]:
    """Change settings for training; returns the original values and the notes."""
    notes = []
    original = {option: getattr(settings, option) for option in ATTENTION_DROPOUTS if getattr(settings, option, 0)}
    for option, value in original.items():
        setattr(settings, option, 0.0)
        notes.append(f"{option} is 0 while training (packed attention has no dropout); exports keep {value}")
    if getattr(settings, "use_cache", False):
        original["use_cache"] = True
        settings.use_cache = False
    has_both = type(settings) in AutoModelForMaskedLM._model_mapping
    if kind == "causal" and getattr(settings, "is_decoder", None) is False and has_both:
        settings.is_decoder = True
        notes.append(f"{settings.model_type} becomes causal: is_decoder is set and exported")
    if kind == "masked" and getattr(settings, "is_decoder", False):
        settings.is_decoder = False
        if not causal:
            notes.append(f"{settings.model_type} becomes bidirectional: is_decoder is unset and exported")
    return original, notes


def _take_special_tokens(settings: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    """Take the ids of special tokens from the tokenizer, for a model from scratch."""
    for token in ("pad", "bos", "eos", "cls", "sep", "mask"):
        option = f"{token}_token_id"
        if hasattr(settings, option):
            try:
                setattr(settings, option, getattr(tokenizer, option))
            except StrictDataclassFieldValidationError as error:
                raise ModelError(
                    f"the tokenizer has no {token} token, which a {settings.model_type} needs: give another --model.tokenizer"
                ) from error


def _from_scratch(name: str, config: ModelConfig, settings: PreTrainedConfig, kind: str) -> PreTrainedModel:
    try:
        return AUTO_CLASSES[kind].from_config(settings, dtype=torch.float32, trust_remote_code=config.trust_remote_code)
    except (ValueError, AssertionError, RuntimeError, KeyError, ImportError) as error:
        refuse_known(name, config.revision, error)
        if "Padding_idx" in str(error):
            raise padding_misfit(name, settings) from error
        raise ModelError(f"{name} cannot be built as a {kind} language model: {first_line(error)}") from error


def _from_pretrained(
    name: str, config: ModelConfig, settings: PreTrainedConfig, kind: str, local_files_only: bool
) -> tuple[PreTrainedModel, set[str], str | None]:
    """The model, the stored weights that it did not load, and why it has a new head, if it has."""
    model, info = _load_weights(name, config.revision, config, settings, kind, local_files_only)
    missing = {key: model.get_parameter(key) for key in info["missing_keys"]}
    if not missing:
        return model, info["unexpected_keys"], None
    encoder = {id(weight) for weight in model.base_model.parameters()}
    head = {id(weight) for weight in model.parameters()} - encoder
    if {id(weight) for weight in missing.values()} != head:
        raise ModelError(
            f"{name} lacks weights of {type(model).__name__}, for example {min(missing)}: the folder is incomplete"
        )
    note = f"{name} has no {kind} language-model head: a new one is trained ({', '.join(sorted(missing))})"
    return model, info["unexpected_keys"], note


def _from_checkpoint(
    name: str, config: ModelConfig, settings: PreTrainedConfig, kind: str, local_files_only: bool
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the stored weights that it did not load."""
    local_files_only = local_files_only or only_cached(name, None)
    model, info = _load_weights(name, None, config, settings, kind, local_files_only)
    different = sorted({*info["missing_keys"], *weights_left_over(model, info["unexpected_keys"])[1]})
    if different:
        raise ModelError(
            f"--init-from {name} does not match the model: {len(different)} weights are missing or unexpected, for example"
            f" {different[0]}"
        )
    return model, info["unexpected_keys"]


_UNLOADABLE = (
    *(OSError, ValueError, RuntimeError, TypeError, KeyError, ImportError, AssertionError),
    *(SafetensorError, pickle.UnpicklingError, EOFError),
)


def _load_weights(
    name: str, revision: str | None, config: ModelConfig, settings: PreTrainedConfig, kind: str, local_files_only: bool
) -> tuple[PreTrainedModel, dict[str, Any]]:
    refuse_file(name)
    try:
        with unreported():  # a table of weights: notes and errors say in a line what matters of it
            model, info = AUTO_CLASSES[kind].from_pretrained(
                name,
                revision=revision,
                config=settings,
                dtype=torch.float32,
                output_loading_info=True,
                local_files_only=local_files_only,
                trust_remote_code=config.trust_remote_code,
            )
    except _UNLOADABLE as error:
        refuse_known(name, revision, error)
        if "Padding_idx" in str(error):
            raise padding_misfit(name, settings) from error
        if local_files_only and not os.path.exists(name):
            raise not_cached(name) from error
        if "ignore_mismatched_sizes" in str(error):
            raise ModelError(f"{name} does not match its configuration: weights have other shapes") from error
        if "no file named" in str(error):
            scratch = "" if config.init_from else f", or --model.config {name} to train from scratch"
            raise ModelError(f"no weights in {name}: give another model{scratch}") from error
        raise ModelError(f"{name} cannot be loaded as a {kind} language model: {first_line(error)}") from error
    return model, info
