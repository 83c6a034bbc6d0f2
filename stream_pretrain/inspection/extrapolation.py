"""From a sample to all of a source, with the error of that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.inspection.sample import SourceSample


@dataclass(frozen=True)
class Extrapolation:
    """What a sample counted, times what was not read."""

    sample: SourceSample
    content_bytes: int
    """Of the source."""

    @property
    def scale(self) -> float:
        """How many times the sample the source is."""
        return 1.0 if self.sample.is_complete else self.content_bytes / self.sample.content_bytes

    @property
    def unread(self) -> float:
        """The share of the source that was not read."""
        return max(0.0, 1 - 1 / self.scale)

    def error(self, count: Callable[[NDArray[np.int64]], float]) -> float | None:
        """Two standard errors of what follows from a count of the documents in each window, relative; 0 of a complete one.

        That of a ratio of sums over clusters (Cochran, Sampling Techniques, 6.4): shards, since the documents of one are alike,
        or windows where one shard was read. None where there is one of these, or nothing was counted.
        """
        if self.sample.is_complete:
            return 0.0
        shards, sizes = np.array(self.sample.window_origins, dtype=np.float64).T
        counts = np.array([count(lengths) for lengths in self.sample.windows])
        clusters = np.unique(shards, return_inverse=True)[1]
        if clusters.max() == 0:
            clusters = np.arange(len(sizes))
        size, counted = (np.bincount(clusters, weights=of) for of in (sizes, counts))
        number, total = len(size), float(counted.sum())
        if number < 2 or not total:
            return None
        residuals = counted - total / size.sum() * size
        return 2 * math.sqrt(self.unread * number / (number - 1) * float((residuals**2).sum())) / total
