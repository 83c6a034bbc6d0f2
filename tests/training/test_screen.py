"""What a user sees of a run: a terminal of 80 columns and 24 lines, and a log file."""

from __future__ import annotations

import logging
import re
import signal
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from stream_pretrain.redaction import Secrets
from stream_pretrain.terminal import clear_stderr
from stream_pretrain.training.report import progress as module
from stream_pretrain.training.report.progress import Progress
from tests.corpora import documents, write_shard, write_tiny_bert
from tests.forks import ENVIRONMENT, trainers
from tests.integration.jobs import lines, tiny_options
from tests.training.screens import Screen


def test_the_line_of_a_long_run_fits_with_the_time_left_behind_the_step(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.0, 4000.0, 4000.0])
    monkeypatch.setattr(module, "monotonic", lambda: next(seconds))
    progress = Progress(screen.stream)
    metrics = {
        "train/loss": 10.23456,
        "train/lr": 1e-4,
        "train/tokens_per_second": 123_456.0,
        "train/data_wait_fraction": 0.031,
    }
    progress.step(100_001, 1_000_000, 0.1, metrics)
    progress.step(123_456, 1_000_000, 0.123456, metrics)
    assert screen.rows() == ["step 123,456/1,000,000  ETA 1d17h  loss 10.235  123k tok/s  wait 3%  lr 1.00e-4"]


def test_a_message_of_a_data_worker_takes_the_place_of_the_line_and_the_line_comes_back(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "monotonic", lambda: 0.0)
    with redirect_stderr(screen.stream), clear_stderr(Secrets([])):
        progress = Progress(screen.stream)
        progress.step(9, 20, 0.45, {"train/loss": 2.5, "train/lr": 0.1})
        logging.getLogger("stream_pretrain.data.transport").warning("s.jsonl: HTTP 503")
        assert screen.rows() == ["s.jsonl: HTTP 503"]
        progress.step(10, 20, 0.5, {"train/loss": 2.25})
        assert screen.rows() == ["s.jsonl: HTTP 503", "step 10/20  ETA 0.0 s  loss 2.250"]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpus")
    write_shard(folder / "s", documents(120, longest=40), "plain")
    [shard] = folder.iterdir()
    content = shard.read_text().splitlines()
    shard.write_text("\n".join([*content[:60], "not JSON", *content[60:]]) + "\n")
    model = write_tiny_bert(tmp_path_factory.mktemp("model"))
    more = (
        "--save-every=10",
        "--eval-every=10",
        "--data.heldout-fraction=0.2",
        "--eval.documents=6",
        "--workers=0",
        "--log-every=10",
    )
    options = tiny_options(folder, model, Path("OUT"), *more)
    return [option for option in options if not option.startswith(("--output-dir", "--max-steps"))]


def test_what_the_terminal_echoes_behind_the_line_goes_with_it(screen: Screen) -> None:
    progress = Progress(screen.stream)
    progress.step(9, 20, 0.45, {"train/loss": 2.5})
    screen.stream.write("^C")
    progress.notice("stopping after step 9")
    progress.close()
    assert screen.rows() == ["stopping after step 9", "step 9/20  loss 2.500"]


def test_a_phase_that_does_not_stay_leaves_the_next_line_at_the_margin(screen: Screen) -> None:
    progress = Progress(screen.stream)
    with progress.phase("evaluating", stays=False):
        assert screen.rows() == ["evaluating…"]
    progress.notice("step 0: held-out loss 2.2000")
    assert screen.rows() == ["step 0: held-out loss 2.2000"]


def test_a_run_on_a_terminal(arguments: list[str], tmp_path: Path, screen: Screen) -> None:
    command = ["-m", "stream_pretrain", *arguments, "--max-steps=25", "--output-dir=out"]
    fork = trainers().start(command, ENVIRONMENT, screen.stream, cwd=tmp_path)
    rows = screen.to_the_end()
    assert fork.wait(120) == 0, rows
    assert rows[0] == "run folder: out"
    assert rows[1].startswith("importing torch and transformers… (")
    assert [row for row in rows if "saved" in row] == [f"step {n}: saved checkpoints/step-000000{n}" for n in (10, 20, 25)]
    held_out = [row.split(": held-out loss ") for row in rows if row.startswith("step") and "held-out" in row]
    assert [step for step, _ in held_out] == ["step 0", "step 10", "step 20", "step 25"]
    assert all(re.fullmatch(r"4\.\d{4}, perplexity \d\d\.\d\d(, the best so far)?", found) for _, found in held_out), held_out
    uneven, warning = [row for row in rows if row.startswith("warning: ")]
    assert uneven.startswith("warning: lanes are uneven: the fullest has ")
    assert re.match(r"warning: step \d+: \d+ of \d+ documents skipped so far: OUT/quarantine.jsonl", warning)
    patterns = [
        r"step 25/25  loss 4\.\d{3}  \S+ tok/s  wait \d+%  lr 5\.00e-4",
        r"steps 1-25 in \S+ s \(\S+ tok/s\); \S+ tokens, \d+ documents in all",
        r"loss 4\.\d{4}, held-out loss 4\.\d{4}, perplexity \d\d\.\d\d, the best so far",
        r"documents not trained on: \d+ skipped",
        r"finished; the model is in out/model",
    ]
    for row, pattern in zip(rows[-5:], patterns, strict=True):
        assert re.fullmatch(pattern, row), rows
    assert [line["step"] for line in lines(tmp_path / "out" / "metrics.jsonl")] == [0, 1, 10, 20, 25]


SLOW = """
import sys, time
from stream_pretrain.cli import main
from stream_pretrain.training.ranks import signals
from stream_pretrain.training.state.background_writer import BackgroundWriter

BackgroundWriter._save = lambda *_: time.sleep(600)
signals.ECHO_SECONDS = 0
sys.exit(main())
"""


def test_a_run_that_is_quit_on_a_terminal_says_so_in_its_last_line(
    arguments: list[str], tmp_path: Path, screen: Screen
) -> None:
    command = ["-c", SLOW, *arguments, "--log-every=1", "--max-steps=1000000", "--output-dir=out"]
    fork = trainers().start(command, ENVIRONMENT, screen.stream, cwd=tmp_path)

    screen.until("/1,000,000 ")  # any step: the line is overwritten
    fork.send_signal(signal.SIGINT)
    screen.until("then saving; Ctrl-C again quits without saving")
    fork.send_signal(signal.SIGINT)
    rows = screen.to_the_end()
    assert fork.wait(120) == 130, rows
    [first] = [number for number, row in enumerate(rows) if row.startswith("stopped by SIGINT without saving: step")]
    assert "".join(rows[first:]).endswith("--max-steps=1000000 --output-dir=out"), rows


def test_a_log_file_has_the_time_in_front_of_every_line(arguments: list[str], tmp_path: Path) -> None:
    command = ["-m", "stream_pretrain", *arguments, "--max-epochs=1", "--output-dir=out"]
    with (tmp_path / "log").open("w") as log:
        assert trainers().start(command, ENVIRONMENT, log, cwd=tmp_path).wait(120) == 0
    said = (tmp_path / "log").read_text().splitlines()
    assert len(said) > 10
    for line in said:
        assert re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ +\S", line), said
    assert said[0][21:] == "run folder: out"
    assert any(re.match(r"step 1/~\d+  loss ", line[21:]) for line in said), said
    assert said[-1][21:] == "finished; the model is in out/model"
