"""One undisturbed run for all tests of a process."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.faults.runs import Inputs, Point, kept, points, write_inputs


@dataclass(frozen=True)
class Undisturbed:
    """A run that met no fault: what it reads, what it leaves, and by which calls."""

    inputs: Inputs
    kept: dict[str, object]
    points: list[Point]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("faults")
    inputs = write_inputs(folder)
    found = points(inputs, folder / "out")
    return Undisturbed(inputs, kept(folder / "out"), found)
