"""Two ranks of which one is killed, wherever the first one is: the other leaves, and the next start ends as it should."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.runs import Fault, Point, assert_same, kept, rows_of, run_ranks


@pytest.fixture(scope="module")
def together(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What two ranks leave that met no fault."""
    out = tmp_path_factory.mktemp("together") / "out"
    codes, said = run_ranks(undisturbed.inputs, out)
    assert codes == [0, 0], said
    return kept(out)


def kill(point: Point, victim: int) -> tuple[int, Fault]:
    return victim, point.meets("signal", signal=signal.SIGKILL)


def killed(undisturbed: Undisturbed, together: dict[str, object], kills: list[tuple[int, Fault]], out: Path) -> int:
    """How often one of two ranks was killed, before the same command came to its end and left what it should."""
    history: list[str] = []
    times = 0
    for victim, fault in kills:
        codes, said = run_ranks(undisturbed.inputs, out, fault, victim)
        history += [f"rank {victim}, {fault}: {codes}", said]
        times += codes[victim] == -signal.SIGKILL
        assert codes[victim] in (0, -signal.SIGKILL), "\n".join(history)
        assert codes[1 - victim] in (0, 1), "\n".join(history)
    codes, said = run_ranks(undisturbed.inputs, out)
    assert codes == [0, 0], "\n".join([*history, said])
    assert_same(out, together, history)
    shutil.rmtree(out)
    return times


def test_two_ranks_of_which_one_is_killed_go_on(undisturbed: Undisturbed, together: dict[str, object], tmp_path: Path) -> None:
    start, save, _ = (undisturbed.points[len(undisturbed.points) * part // 3 + 12] for part in range(3))
    assert killed(undisturbed, together, [kill(start, 0), kill(save, 1)], tmp_path / "out") == 2


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", [0, 1])
def test_two_ranks_of_which_one_is_killed_at_many_places_go_on(
    undisturbed: Undisturbed, together: dict[str, object], victim: int, tmp_path: Path
) -> None:
    rows = rows_of([kill(point, victim) for point in undisturbed.points[victim::8]])
    assert sum(killed(undisturbed, together, list(row), tmp_path / "out") for row in rows) >= 24
