"""How many lanes a run has."""

from __future__ import annotations

import math

from stream_pretrain.errors import ConfigError


def lane_count(requested: int | None, *, global_batch_size: int, world: int, workers: int, readable_units: int) -> int:
    """The number of lanes of a new run.

    Asked for, or a divisor of the global batch that is at most max(8, world x workers, separately readable units): enough
    for every process, no more than the corpus carries. Among those up to max(64, 4 x world), the ones come first by which
    the fewest ranks idle while others read one lane more; of these the largest up to max(64, world), else the smallest.
    Raises ConfigError when there are fewer lanes than ranks, naming the nearest batch sizes that fit.
    """
    if requested is not None:
        if requested < world:
            raise ConfigError(f"--lanes {requested} does not give each of {world} ranks one: give more lanes, or fewer ranks")
        return requested
    usual, carried = max(64, world), max(8, world * max(workers, 1), readable_units)
    divisors = [d for d in range(1, min(max(64, 4 * world), carried) + 1) if global_batch_size % d == 0]
    lanes = max(divisors, key=lambda d: (d >= world, d / (math.ceil(d / world) * world), d if d <= usual else 1 / d))
    if lanes < world:
        below, above = global_batch_size // world * world, math.ceil(global_batch_size / world) * world
        sizes = " or ".join(str(size) for size in dict.fromkeys((below, above)) if size)
        raise ConfigError(
            f"{world} ranks need at least {world} lanes, but --global-batch-size {global_batch_size} gives {lanes}: "
            f"use --global-batch-size {sizes}, or fewer ranks"
        )
    return lanes
