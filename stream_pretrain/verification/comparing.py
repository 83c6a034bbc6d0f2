"""What a disturbed run trained on, compared with the undisturbed one."""

from __future__ import annotations

import filecmp
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stream_pretrain.verification.recorded_steps import RecordedSegment, RecordedStep

TENSORS = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Difference:
    """The first step that is not as it should be."""

    step: int
    row: int | None
    message: str
    """With the document."""


@dataclass(frozen=True)
class Comparison:
    """How the steps of all starts of a run compare with those of a run that nothing has happened to."""

    rows_equal: bool
    losses_equal: bool
    losses_differ_by: float
    """Largest relative difference of the loss of a step."""
    documents_lost: int
    """Documents of which fewer tokens were trained on, counted over the steps that the last checkpoint has."""
    documents_repeated: int
    """Documents of which more were."""
    first_difference: Difference | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compared(
    starts: Sequence[Mapping[int, RecordedStep]],
    expected: Mapping[int, RecordedStep],
    shards: Sequence[str],
    tolerance: float,
) -> Comparison:
    """Compare every step of every start, also those that a kill undid.

    tolerance: of the losses, relative; 0: they are equal bit by bit. shards: names.
    """
    last: dict[int, RecordedStep] = {}
    for steps in starts:
        last |= steps
    rows = list(_different_rows(starts, expected, last, shards))
    differ_by = max((_relative_difference(step, expected) for steps in starts for step in steps.values()), default=0.0)
    losses = list(_different_losses(starts, expected, tolerance))
    found, wanted = tokens_of(last), tokens_of(expected)
    return Comparison(
        rows_equal=not rows,
        losses_equal=not losses,
        losses_differ_by=differ_by,
        documents_lost=sum(found[document] < tokens for document, tokens in wanted.items()),
        documents_repeated=sum(found[document] > tokens for document, tokens in wanted.items()),
        first_difference=min([*rows, *losses], key=lambda difference: difference.step, default=None),
    )


def same_tensors(checkpoint: Path, expected: Path) -> bool:
    """Whether the weights and the state of the optimizer of two checkpoints are equal bit by bit."""
    return all((folder / name).exists() for folder in (checkpoint, expected) for name in TENSORS) and all(
        filecmp.cmp(checkpoint / name, expected / name, shallow=False) for name in TENSORS
    )


def tokens_of(steps: Mapping[int, RecordedStep]) -> Counter[tuple[int, int, int]]:
    """Tokens that were trained on of each document: epoch, shard, offset."""
    tokens: Counter[tuple[int, int, int]] = Counter()
    for step in steps.values():
        for segment in itertools.chain.from_iterable(step.segments):
            tokens[segment.document] += segment.tokens
    return tokens


def _relative_difference(step: RecordedStep, expected: Mapping[int, RecordedStep]) -> float:
    if step.step not in expected:
        return math.inf
    loss, wanted = step.mean_loss, expected[step.step].mean_loss
    return 0.0 if loss == wanted or (math.isnan(loss) and math.isnan(wanted)) else abs(loss - wanted) / max(abs(wanted), 1e-12)


def _different_losses(
    starts: Sequence[Mapping[int, RecordedStep]], expected: Mapping[int, RecordedStep], tolerance: float
) -> Iterator[Difference]:
    for step in itertools.chain.from_iterable(steps.values() for steps in starts):
        difference = _relative_difference(step, expected)
        if not difference <= tolerance and step.step in expected:
            wanted = expected[step.step].mean_loss
            yield Difference(step.step, None, f"step {step.step}: the loss is {step.mean_loss!r}, not {wanted!r}")


def _different_rows(
    starts: Sequence[Mapping[int, RecordedStep]],
    expected: Mapping[int, RecordedStep],
    last: Mapping[int, RecordedStep],
    shards: Sequence[str],
) -> Iterator[Difference]:
    for missing in sorted(expected.keys() - last.keys()):
        yield Difference(missing, None, f"step {missing} was not trained")
    for step in itertools.chain.from_iterable(steps.values() for steps in starts):
        if step.step not in expected:
            yield Difference(step.step, None, f"step {step.step} is one too many")
        elif (step.rows, step.segments) != ((wanted := expected[step.step]).rows, wanted.segments):
            yield _different_row(step, wanted, shards)


def _different_row(step: RecordedStep, expected: RecordedStep, shards: Sequence[str]) -> Difference:
    for row, (found, wanted) in enumerate(itertools.zip_longest(step.segments, expected.segments, fillvalue=()), start=1):
        for segment, should in itertools.zip_longest(found, wanted):
            if segment != should:
                return Difference(step.step, row, f"step {step.step}, row {row}: {_what_differs(segment, should, shards)}")
    return Difference(step.step, None, f"step {step.step}: the rows that were trained on are not those that were read")


def _what_differs(found: RecordedSegment | None, wanted: RecordedSegment | None, shards: Sequence[str]) -> str:
    if found is None or wanted is None:
        one = found or wanted
        assert one is not None
        return f"{_named(one, shards)} {'is missing' if found is None else 'is one document too many'}"
    if found.document != wanted.document:
        return f"{_named(found, shards)} in the place of {_named(wanted, shards)}"
    if found.tokens != wanted.tokens:
        return f"{found.tokens} tokens of {_named(found, shards)}, not {wanted.tokens}"
    return f"other tokens or masks in {_named(found, shards)}"


def _named(segment: RecordedSegment, shards: Sequence[str]) -> str:
    return f"the document of {shards[segment.shard]} at {segment.offset} (epoch {segment.epoch})"
