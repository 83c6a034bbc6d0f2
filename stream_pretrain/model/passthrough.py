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
from transformers import PreTrainedModel

from stream_pretrain.model.hub import only_cached
from stream_pretrain.non_utf8_names import utf8_path

OF_MODEL = ("generation_config.json", *(f"{name}*" for name in ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")))
"""Files that belong to the weights. Not a README, which describes the weights before training."""
OF_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.jinja", "additional_chat_templates/*.jinja"),
)
OF_CODE = ("*.py",)
"""Only with --model.trust-remote-code."""


@dataclass(frozen=True)
class Passthrough:
    """What exports contain beside the trained weights."""

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """By their names in the export; on the CPU, with their stored dtype."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Content by name."""


def folder_of(name: str, revision: str | None, patterns: Sequence[str], *, local_files_only: bool) -> Path | None:
    """The folder with the files of a model: a local one, or the Hub cache, to which those that match are downloaded.

    Raises: OSError where the Hub fails.
    """
    if os.path.exists(name):
        return Path(name) if os.path.isdir(name) else None
    either = [case for pattern in patterns for case in (pattern, pattern.lower())]
    cached = local_files_only or only_cached(name, revision)
    return Path(snapshot_download(name, revision=revision, allow_patterns=either, local_files_only=cached))


def files_of(folder: Path | None, patterns: Sequence[str]) -> dict[str, bytes]:
    """Content of the files of a folder that match, by name."""
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


def read_weights(folder: Path | None, names: Sequence[str], prefix: str) -> dict[str, Tensor]:
    """Stored weights by their names in an export, where those of the encoder begin with `prefix`.

    Only those in safetensors files.
    """
    found: dict[str, Tensor] = {}
    of_encoder = True
    for path in _weight_files(folder) if names else []:
        with utf8_path(path.parent) as folder, safe_open(folder / path.name, framework="pt") as stored:
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
