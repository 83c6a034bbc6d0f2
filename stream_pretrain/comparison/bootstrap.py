"""Intervals by bootstrap over documents: tokens of one document are not independent, documents are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.randomness import EVAL_MASK, keyed_generator

RESAMPLES = 2000
DRAWN_AT_ONCE = 4_000_000
"""Counts of documents in memory."""

Ratio = tuple[NDArray[Any], NDArray[Any]]
"""[documents] sums of a value, and what they are counted by, such as labels or bytes."""


class Interval(NamedTuple):
    """A difference, and the interval that holds it in 95 of 100 samples of documents."""

    difference: float
    low: float | None
    """None where there is one document, which has no spread."""
    high: float | None


def paired_difference(one: Ratio, base: Ratio) -> Interval | None:
    """The mean of one model minus that of another, on the same documents; None where one of them has nothing to count by.

    The documents are resampled `RESAMPLES` times, with replacement, for both models together.
    Source: Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), percentile intervals.
    """
    counted = (one[1] > 0) | (base[1] > 0)
    if not one[1].sum() or not base[1].sum():
        return None
    difference = float(one[0].sum() / one[1].sum() - base[0].sum() / base[1].sum())
    if counted.sum() < 2:
        return Interval(difference, None, None)
    count = len(counted)
    generator, even = keyed_generator(0, EVAL_MASK, count, RESAMPLES), np.full(count, 1 / count)
    at_once = max(1, DRAWN_AT_ONCE // count)
    differences: list[float] = []
    for first in range(0, RESAMPLES, at_once):
        drawn = generator.multinomial(count, even, min(at_once, RESAMPLES - first))
        means = [(drawn @ sums) / np.maximum(drawn @ weights, 1) for sums, weights in (one, base)]
        differences += (means[0] - means[1]).tolist()
    low, high = np.quantile(differences, (0.025, 0.975)).tolist()
    return Interval(difference, low, high)
