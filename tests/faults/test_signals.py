"""A run that a signal stops wherever it is saves itself, and the same command goes on as if there had been none."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.runs import Fault, assert_goes_on, rows_of, run

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def stopped(undisturbed: Undisturbed, faults: Sequence[Fault], out: Path) -> int:
    """How often the same command was stopped, before it came to its end and left what it should."""
    history: list[str] = []
    states = []
    for fault in faults:
        done = run(undisturbed.inputs, out, fault)
        history += [f"{fault} {signal.Signals(fault.signal).name}: {done.returncode}", done.stderr]
        stops = 130 if fault.signal == signal.SIGINT else 75
        recorded = json.loads((out / "run.json").read_text()) if (out / "run.json").exists() else {}
        states.append(recorded.get("state"))
        assert (states[-1], done.returncode) in {
            *(("preempted", stops), ("finished", 0), (None, stops)),
            ("finished", stops),  # by a signal to a start that has nothing left to do
        }, "\n".join(history)
        if states[-1] != "finished":
            assert recorded.get("exit_code", stops) == done.returncode, "\n".join(history)
    assert_goes_on(undisturbed.inputs, out, undisturbed.kept, history, stops=True)
    return states.count("preempted")


def at(number: int) -> Fault:
    """In front of the n-th call that changes a file."""
    return Fault("signal", first=number, last=number, signal=SIGNALS[number % len(SIGNALS)])


def test_a_run_stopped_at_seven_places_ends_like_one_that_is_not(undisturbed: Undisturbed, tmp_path: Path) -> None:
    assert stopped(undisturbed, [at(number) for number in (9, 30, 21, 44)], tmp_path / "early") >= 3
    assert stopped(undisturbed, [at(number) for number in (90, 15, 22)], tmp_path / "late") >= 2


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_stopped_at_many_places_ends_like_one_that_is_not(undisturbed: Undisturbed, tmp_path: Path) -> None:
    rows = rows_of([at(number) for number in range(2, 112)])
    assert sum(stopped(undisturbed, row[::-1], tmp_path / f"out{number}") for number, row in enumerate(rows)) >= 25
