"""What the terminal, and what a log file shows."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from stream_pretrain.training.ranks.signals import Interrupted
from stream_pretrain.training.report import progress as module
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.units import counted, human_bytes, human_count, human_duration

if TYPE_CHECKING:
    from tests.training.screens import Screen

METRICS = {
    "train/loss": 2.34561,
    "train/lr": 0.000543,
    "train/tokens_per_second": 1_234_567.0,
    "train/data_wait_fraction": 0.031,
    "train/documents": 12,
}


@dataclass
class Clock:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


def test_a_log_file_gets_one_plain_line_each(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    with progress.phase("resolving corpus") as found:
        clock.seconds += 0.2
        found("12 shards, 34 MB")
    progress.step(1000, 10000, 0.1, METRICS)
    clock.seconds += 64
    progress.notice("eval at step 1,050: loss 2.2000")
    progress.step(1050, 10000, 0.105, METRICS)
    progress.warning("2 documents skipped")
    progress.step(10000, 10000, 1, {"train/loss": 2.0})
    progress.close()
    assert stream.getvalue() == (
        "resolving corpus… 12 shards, 34 MB (0.2 s)\n"
        "step 1,000/10,000  loss 2.346  1.2M tok/s  wait 3%  lr 5.43e-4\n"
        "eval at step 1,050: loss 2.2000\n"
        "step 1,050/10,000  ETA 3h10m  loss 2.346  1.2M tok/s  wait 3%  lr 5.43e-4\n"
        "warning: 2 documents skipped\n"
        "step 10,000/10,000  loss 2.000\n"
    )


def test_steps_and_time_are_estimated_where_epochs_end_the_run(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    for step, share in ((1, 0.0), (11, 10 / 208), (12, 11 / 208), (91, 90 / 211), (211, 210 / 211)):
        progress.step(step, None, share, {}, about=180.2)
        clock.seconds += step
    assert stream.getvalue().splitlines() == [
        "step 1/~181",
        "step 11/~181  ETA 17 s",  # as estimated before the run: what was read is too little to tell by
        "step 12/~208  ETA 3m34s",
        "step 91/~211  ETA 32 s",
        "step 211/~211",
    ]
    progress.step(1, None, 0.0, {})
    assert stream.getvalue().endswith("\nstep 1\n")


def test_an_estimate_is_never_behind_the_step_and_has_three_digits() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    for step, share in ((3, 0.9), (1234, 1.0), (4321, 0.35), (123_456, 0.3)):
        progress.step(step, None, share, {})
    shown = [line.split("  ")[0] for line in stream.getvalue().splitlines()]
    assert shown == ["step 3/~3", "step 1,234/~1,240", "step 4,321/~12,400", "step 123,456/~412,000"]


def test_max_steps_are_all_steps_unless_the_epochs_end_first(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    for step, share in ((1, 0.004), (50, 0.25), (60, 0.20), (100, 0.5), (150, 0.7)):
        progress.step(step, 200, max(share, step / 200), {}, about=150.0)
    shown = [line.split("  ")[0] for line in stream.getvalue().splitlines()]
    assert shown == ["step 1/200", "step 50/200", "step 60/200", "step 100/200", "step 150/200"]
    progress.step(60, 200, 0.5, {})
    assert stream.getvalue().endswith("step 60/~118  ETA 0.0 s\n")


def test_a_terminal_shows_the_last_step_below_everything_else(clock: Clock, screen: Screen) -> None:
    progress = Progress(screen.stream)
    with progress.phase("resolving corpus") as found:
        found("12 shards")
    progress.step(9, 20, 0.45, {"train/loss": 2.5})
    progress.step(10, 20, 0.5, {"train/loss": 2.25})
    progress.notice("checkpoint: step 10")
    progress.step(11, None, 0.0, {})
    progress.close()
    assert screen.rows() == ["resolving corpus… 12 shards (0.0 s)", "checkpoint: step 10", "step 11"]


def test_a_terminal_that_is_dumb_gets_plain_lines(clock: Clock, screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    progress = Progress(screen.stream)
    for step in (1, 2):
        progress.step(step, 4, step / 4, {"train/loss": 2.5})
    assert [row.partition("  ")[0] for row in screen.rows()] == ["step 1/4", "step 2/4"]


def test_a_phase_shows_while_it_runs_and_gives_the_line_back_to_the_step(clock: Clock, screen: Screen) -> None:
    progress = Progress(screen.stream)
    progress.step(10, None, 0.0, {"train/loss": 2.25})
    with progress.phase("evaluating"):
        progress.warning("slow")
        assert screen.rows() == ["warning: slow", "evaluating…"]
        clock.seconds += 75
    assert screen.rows() == ["warning: slow", "evaluating… (1m15s)", "step 10  loss 2.250"]


def test_a_phase_that_does_not_stay_leaves_no_line(clock: Clock, screen: Screen) -> None:
    progress = Progress(screen.stream)
    progress.step(10, None, 0.0, {"train/loss": 2.25})
    with progress.phase("evaluating", stays=False):
        assert screen.rows() == ["evaluating…"]
    assert screen.rows() == ["step 10  loss 2.250"]
    log = io.StringIO()
    with Progress(log).phase("evaluating", stays=False):
        pass
    assert log.getvalue() == ""


@pytest.mark.parametrize(("columns", "shown"), [(17, "step 10"), (20, "step 10  loss 2.250"), (7, "step 1")])
def test_what_a_narrow_terminal_has_no_room_for_is_left_out_whole(screen: Screen, columns: int, shown: str) -> None:
    screen.resize(columns)
    Progress(screen.stream).step(10, None, 0.0, {"train/loss": 2.25, "train/lr": 0.1})
    assert screen.rows() == [shown]


@pytest.mark.parametrize(("error", "said"), [(KeyError, "failed"), (KeyboardInterrupt, "stopped"), (Interrupted, "stopped")])
def test_a_phase_that_fails_or_is_stopped_says_so_and_lets_the_error_through(
    clock: Clock, error: type[BaseException], said: str
) -> None:
    stream = io.StringIO()
    with pytest.raises(error), Progress(stream).phase("loading model"):
        raise error
    assert stream.getvalue() == f"loading model… {said} (0.0 s)\n"


def test_without_a_stream_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(None)
    with progress.phase("resolving corpus") as found:
        found("12 shards")
    progress.notice("text")
    progress.warning("text")
    progress.step(1, 2, 0.5, METRICS)
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_closing_ends_the_line_once(screen: Screen) -> None:
    progress = Progress(screen.stream)
    progress.step(1, None, 0.0, {})
    progress.close()
    progress.close()
    screen.stream.write("$ ")
    assert screen.rows() == ["step 1", "$"]


def test_numbers_are_written_for_people() -> None:
    assert [counted(count, "shard") for count in (0, 1, 1234)] == ["0 shards", "1 shard", "1,234 shards"]
    assert [human_count(number) for number in (0, 950, 1234, 34_400, 999_600, 1_234_567, 34e6, 5e15)] == [
        "0", "950", "1.2k", "34k", "1.0M", "1.2M", "34M", "5000T",
    ]  # fmt: skip
    assert [human_bytes(number) for number in (0, 999, 1000, 34_000_000, 1.5e12)] == [
        "0 B", "999 B", "1.0 kB", "34 MB", "1.5 TB",
    ]  # fmt: skip
    assert [human_duration(seconds) for seconds in (0.24, 9.96, 59.6, 185, 3599.6, 11_520, 187_200)] == [
        "0.2 s", "10 s", "1m00s", "3m05s", "1h00m", "3h12m", "2d04h",
    ]  # fmt: skip
