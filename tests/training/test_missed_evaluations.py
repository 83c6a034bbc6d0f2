"""An evaluation that a stop or a kill takes away is made up when the run goes on: the record is that of an undisturbed run."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.training.evaluation import evaluation
from stream_pretrain.training.files import records, wandb_files
from stream_pretrain.training.state.background_writer import BackgroundWriter
from stream_pretrain.training.state.checkpoint import Snapshot
from stream_pretrain.training.steps import loop
from tests.forks import CHECKOUT, ENVIRONMENT, trainers
from tests.integration.jobs import lines, recorded, tiny_options
from tests.training.runs import run_here, run_to_end

long = pytest.mark.long
TIMINGS = ("train/tokens_per_second", "train/data_wait")


@pytest.fixture(scope="module")
def arguments(small_corpus: Path, model: Path) -> list[str]:
    more = ("--max-steps=6", "--eval-every=2", "--data.heldout-fraction=0.2", "--eval.documents=6", "--micro-batch-size=4")
    return tiny_options(small_corpus, model, None, *more)


def record(out: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if not name.startswith(TIMINGS)} for line in lines(out / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def undisturbed(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("whole")
    run_to_end([*arguments, f"--output-dir={out}"])
    found = record(out)
    assert [line["step"] for line in found] == [0, 1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in found if "eval/loss" in line] == [0, 2, 4, 6]
    return found


def signalled(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """The function, during one of whose calls this process is asked to stop."""
    calls = 0

    def called(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(signal.SIGTERM)
        return function(*arguments, **options)

    return called


def test_one_during_which_another_machine_takes_the_folder_over_is_not_recorded(
    arguments: list[str], undisturbed: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, calls = evaluation.evaluate, iter(range(9))

    def taken_over(*given: Any, **options: Any) -> Any:
        if next(calls) == 2:
            (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 12, "time": 0.0}))
        return evaluate(*given, **options)

    command = [*arguments, f"--output-dir={tmp_path}"]
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "evaluate", taken_over)
        done = run_here(command)
    assert done.returncode == 1
    assert done.stderr.endswith(
        f"error: {tmp_path} was taken over by process 12 on elsewhere: this run writes nothing more to it\n"
    )
    assert record(tmp_path) == undisturbed[:4]
    run_to_end(command)
    assert record(tmp_path) == undisturbed


@pytest.mark.parametrize("step", [4, 6, pytest.param(3, marks=long)])
def test_one_that_falls_on_a_stop(
    arguments: list[str], undisturbed: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    command = [*arguments, f"--output-dir={tmp_path}"]
    with monkeypatch.context() as patched:
        patched.setattr(loop, "micro_batches", signalled(loop.micro_batches, step))
        assert run_here(command).returncode == 75
    assert (recorded(tmp_path)["state"], recorded(tmp_path)["step"]) == ("preempted", step)
    [stopped] = [line for line in record(tmp_path) if line["step"] == step]
    assert "eval/loss" not in stopped
    run_to_end(command)
    assert record(tmp_path) == undisturbed
    assert recorded(tmp_path)["state"] == "finished"
    assert (tmp_path / "model").is_dir()


@pytest.mark.parametrize("more", [(), ("--micro-batch-size=2",)], ids=["while it waits for data", "in the step"])
def test_a_stop_between_two_logged_steps_logs_the_steps_until_there(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    command = [*arguments, f"--output-dir={tmp_path}", "--log-every=100", "--eval-every=100", *more]
    with monkeypatch.context() as patched:
        if more:  # the step is abandoned in front of its second micro-batch
            patched.setattr(loop, "micro_batches", signalled(loop.micro_batches, 4))
        else:
            patched.setattr(StepStream, "read", signalled(StepStream.read, 4))
        assert run_here(command).returncode == 75
    assert (recorded(tmp_path)["state"], recorded(tmp_path)["step"]) == ("preempted", 3)
    assert [line["step"] for line in record(tmp_path) if "train/loss" in line] == [1, 3]
    resumed = run_to_end(command)
    assert "step 4/6  loss " in resumed, "the first step of a start is shown"
    assert [line["step"] for line in record(tmp_path) if "train/loss" in line] == [1, 3, 6], "and no line of metrics for it"


@pytest.mark.parametrize(("number", "step"), [(2, 2), (4, 6), pytest.param(1, 0, marks=long)])
def test_one_that_a_signal_ends(
    arguments: list[str],
    undisturbed: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    step: int,
) -> None:
    command = [*arguments, f"--output-dir={tmp_path}", "--log-every=4"]  # of step 2 nothing but the evaluation is logged
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "evaluate", signalled(evaluation.evaluate, number))
        assert run_here(command).returncode == 75
    assert (recorded(tmp_path)["state"], recorded(tmp_path)["step"]) == ("preempted", step)
    with monkeypatch.context() as patched:  # and the one that makes up for it
        patched.setattr(evaluation, "evaluate", signalled(evaluation.evaluate, 1))
        assert run_here(command).returncode == 75
    assert (recorded(tmp_path)["state"], recorded(tmp_path)["step"]) == ("preempted", step)
    run_to_end(command)
    assert recorded(tmp_path)["state"] == "finished"
    assert [line["step"] for line in record(tmp_path)] == [0, 1, 2, 4, 6]
    held_out = [(line["step"], line["eval/loss"]) for line in record(tmp_path) if "eval/loss" in line]
    assert held_out == [(line["step"], line["eval/loss"]) for line in undisturbed if "eval/loss" in line]


def test_one_whose_step_is_lost_with_it(
    arguments: list[str], undisturbed: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*arguments, f"--output-dir={tmp_path}", "--save-every=2"]
    submit, saved = BackgroundWriter.submit, 0

    def killed(writer: BackgroundWriter, snapshot: Callable[[], Snapshot]) -> None:
        nonlocal saved
        saved += 1
        if saved == 2:
            raise ConnectionError("as if killed between the evaluation and the checkpoint of step 4")
        submit(writer, snapshot)

    with monkeypatch.context() as patched:
        patched.setattr(BackgroundWriter, "submit", killed)
        assert run_here(command).returncode == 1
    assert record(tmp_path)[-1].keys() >= {"step", "train/loss", "eval/loss"}
    run_to_end(command)
    assert record(tmp_path) == undisturbed


@pytest.mark.parametrize("disturbed", ["the evaluation", pytest.param("the last step", marks=long)])
def test_the_last_one_where_epochs_end_the_run_is_in_the_line_of_the_last_step(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disturbed: str
) -> None:
    epochs = [option for option in arguments if not option.startswith("--max-steps")]
    commands = [[*epochs, "--max-epochs=1", "--eval-every=1000", f"--output-dir={tmp_path / name}"] for name in ("a", "b")]
    run_to_end(commands[0])
    whole = record(tmp_path / "a")
    steps = [line["step"] for line in whole]
    assert steps == list(range(len(steps)))
    assert [step for step, line in enumerate(whole) if "eval/loss" in line] == [0, steps[-1]]
    with monkeypatch.context() as patched:
        if disturbed == "the last step":
            patched.setattr(loop, "micro_batches", signalled(loop.micro_batches, steps[-1]))
        else:
            patched.setattr(evaluation, "evaluate", signalled(evaluation.evaluate, 2))
        assert run_here(commands[1]).returncode == 75
    assert recorded(tmp_path / "b")["state"] == "preempted"
    assert record(tmp_path / "b")[-1] == {name: value for name, value in whole[-1].items() if not name.startswith("eval/")}
    run_to_end(commands[1])
    assert record(tmp_path / "b") == whole
    before = (tmp_path / "b" / "metrics.jsonl").read_text()
    run_to_end(commands[1])
    assert (tmp_path / "b" / "metrics.jsonl").read_text() == before, "a run that has finished has nothing to make up for"
    assert json.loads(before.splitlines()[-1])["step"] == steps[-1]


def test_a_disk_that_fills_up_ends_the_run_with_one_line_and_each_step_is_once_in_the_record(
    arguments: list[str], undisturbed: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = os.write, 2_000

    def fills_up(descriptor: int, content: bytes) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(descriptor, content[: min(left, 100)])
        left -= taken
        return taken

    command = [*arguments, f"--output-dir={tmp_path}", "--save-every=1"]
    with monkeypatch.context() as patched:
        patched.setattr(records.os, "write", fills_up)
        full = run_here(command)
    assert full.returncode == 75
    assert [line for line in full.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: {tmp_path / 'metrics.jsonl'} cannot be written (No space left on device): free some space, "
        "then run the same command again"
    ]
    whole = record(tmp_path)
    assert 1 < len(whole) < 6
    assert whole == undisturbed[: len(whole)]
    run_to_end(command)
    assert record(tmp_path) == undisturbed


# A signal in the fourth step, before its evaluation.
SIGNALLED = """
import signal, sys
from stream_pretrain.cli import main
from stream_pretrain.training.steps import loop
from tests.training.test_missed_evaluations import signalled
loop.micro_batches = signalled(loop.micro_batches, 4)
sys.exit(main())
"""


@long
def test_one_that_falls_on_a_stop_is_shown_by_weights_and_biases_in_the_line_of_its_step(
    arguments: list[str], tmp_path: Path
) -> None:
    from wandb.proto.wandb_internal_pb2 import Record  # takes a while, and all other tests do without

    out = tmp_path / "out"
    command = [option for option in arguments if not option.startswith("--run.wandb")]
    command += ["--run.wandb=offline", f"--output-dir={out}"]
    stopped = trainers().run(["-c", SIGNALLED, *command], ENVIRONMENT, CHECKOUT)
    assert (stopped.returncode, recorded(out)["step"]) == (75, 4), stopped.stderr
    finished = trainers().run(["-m", "stream_pretrain", *command], ENVIRONMENT)
    assert finished.returncode == 0, finished.stderr
    shown: list[tuple[int, bool]] = []
    for path in sorted((out / "wandb").glob("offline-run-*/*.wandb")):
        for content in wandb_files._records(path):
            names = {item.key or item.nested_key[0]: item.value_json for item in Record.FromString(content).history.item}
            if names:
                shown.append((int(names["train/step"]), "eval/loss" in names))
    assert shown == [(0, True), (1, False), (2, True), (3, False), (4, True), (5, False), (6, True)]
