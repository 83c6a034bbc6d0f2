"""The commands, a module each: its constants declare what it takes, `run` executes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What a command prints: lines for people, or with --json one object."""

    lines: Sequence[str]
    record: Mapping[str, Any]
    exit_code: int = 0
