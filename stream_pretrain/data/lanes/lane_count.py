"""The number of lanes of a run."""

from __future__ import annotations

from stream_pretrain.data.lanes.window_sizes import WINDOWS_PER_LANE

FEWEST_LANES = 8

MOST_LANES = 64
"""Or the number of processes, if larger."""


def lane_count(smallest_windows: int, readable_units: int, *, world: int, workers: int) -> int:
    """The number of lanes of a new run with --lanes auto.

    As many as have `WINDOWS_PER_LANE` windows each; at least 8 and one a rank, at most 64 or one a process.

    smallest_windows: windows of the corpus, if each had the smallest size. readable_units: parts of it that can be read
    independently: a part that several lanes share is read, and decompressed, by each of their processes.
    """
    processes = world * max(workers, 1)
    carried = max(FEWEST_LANES, processes, readable_units)
    return max(FEWEST_LANES, world, min(smallest_windows // WINDOWS_PER_LANE, carried, max(MOST_LANES, processes)))
