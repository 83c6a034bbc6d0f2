"""Loads a tokenizer; refuses what has no fast one."""

from __future__ import annotations

import os

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stream_pretrain.config import ModelConfig
from stream_pretrain.errors import ModelError
from stream_pretrain.model.hub import first_line, only_cached, refuse_file, refuse_known
from stream_pretrain.model.kinds import UNREADABLE, read_config


def load_tokenizer(
    model: ModelConfig, *, local_files_only: bool = False, advice: str = "name one with --model.tokenizer"
) -> PreTrainedTokenizerFast:
    """The tokenizer of --model.tokenizer, else of the model; with `local_files_only` from the cache.

    advice: where the model has none that can be used. Raises: ModelError where there is none, or no fast one.
    """
    name = model.tokenizer or model.path
    assert name is not None, "validated: a model from scratch has a tokenizer"
    revision = model.revision if model.tokenizer is None else None
    another = advice if model.tokenizer is None else "name another"
    refuse_file(name)
    local_files_only = local_files_only or only_cached(name, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision, local_files_only=local_files_only, trust_remote_code=model.trust_remote_code
        )
    except UNREADABLE as error:
        refuse_known(name, revision, error)
        if model.tokenizer is None and os.path.isdir(name):
            read_config(name, model, local_files_only)  # what is no model has no tokenizer either
        raise ModelError(f"no tokenizer in {name}: {first_line(error)}; {another}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"the tokenizer of {name} ({type(tokenizer).__name__}) has no fast version (tokenizer.json):"
            f" convert it, or {another}"
        )
    if len(tokenizer.get_vocab()) <= len(set(tokenizer.all_special_ids)):  # which transformers makes up where files are missing
        raise ModelError(f"no tokenizer in {name}: there are special tokens only; {another}")
    return tokenizer
