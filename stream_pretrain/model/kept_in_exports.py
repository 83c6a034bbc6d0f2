"""Files and untrained weights of a model that every export contains as they were."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stream_pretrain.config import ModelConfig
from stream_pretrain.model.hub import first_line, only_cached
from stream_pretrain.units import first_of

_OF_MODEL = ("generation_config.json", *(f"{name}*" for name in ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")))
"""Files that belong to the weights. Not a README, which describes the weights before training."""
_OF_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.jinja", "additional_chat_templates/*.jinja"),
)
_OF_CODE = ("*.py",)
"""Only with --model.trust-remote-code."""
_MOST_NAMES = 8
"""Weights named in a line."""


@dataclass(frozen=True)
class KeptInExports:
    """What exports contain beside the trained weights."""

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """By their names in the export; on the CPU, with their stored dtype."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Content by name."""


def kept_in_exports(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerFast,
    model: PreTrainedModel,
    unexpected: Iterable[str],
    local_files_only: bool,
) -> tuple[KeptInExports, list[str]]:
    """What exports keep of the model and the tokenizer, and the notes. unexpected: stored weights that were not loaded."""
    code = _OF_CODE if config.trust_remote_code else ()
    origins: list[tuple[str, str | None, tuple[str, ...]]] = []  # the last is that of the weights, and may lack files of others
    if config.config is not None and code:
        is_file = Path(config.config).is_file()
        origins.append((str(Path(config.config).parent) if is_file else config.config, None, code))
    if tokenizer.name_or_path:
        revision = config.revision if config.tokenizer is None else None
        origins.append((tokenizer.name_or_path, revision, (*_OF_TOKENIZER, *code)))
    for name, revision in ((config.path, config.revision), (config.init_from, None)):
        if name is not None:
            origins.append((name, revision, (*_OF_MODEL, *code)))
    files: dict[str, bytes] = {}
    notes: list[str] = []
    folder: Path | None = None
    for name, revision, patterns in origins:
        try:
            folder = _folder_of(name, revision, patterns, local_files_only)
        except OSError as error:  # not fatal: the weights were found
            folder = None
            notes.append(f"exports lack the licence and other files of {name}: {first_line(error)}")
        files |= _files_of(folder, patterns)
    others, left_out = weights_left_over(model, unexpected)
    weights = _read_weights(folder, others, model.base_model_prefix)
    stored = {name.removeprefix(f"{model.base_model_prefix}.") for name in weights}
    left_out += [name for name in others if name.removeprefix(f"{model.base_model_prefix}.") not in stored]
    for what, names in (("not trained, exported unchanged", list(weights)), ("not used, not exported", left_out)):
        if names:
            notes.append(f"{what}: {first_of(sorted(names), _MOST_NAMES)}")
    return KeptInExports(weights, files), notes


def _folder_of(name: str, revision: str | None, patterns: Sequence[str], local_files_only: bool) -> Path | None:
    """The folder with the files of a model: a local one, or the Hub cache, to which those that match are downloaded.

    Raises: OSError where the Hub fails.
    """
    if os.path.exists(name):
        return Path(name) if os.path.isdir(name) else None
    # With the configuration, which is in the cache: the client of the Hub warns where nothing matches.
    either = ["config.json", *(case for pattern in patterns for case in (pattern, pattern.lower()))]
    cached = local_files_only or only_cached(name, revision)
    return Path(snapshot_download(name, revision=revision, allow_patterns=either, local_files_only=cached))


def _files_of(folder: Path | None, patterns: Sequence[str]) -> dict[str, bytes]:
    if folder is None:
        return {}
    names = {path: path.relative_to(folder).as_posix() for path in sorted((*folder.glob("*"), *folder.glob("*/*.jinja")))}
    return {
        name: path.read_bytes()
        for path, name in names.items()
        if path.is_file() and any(fnmatch(name.lower(), pattern.lower()) for pattern in patterns)
    }


def weights_left_over(model: PreTrainedModel, unexpected: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of stored weights that the model did not load: of modules it does not have, such as a pooler, and of others."""
    modules = {_kind(name) for name, _ in model.named_modules()}
    of_others: list[str] = []
    of_its_own: list[str] = []
    for name in sorted(unexpected):
        owner = name.rpartition(".")[0]
        known = _kind(owner) in modules or _kind(f"{model.base_model_prefix}.{owner}") in modules
        (of_its_own if known else of_others).append(name)
    return of_others, of_its_own


def _read_weights(folder: Path | None, names: Sequence[str], prefix: str) -> dict[str, Tensor]:
    """Stored weights by their names in an export, where those of the encoder begin with `prefix`.

    Only those in safetensors files.
    """
    found: dict[str, Tensor] = {}
    of_encoder = True
    for path in _weight_files(folder) if names else []:
        with safe_open(path, framework="pt") as stored:
            there = set(stored.keys())
            of_encoder &= not any(name.startswith(f"{prefix}.") for name in there)
            found |= {name: stored.get_tensor(name).clone() for name in names if name in there}
    return {f"{prefix}.{name}" if of_encoder else name: weight for name, weight in found.items()}


def _weight_files(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    return [path for path in (folder / "model.safetensors",) if path.exists()]


def _kind(name: str) -> str:
    """The name of a module with `*` for the number of its layer."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)
