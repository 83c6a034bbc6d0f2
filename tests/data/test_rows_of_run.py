"""The rows that a run reads of each source, by hand."""

from __future__ import annotations

import math

import pytest

from stream_pretrain.data.lanes.mixture import Shares
from stream_pretrain.data.lanes.rows_of_run import RowsOfRun, rows_of_run

HALVES = (Shares(0, (1, 1)),)


def test_the_shares_of_a_run_are_those_of_its_steps() -> None:
    schedule = (Shares(0, (1, 1)), Shares(25, (1, 0)), Shares(500, (0, 1)))
    unlimited = ([100.0, 100.0], [None, None], 8)
    assert rows_of_run(schedule, *unlimited, 100) == RowsOfRun(100, (700, 100), epochs_end_it=False)
    assert rows_of_run(schedule, *unlimited, 10) == RowsOfRun(10, (40, 40), epochs_end_it=False)


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "steps", "rows", "epochs_end_it"),
    [
        ([2, 3], None, 50, (80, 120), True),
        ([2, 3], 30, 30, (60, 60), False),  # before the first one ends, after step 40
        ([2, None], 100, 100, (80, 320), False),
        ([1, 1], 100, 20, (40, 40), True),
        ([2, None], None, math.inf, (80, 80), False),
    ],
)
def test_where_a_source_ends_the_others_share_what_it_gave(
    max_epochs: list[int | None], max_steps: int | None, steps: float, rows: tuple[float, float], epochs_end_it: bool
) -> None:
    assert rows_of_run(HALVES, [40, 40], max_epochs, 4, max_steps) == RowsOfRun(steps, rows, epochs_end_it)


def test_the_next_change_of_the_schedule_applies_early_where_no_source_has_a_share() -> None:
    schedule = (Shares(0, (1, 0)), Shares(1000, (0, 1)))
    assert rows_of_run(schedule, [40, 80], [1, 1], 4, None) == RowsOfRun(30, (40, 80), epochs_end_it=True)
    assert rows_of_run((Shares(0, (1, 0)),), [40, 80], [1, 1], 4, None) == RowsOfRun(10, (40, 0), epochs_end_it=True)


def test_a_source_of_unknown_rows_has_no_end() -> None:
    assert rows_of_run(HALVES, [40, None], [1, 1], 4, 100) == RowsOfRun(100, (40, 360), epochs_end_it=False)
    assert rows_of_run(HALVES, [None, None], [1, 1], 4, None).steps == math.inf
