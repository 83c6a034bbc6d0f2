"""Intervals by bootstrap over documents: tokens of one document are not independent, documents are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.randomness import EVAL_MASK, keyed_generator

RESAMPLES = 2000


class Interval(NamedTuple):
    """A difference, and the interval that holds it in 95 of 100 samples of documents."""

    difference: float
    low: float
    high: float


def paired_difference(sums: NDArray[np.float64], of_base: NDArray[np.float64], weights: NDArray[np.float64]) -> Interval:
    """The mean of one model minus that of another, on the same documents.

    sums: [documents] of a value over what it is counted by, such as labels or bytes: the weights. The documents are drawn anew
    `RESAMPLES` times, with replacement, for both models together.
    Source: Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), percentile intervals.
    """
    count = len(sums)
    drawn = keyed_generator(0, EVAL_MASK, count, RESAMPLES).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    differences = (drawn @ (sums - of_base)) / np.maximum(drawn @ weights, 1)
    low, high = np.quantile(differences, (0.025, 0.975)).tolist()
    return Interval(float((sums - of_base).sum() / weights.sum()), low, high)
