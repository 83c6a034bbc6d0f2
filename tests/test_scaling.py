"""The page on scaling shows what the simulation prints, and the simulation finds what can be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stream_pretrain.data.lanes.dealing import LEVEL
from tests.forks import ENVIRONMENT, trainers

ROOT = Path(__file__).resolve().parents[1]


def simulate(*arguments: str) -> str:
    done = trainers().run([str(ROOT / "scripts" / "simulate_scaling"), *arguments], ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def table_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.fixture(scope="module")
def printed() -> str:
    return simulate("--quick")


@pytest.fixture(scope="module")
def figures(printed: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "scaling.md").read_text("utf-8")


def test_the_page_shows_the_tables_that_the_quick_simulation_prints(printed: str, page: str) -> None:
    rows = table_rows(printed)
    assert len(rows) == 56
    assert rows == [row for row in table_rows(page) if "100,000" not in row]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_page_shows_all_tables_of_the_simulation(page: str) -> None:
    assert table_rows(page) == table_rows(simulate())


def test_a_cursor_takes_no_more_than_256_bytes(figures: dict[str, Any]) -> None:
    assert 62 <= figures["cursor_bytes"] <= 256


def test_no_lane_is_dealt_much_more_than_the_others(figures: dict[str, Any]) -> None:
    assert len(figures["balance"]) == 8
    assert all(1 <= balance <= LEVEL for balance in figures["balance"].values())


def test_few_rows_change_the_gpu(figures: dict[str, Any]) -> None:
    # 64 lanes of four rows: the GPUs read 84, 84 and 88 rows, and train on 85, 85 and 86.
    assert figures["exchanged"]["3"] == "1%"


def test_no_step_waits_for_a_refill(figures: dict[str, Any]) -> None:
    assert {share for shares in figures["stall"].values() for share in shares} == {"0.0%"}
