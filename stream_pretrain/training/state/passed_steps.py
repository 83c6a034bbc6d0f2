"""Steps whose rows a run passes over: read, and not trained on. Once given, they stay in every checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from stream_pretrain.config import steps_to_skip
from stream_pretrain.errors import CheckpointError, ConfigError
from stream_pretrain.typed_json import from_json

Passed = tuple[range, ...]
"""Of steps as they are counted: the first one is 1."""


def passed_in(value: Any, where: str) -> Passed:
    """Those of trainer.json or run.json; where: the file and the place in it, for an error. Raises: CheckpointError."""
    found = from_json(list[str], value, where)
    try:
        return tuple(steps for words in found if (steps := steps_to_skip(words)) is not None)
    except ConfigError as error:
        raise CheckpointError(f"{where} is {found}, which no run writes: use another checkpoint") from error


def steps_in_words(passed: Iterable[range]) -> list[str]:
    """For trainer.json and run.json, as the option is given."""
    return [f"{steps.start}:{steps.stop - 1}" for steps in passed]


def is_passed(passed: Sequence[range], step: int) -> bool:
    """Whether the rows of this step are not trained on."""
    return any(step in steps for steps in passed)


def count_up_to(passed: Sequence[range], step: int) -> int:
    """How many of the first steps are passed over."""
    return len({one for steps in passed for one in range(steps.start, min(steps.stop, step + 1))})
