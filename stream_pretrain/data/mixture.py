"""Which source the next row of a lane comes from: a smooth weighted round-robin with integer credits.

Before every row each source earns its weight; the one that gives the row pays the sum of the weights. A credit is thus
how far, in rows times that sum, a source is behind its share. Of the sources that are behind, the one that must give a
row soonest does: then no source is ever a whole row behind or ahead of its share, at any row.

Source: Tijdeman, "The chairman assignment problem" (1980); earliest deadline first, Liu and Layland (1973).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from stream_pretrain.data.randomness import MIXTURE, keyed_generator

PARTS = 1_000_000
"""Weights are rounded to integers of about this sum: credits are exact."""
_PHASES = 1024
"""Lanes begin within this many rows of a sequence common to all, so that they do not all ask for a rare source at once."""
_SEEN = 4 * _PHASES
"""Rows of that sequence that tell how far the credits go."""


@dataclass(frozen=True)
class Weights:
    """The weights of the sources from a step on."""

    from_step: int
    parts: tuple[int, ...]


def parts_of(weights: Sequence[float]) -> tuple[int, ...]:
    """Integers in proportion to some weights; a source with a weight keeps at least one part."""
    total = sum(weights)
    assert total > 0, "validated before"
    return tuple(max(1, round(weight / total * PARTS)) if weight else 0 for weight in weights)


def weights_at(schedule: Sequence[Weights], step: int) -> Weights:
    """The weights of a step."""
    return next(weights for weights in reversed(schedule) if weights.from_step <= step)


def choose(credits: Sequence[int], parts: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """The source of the next row, and the credits behind it; a source without parts has left, or is not asked for now."""
    total = sum(parts)
    earned = [credit + part if part else 0 for credit, part in zip(credits, parts, strict=True)]
    # Rows until a source that gives none would be a whole row behind.
    deadlines = [((total - earned[i]) // parts[i], i) for i in range(len(parts)) if parts[i] and earned[i] > 0]
    _, chosen = min(deadlines)
    return chosen, tuple(credit - total if i == chosen else credit for i, credit in enumerate(earned))


def first_credits(parts: Sequence[int], seed: int, lane: int, step: int) -> tuple[int, ...]:
    """The credits a lane begins with when weights come into force: its own place in the sequence they make."""
    places = _places(tuple(parts))
    return places[int(keyed_generator(seed, MIXTURE, lane, step).integers(len(places)))]


@cache
def _places(parts: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The credits at the places of the sequence from which no source is ever more than a row ahead of its share, or behind.

    What a source is ahead or behind since a place is what its credit has changed by; so these are the places whose credits are
    at most a row (the sum of the parts) from the highest and from the lowest that come. The beginning, with none, is one.
    """
    total, credits = sum(parts), (0,) * len(parts)
    sequence = [credits]
    for _ in range(_SEEN):
        _, credits = choose(credits, parts)
        sequence.append(credits)
    bounds = [(max(of_source) - total, min(of_source) + total) for of_source in zip(*sequence, strict=True)]
    return [
        place
        for place in sequence[:_PHASES]
        if all(low <= credit <= high for credit, (low, high) in zip(place, bounds, strict=True))
    ]
