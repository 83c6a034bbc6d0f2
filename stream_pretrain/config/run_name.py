"""The name of a run: the same command finds its folder, whatever version of this program began it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from stream_pretrain.config.options import Config, defaults, fixed_options
from stream_pretrain.config.secrets import shown_options

_LONGEST_WORD = 100  # a name on the Hub has at most 96 characters, that of a folder 255

EARLIER_DEFAULTS: dict[str, Any] = {
    "data.dataset": None,
    "data.sources": [],
    "data.weight_schedule": [],
    "data.name": None,
    "data.split": "train",
    "data.revision": None,
    "data.data_files": None,
    "data.data_dir": None,
    "data.reader": "auto",
    "data.text_field": "text",
    "data.text_template": None,
    "data.min_characters": 0,
    "data.max_characters": None,
    "data.drop_duplicates": False,
    "data.sequence_length": 512,
    "data.packing": "best_fit",
    "data.heldout_fraction": 0.0,
    "data.max_line_bytes": 67108864,
    "model.path": None,
    "model.config": None,
    "model.tokenizer": None,
    "model.revision": None,
    "model.init_from": None,
    "model.resize_embeddings": False,
    "objective.name": "mlm",
    "objective.mask_rate": 0.3,
    "objective.selection": "token",
    "objective.mask_share": 0.8,
    "objective.random_share": 0.1,
    "train.global_batch_size": 256,
    "train.seed": 0,
}
"""Up to November 2026 a run was named by all these options, defaults included, and a checkpoint said no defaults.

Never to be changed: runs have these names, and the same command has to find them.
"""

_EARLIER_KEYS = {
    "data.sources": frozenset(
        {
            "name",
            "dataset",
            "weight",
            "max_epochs",
            "config",
            "split",
            "revision",
            "data_files",
            "data_dir",
            "storage_options",
            "text_field",
            "text_template",
            "min_characters",
            "max_characters",
            "heldout_fraction",
        }
    ),
    "data.weight_schedule": frozenset({"from_step", "weights"}),
}
"""Of the records of an option, likewise."""

_DEFAULTS = {**EARLIER_DEFAULTS, "data.text_documents": "line", "data.special_tokens": "text"}
"""Since then a run is named by what differs from these, whatever the defaults are today: its command may say them.

The default of an option that is newer enters here before it changes.
"""
_KEYS = {"data.sources": {"weight": 1.0, "split": "train"}}
"""Of the records of an option, likewise; other keys have none."""


def run_directory(config: Config) -> Path:
    """OUT: as given, else runs/<dataset>-<model>-<hash of the options that must not change and are not as by default>.

    Signatures and keys are left out of it: the same command with new ones goes on with its run. So does it with a run that
    an earlier version has named.
    """
    if config.run.output_dir is not None:
        return Path(config.run.output_dir)
    options = shown_options(fixed_options(config))
    model = config.model.path or config.model.config or "model"
    corpus = options["data.dataset"] or "+".join(source.name for source in config.data.sources)
    words = [re.sub(r"[^A-Za-z0-9._+]+", "-", Path(part).name).strip("-")[:_LONGEST_WORD] for part in (corpus, model)]

    def named(hashed: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:8]
        return Path("runs") / "-".join([*(word for word in words if word), digest])

    said = _said(config, options)
    now, then = named(said), _said_then(options, said)
    if then is not None and named(then).exists() and not now.exists():
        return named(then)
    return now


def _said(config: Config, options: dict[str, Any]) -> dict[str, Any]:
    """The options that are not as by default, and of their records the keys."""
    today = defaults(config)
    said = {
        name: value
        for name, value in options.items()
        if value != _DEFAULTS.get(name, today[name]) and (value != today[name] or name in config.given)
    }
    for name in said.keys() & _EARLIER_KEYS.keys():
        usual = _KEYS.get(name, {})
        said[name] = [{key: inner for key, inner in record.items() if inner != usual.get(key)} for record in said[name]]
    return said


def _said_then(options: dict[str, Any], said: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier version took the hash of; None where something is said that it did not know."""

    def known(name: str, value: Any) -> Any:
        keys = _EARLIER_KEYS.get(name)
        return value if keys is None else [{key: inner for key, inner in r.items() if key in keys} for r in value]

    if any(name not in EARLIER_DEFAULTS or known(name, value) != value for name, value in said.items()):
        return None
    return {name: known(name, options[name]) if name in said else usual for name, usual in EARLIER_DEFAULTS.items()}
