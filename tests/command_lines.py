"""Command lines of tests: what they must have, what they parse to, and what they are refused with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from stream_pretrain import cli
from stream_pretrain.arguments import parse
from stream_pretrain.config import NAMES, Config, flatten

NEEDED = ["--dataset=corpus", "--model=model", "--max-steps=3"]


def with_last(arguments: Sequence[str]) -> list[str]:
    """The arguments but for those, each `--name=value`, whose option is given again further on: the program refuses that."""
    names = [NAMES.get(word.removeprefix("--").partition("=")[0]) if word.startswith("--") else None for word in arguments]
    return [word for place, word in enumerate(arguments) if names[place] is None or names[place] not in names[place + 1 :]]


def parsed(*arguments: str) -> dict[str, Any]:
    """The options that differ from their default."""
    default = flatten(Config())
    return {name: value for name, value in flatten(parse(arguments)).items() if value != default[name]}


def one_line_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")
