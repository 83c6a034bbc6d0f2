"""Defaults of a run never change: an option that is not given keeps the default of the first start."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stream_pretrain.config import Config, defaults, flatten
from stream_pretrain.training.state.trainer_state import TRAINER
from stream_pretrain.typed_json import from_json


def kept_options(config: Config, then: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Options that are not given and had another default at the first start, with that default.

    then: the defaults that the checkpoint has. Raises: CheckpointError for a default of the wrong type.
    """
    now = defaults(config)
    kept = {}
    for name, value in flatten(config).items():
        # Options of the group `run` are used before checkpoints are read, and belong to a start.
        if name.startswith("run.") or name in config.given or name not in then or value != now[name] or value == then[name]:
            continue
        group, _, option = name.partition(".")
        kind = typing.get_type_hints(type(getattr(config, group)))[option]
        kept[name] = from_json(kind, then[name], f"{checkpoint / TRAINER}: defaults.{name}")
    return kept


def with_options(config: Config, options: Mapping[str, Any]) -> Config:
    """The config with some options replaced, by dotted name."""
    for name, value in options.items():
        group, _, option = name.partition(".")
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{option: value})})
    return config


def in_words(config: Config, kept: Mapping[str, Any]) -> Iterator[str]:
    """A line for each kept option."""
    for name, value in kept.items():
        now = flatten(config)[name]
        yield f"--{name.replace('_', '-')} stays {value}, the default when the run began (now {now}), unless you give it"
