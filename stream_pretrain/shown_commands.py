"""Command lines as they are shown and recorded: without secrets, and as they begin a run."""

from __future__ import annotations

from collections.abc import Sequence

from stream_pretrain.config import NAMES, SYNONYMS, redacted_text


def values_of(arguments: Sequence[str]) -> list[str]:
    """The possible values on a command line: after `=`, and arguments of their own."""
    return [argument.partition("=")[2] if argument.startswith("--") else argument for argument in arguments]


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """The arguments with `…` for secrets."""
    shown: list[str] = []
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            shown.append(f"{name}={redacted_text(_field(name), value)}" if equals else name)
        else:
            shown.append(redacted_text(_field(name), argument))
    return shown


def of_the_run(arguments: Sequence[str]) -> list[str]:
    """The arguments that begin the run, among those of its --dry-run."""
    kept: list[str] = []
    is_kept = True
    for argument in arguments:
        if argument.startswith("--"):
            name = argument.partition("=")[0]
            is_kept = name not in ("--dry-run", "--json") and not _field(name).startswith("inspect.")
        if is_kept:
            kept.append(argument)
    return kept


def _field(argument: str) -> str:
    """The dotted name of an option as it is typed, with underscores as its field has it."""
    name = argument.removeprefix("--").replace("_", "-")
    return NAMES.get(name, SYNONYMS.get(name, name)).replace("-", "_")
