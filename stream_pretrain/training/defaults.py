"""Defaults of a run under way do not change: an option that is not given has the one of when the run began."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stream_pretrain import earlier
from stream_pretrain.config import ALIASES, Config, defaults, flatten
from stream_pretrain.errors import DamagedCheckpointError


def defaults_of_then(config: Config, trainer: Mapping[str, Any], checkpoint: Path, command: Sequence[str]) -> dict[str, Any]:
    """The options that are not given and had another default when the run began, with that one.

    trainer: what trainer.json of the checkpoint says; one of an earlier version says nothing of defaults.
    Raises: DamagedCheckpointError for a default of another type.
    """
    then, now, given = trainer.get("defaults", earlier.OPTIONS), defaults(config), set(_given(command))
    kept = {}
    for name, value in flatten(config).items():
        # How a run is recorded and kept is asked for before its checkpoints are read, and anew at each start.
        if name.startswith("run.") or name in given or name not in then or value != now[name] or value == then[name]:
            continue
        if type(then[name]) not in (type(value), type(None)) and value not in (None, "auto"):
            raise DamagedCheckpointError(
                f"{checkpoint / 'trainer.json'}: defaults.{name} is {then[name]!r}: use another checkpoint"
            )
        kept[name] = then[name]
    return kept


def _given(command: Sequence[str]) -> Iterator[str]:
    """The options that stand on a command line, by dotted name."""
    for word in command:
        name = word.partition("=")[0].removeprefix("--").replace("_", "-")
        yield ALIASES.get(name, name.replace("-", "_"))


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
