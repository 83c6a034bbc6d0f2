"""The commands, a module each: what it takes stands in its constants, and `run` does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stream_pretrain.config import Config


@dataclass(frozen=True)
class Invocation:
    """What a command was given."""

    config: Config
    """The options of a run."""
    own: Mapping[str, Any]
    """The options of single commands, one dataclass a group of `COMMAND_GROUPS`."""
    operands: tuple[str, ...]
    """Arguments that are no options, such as the folder of a run."""
    typed: frozenset[str]
    """Options given on the command line, by dotted name with hyphens."""
    as_json: bool
    """--json: the result is one JSON object on stdout."""


@dataclass(frozen=True)
class Answer:
    """What a command prints: lines for people, or with --json one object."""

    lines: Sequence[str]
    record: Mapping[str, Any]
    exit_code: int = 0
