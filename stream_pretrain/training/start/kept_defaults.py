"""Defaults of a run never change: an option that is not given keeps the default of the first start."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stream_pretrain.config import EARLIER_DEFAULTS, Config, defaults, flatten
from stream_pretrain.errors import DamagedCheckpointError


def defaults_of_then(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the first start, from trainer.json; checkpoints of earlier versions do not have them."""
    return {**_BEFORE_RECORDED, **trainer.get("defaults", EARLIER_DEFAULTS)}


_BEFORE_RECORDED = {"train.learning_rate": 5e-4, "train.warmup_steps": 0}
"""Defaults that have changed since, of options that do not name a run."""


def kept_options(config: Config, then: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Options that are not given and had another default at the first start, with that default.

    Raises: DamagedCheckpointError for a default of the wrong type.
    """
    now = defaults(config)
    kept = {}
    for name, value in flatten(config).items():
        # Options of the group `run` are used before checkpoints are read, and belong to a start.
        if name.startswith("run.") or name in config.given or name not in then or value != now[name] or value == then[name]:
            continue
        if not _may_be(config, name, then[name]):
            raise DamagedCheckpointError(
                f"{checkpoint / 'trainer.json'}: defaults.{name} is {then[name]!r}: use another checkpoint"
            )
        kept[name] = then[name]
    return kept


def _may_be(config: Config, name: str, value: Any) -> bool:
    """Whether a JSON value has the type of an option."""
    group, _, option = name.partition(".")
    kind = typing.get_type_hints(type(getattr(config, group)))[option]
    if typing.get_origin(kind) is tuple:
        return isinstance(value, list)
    members = typing.get_args(kind) if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union else (kind,)
    return any(
        value in typing.get_args(member) if typing.get_origin(member) is typing.Literal else type(value) is member
        for member in members
    )


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
