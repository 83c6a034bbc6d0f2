"""Which lanes of a rank each of its workers reads. Rows do not depend on it, but how often a shared shard is read does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from stream_pretrain.data.lanes.row_layout import part_of
from stream_pretrain.data.lanes.source_plan import SourcePlan

_Unit: TypeAlias = tuple[int, int]
"""Source and unit."""


def lanes_of_workers(
    sources: Sequence[SourcePlan], lanes: range, workers: int, epochs: Sequence[int] | None = None
) -> list[list[int]]:
    """The lanes of each worker; their numbers differ by one at most. Lanes that share shards go to one worker where possible.

    Greedy: a worker takes lanes one by one, always the one that adds the fewest bytes of shards that it does not read yet.

    epochs: of each source, the one that the lanes share shards in; the first by default.
    """
    if workers == 1:
        return [list(lanes)]
    shared = [_shared(sources, lane, epochs or [0] * len(sources)) for lane in lanes]
    sharing: dict[_Unit, list[int]] = defaultdict(list)  # indices of the lanes
    for index, units in enumerate(shared):
        for unit in units:
            sharing[unit].append(index)
    left = np.array([sum(units.values()) for units in shared], dtype=np.float64)  # infinite for a lane that a worker has
    dealt = []
    for worker in range(workers):
        added, read, own = left.copy(), set[_Unit](), list[int]()
        for _ in part_of(lanes, worker, workers):
            index = int(added.argmin())
            for unit in shared[index].keys() - read:
                added[sharing[unit]] -= shared[index][unit]
                read.add(unit)
            added[index] = left[index] = np.inf
            own.append(lanes[index])
        dealt.append(sorted(own))
    return dealt


def _shared(sources: Sequence[SourcePlan], lane: int, epochs: Sequence[int]) -> dict[_Unit, float]:
    """The units that a lane has a stripe of, with their bytes."""
    return {
        (number, stripe.unit): float(source.size_of(stripe.unit) or 1)
        for number, (source, epoch) in enumerate(zip(sources, epochs, strict=True))
        for stripe in source.stripes(epoch, lane)
        if stripe.count > 1
    }
