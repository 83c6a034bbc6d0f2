"""Command lines of tests: one begins with another, and gives some of its options anew."""

from __future__ import annotations

from collections.abc import Sequence

from stream_pretrain.config import NAMES


def with_last(arguments: Sequence[str]) -> list[str]:
    """The arguments but for those, each `--name=value`, whose option is given again further on: the program refuses that."""
    names = [NAMES.get(word.removeprefix("--").partition("=")[0]) if word.startswith("--") else None for word in arguments]
    return [word for place, word in enumerate(arguments) if names[place] is None or names[place] not in names[place + 1 :]]
