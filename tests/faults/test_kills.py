"""A run that is killed at any call that changes a file, again and again, ends as one that nothing has happened to."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.runs import Fault, Point, assert_goes_on, kept, points, rows_of, run

long = pytest.mark.long


def kill(point: Point, number: int) -> Fault:
    """In front of the call, behind it, or in the middle of what it writes."""
    return point.meets("kill-half" if point.call == "write" else ("kill", "kill-after")[number % 2])


def killed(undisturbed: Undisturbed, kills: Sequence[Fault], out: Path) -> int:
    """How often the same command was killed, before it came to its end and left what it should."""
    history: list[str] = []
    for fault in kills:
        done = run(undisturbed.inputs, out, fault)
        history.append(f"{fault}: {done.returncode}")
        # A start that does not come to this place any more, since the last one was behind it, comes to its end.
        assert done.returncode in (0, -signal.SIGKILL), "\n".join([*history, done.stderr])
    assert_goes_on(undisturbed.inputs, out, undisturbed.kept, history)
    shutil.rmtree(out)
    return sum(line.endswith(f": -{signal.SIGKILL:d}") for line in history)


def test_the_places_are_those_of_the_start_the_records_the_checkpoints_and_the_export(undisturbed: Undisturbed) -> None:
    found = {(point.call, re.sub(r"\d{8}", "N", point.name)) for point in undisturbed.points}
    assert {
        ("write", "lock"),
        ("rename", "run.json"),
        ("rename", "evaluation.jsonl"),
        ("write", "metrics.jsonl"),
        ("write", "quarantine.jsonl"),
        ("open", "checkpoints/.tmp-step-N/model.safetensors"),
        ("fsync", "checkpoints/.tmp-step-N/optimizer.safetensors"),
        ("write", "checkpoints/.tmp-step-N/MANIFEST.json"),
        ("rename", "checkpoints/step-N"),
        ("rename", "cursors/step-N.json"),
        ("rename", "model"),
    } <= found
    assert any(call == "unlink" and name.startswith("checkpoints/") for call, name in found)


def test_a_run_killed_at_twenty_places_ends_like_one_that_is_not(undisturbed: Undisturbed, tmp_path: Path) -> None:
    kills = [kill(point, number) for number, point in enumerate(undisturbed.points)]
    chosen = kills[:: len(kills) // 24]
    assert sum(killed(undisturbed, row, tmp_path / "out") for row in rows_of(chosen)) >= 20


def test_a_run_that_its_epochs_end_is_killed_at_its_end_and_ends_like_one_that_is_not(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    inputs = replace(undisturbed.inputs, end="--max-epochs=1")
    found = points(inputs, tmp_path / "whole")
    ended = Undisturbed(inputs, kept(tmp_path / "whole"), found)
    last = {(point.call, re.sub(r"\d{8}", "N", point.name)): point for point in found}
    places = ("write", "metrics.jsonl"), ("rename", "checkpoints/step-N"), ("rename", "model")
    kills = [kill(last[place], number) for number, place in enumerate(places)]
    assert killed(ended, kills, tmp_path / "out") == 3


PARTS = 12


@long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_run_killed_at_every_place_ends_like_one_that_is_not(undisturbed: Undisturbed, part: int, tmp_path: Path) -> None:
    before = [point.meets("kill") for point in undisturbed.points]
    within = [point.meets("kill-half") for point in undisturbed.points if point.call == "write"]
    behind = [point.meets("kill-after") for point in undisturbed.points if point.call not in ("fsync", "unlink")]
    rows = [row for kills in (before, within, behind) for row in rows_of(kills)]
    chosen = rows[part::PARTS]
    # A kill can leave less to do behind it, so that a later place of the row is not met.
    assert sum(killed(undisturbed, row, tmp_path / "out") for row in chosen) > 0.75 * sum(map(len, chosen))
