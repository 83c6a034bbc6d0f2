"""Defaults of a run under way do not change: an option that is not given has the one of when the run began."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stream_pretrain.config import EARLIER_DEFAULTS, Config, defaults, flatten
from stream_pretrain.errors import DamagedCheckpointError


def defaults_of_then(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of when the run began, by trainer.json of its checkpoint; one of an earlier version says nothing of them."""
    then: dict[str, Any] = trainer.get("defaults", EARLIER_DEFAULTS)
    return then


def kept_options(config: Config, then: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """The options that are not given and had another default when the run began, with that one.

    Raises: DamagedCheckpointError for a default of another type.
    """
    now = defaults(config)
    kept = {}
    for name, value in flatten(config).items():
        # How a run is recorded and kept is asked for before its checkpoints are read, and anew at each start.
        if name.startswith("run.") or name in config.given or name not in then or value != now[name] or value == then[name]:
            continue
        if type(then[name]) not in (type(value), type(None)) and value not in (None, "auto"):
            raise DamagedCheckpointError(
                f"{checkpoint / 'trainer.json'}: defaults.{name} is {then[name]!r}: use another checkpoint"
            )
        kept[name] = then[name]
    return kept


def with_options(config: Config, options: Mapping[str, Any]) -> Config:
    """The options with some, by dotted name, of another value."""
    for name, value in options.items():
        group, _, option = name.partition(".")
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{option: value})})
    return config


def in_words(config: Config, kept: Mapping[str, Any]) -> Iterator[str]:
    """What is kept, a line each."""
    for name, value in kept.items():
        now = flatten(config)[name]
        yield f"--{name.replace('_', '-')} stays {value}, as by default when the run began (now {now}), unless you give it"
