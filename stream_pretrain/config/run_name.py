"""The default folder of a run, which the same command finds again with any version of this program."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from glob import has_magic
from pathlib import Path
from typing import Any

from stream_pretrain.config.option_values import defaults, fixed_options
from stream_pretrain.config.options import Config
from stream_pretrain.config.secrets import shown_options

_LONGEST_WORD = 100  # a name on the Hub has at most 96 characters, that of a folder 255

_EARLIER_DEFAULTS: dict[str, Any] = {
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
"""Until November 2026, all these options were hashed into the name of a run.

Frozen: runs have these names, and the same command must find them.
"""

_EARLIER_KEYS = {
    "data.sources": frozenset(
        {
            *("name", "dataset", "weight", "max_epochs", "config", "split", "revision", "data_files", "data_dir"),
            *("storage_options", "text_field", "text_template", "min_characters", "max_characters", "heldout_fraction"),
        }
    ),
    "data.weight_schedule": frozenset({"from_step", "weights"}),
}
"""Likewise, the keys of records."""

_DEFAULTS = {**_EARLIER_DEFAULTS, "data.text_documents": "line", "data.special_tokens": "text"}
"""Since then, the options that differ from these defaults are hashed, whatever the defaults of today are.

Frozen too. Before the default of a newer option changes, the old one is added here.
"""
_KEYS = {"data.sources": {"weight": 1.0, "split": "train"}}
"""Likewise, the defaults of keys of records; other keys have none."""


def run_directory(config: Config) -> Path:
    """OUT: --output-dir, else runs/<dataset>-<model>-<hash of the fixed options that differ from their defaults>.

    Secrets are not hashed: the same command with a new signature or key resumes the run. So it does with a run that an
    earlier version named.
    """
    if config.run.output_dir is not None:
        return Path(config.run.output_dir)
    options = shown_options(fixed_options(config))
    model = config.model.path or config.model.config or "model"
    corpus = options["data.dataset"] or "+".join(source.name for source in config.data.sources)
    hashed = _hashed(config, options)
    then = _hashed_until_2026(options, hashed)
    name, was = ([of(place) for place in (corpus, model)] for of in (_word, _word_until_2026))
    now = _named(name, hashed)
    earlier = [_named(was, content) for content in (hashed, then) if content is not None]
    return next((folder for folder in (now, *earlier) if folder.exists()), now)


def _named(words: list[str], content: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs", "-".join([*filter(None, words), digest]))


def _word(place: str) -> str:
    """A dataset or model in the name of a run: its last part, or of a pattern the folder that it begins with."""
    parts = Path(place).parts
    folders = list(itertools.takewhile(lambda part: not has_magic(part), parts))
    named = (re.sub(r"[^A-Za-z0-9._+]+", "-", part).strip("-.")[:_LONGEST_WORD] for part in (*folders[-1:], *parts[-1:]))
    return next(filter(None, named), "")


def _word_until_2026(place: str) -> str:
    """Likewise, by earlier versions: of `*.gz`, which made a hidden folder."""
    return re.sub(r"[^A-Za-z0-9._+]+", "-", Path(place).name).strip("-")[:_LONGEST_WORD]


def _hashed(config: Config, options: dict[str, Any]) -> dict[str, Any]:
    """The options that differ from their defaults; of records, the keys that do."""
    today = defaults(config)
    hashed = {
        name: value
        for name, value in options.items()
        if value != _DEFAULTS.get(name, today[name]) and (value != today[name] or name in config.given)
    }
    for name in hashed.keys() & _EARLIER_KEYS.keys():
        usual = _KEYS.get(name, {})
        hashed[name] = [{key: inner for key, inner in record.items() if inner != usual.get(key)} for record in hashed[name]]
    return hashed


def _hashed_until_2026(options: dict[str, Any], hashed: dict[str, Any]) -> dict[str, Any] | None:
    """What earlier versions hashed; None where an option is given that they did not have."""

    def known(name: str, value: Any) -> Any:
        keys = _EARLIER_KEYS.get(name)
        return value if keys is None else [{key: inner for key, inner in r.items() if key in keys} for r in value]

    if any(name not in _EARLIER_DEFAULTS or known(name, value) != value for name, value in hashed.items()):
        return None
    return {name: known(name, options[name]) if name in hashed else usual for name, usual in _EARLIER_DEFAULTS.items()}
