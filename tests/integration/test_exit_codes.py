"""Exit codes of real processes, alone and below launchers, and what the last line says."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.command_lines import with_last
from tests.corpora import documents, write_shard
from tests.forks import ENVIRONMENT, trainers, without_times
from tests.integration.http_server import Server, serve
from tests.integration.jobs import Job, checkpoints, job, lines, recorded, started, tiny_options

OUT_SECONDS = 60.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_shard(folder / "s", documents(400), "zst-multi")
    return folder


@pytest.fixture
def arguments(corpus: Path, model: Path, tmp_path: Path) -> list[str]:
    return tiny_options(corpus, model, tmp_path / "out", "--workers=0", "--lanes=1", "--global-batch-size=1")


@pytest.fixture
def server(corpus: Path) -> Iterator[Server]:
    with serve(corpus) as server:
        yield server


def trains(running: Job, out: Path) -> None:
    running.until(lambda: len(lines(out / "metrics.jsonl")) > 2)


def resumes(arguments: Sequence[str], out: Path) -> str:
    """What the last line says of a run that has saved its last step, which it has."""
    [step] = checkpoints(out)
    assert (recorded(out)["step"], lines(out / "metrics.jsonl")[-1]["step"]) == (step, step)
    return f"saved in {out}/checkpoints/step-{step:08d}; resume with: stream-pretrain {' '.join(arguments)}"


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75)])
def test_a_run_that_is_stopped_says_after_which_step_and_how_to_resume(
    arguments: list[str], tmp_path: Path, name: str, code: int
) -> None:
    out = tmp_path / "out"
    with started([sys.executable, "-m", "stream_pretrain", *arguments], tmp_path / "log", forked=True) as running:
        trains(running, out)
        running.process.send_signal(signal.Signals[name])
        assert running.wait(OUT_SECONDS) == code, running.stderr
        again = "Ctrl-C again" if name == "SIGINT" else f"another {name}"
        [step] = checkpoints(out)
        said = running.stderr.splitlines()
    assert f"stopping after step {step}, then saving; {again} quits without saving" in said
    assert said[-1] == f"stopped by {name}, {resumes(arguments, out)}"
    assert (recorded(out)["state"], recorded(out)["exit_code"]) == ("preempted", code)


# A save that takes its time, so that there is one to quit.
SLOW = """
import sys, time
from stream_pretrain.cli import main
from stream_pretrain.training.ranks import signals
from stream_pretrain.training.state.background_writer import BackgroundWriter

def save(self, snapshot, save=BackgroundWriter._save):
    if snapshot.step > 4:
        time.sleep(600)
    save(self, snapshot)

BackgroundWriter._save = save
signals.ECHO_SECONDS = 0
sys.exit(main())
"""


@pytest.mark.parametrize(("save_every", "left"), [("4", "the last checkpoint is "), ("1000", "there is no checkpoint")])
def test_a_second_ctrl_c_says_what_is_lost_and_leaves_run_json_true(
    arguments: list[str], tmp_path: Path, save_every: str, left: str
) -> None:
    out, saved = tmp_path / "out", 4 if save_every == "4" else 0
    command = [sys.executable, "-c", SLOW, *arguments, f"--save-every={save_every}"]
    with started(command, tmp_path / "log", forked=True) as running:
        running.until(lambda: len(lines(out / "metrics.jsonl")) > 5 and len(checkpoints(out)) == bool(saved))
        running.process.send_signal(signal.SIGINT)
        running.until(lambda: "Ctrl-C again quits without saving" in running.stderr)
        running.process.send_signal(signal.SIGINT)
        assert running.wait(OUT_SECONDS) == 130, running.stderr
        step = lines(out / "metrics.jsonl")[-1]["step"]  # or one more, whose line is not written yet
        said = running.stderr.splitlines()[-1]
    assert re.match(f"stopped by SIGINT without saving: steps {saved + 1} to ({step}|{step + 1}) are lost, {left}", said), said
    assert f"; resume with: stream-pretrain {arguments[0]} " in said
    assert said.endswith(f" --save-every={save_every}")
    run = recorded(out)
    assert (run["state"], run["step"], run["exit_code"]) == ("preempted", saved, 130)
    assert checkpoints(out) == [saved] * bool(saved)


# A client of Weights & Biases that has much to send.
SENDING = """
import sys, time
from stream_pretrain.cli import main
from stream_pretrain.training.ranks import signals
from stream_pretrain.training.report.tracking import Tracker

Tracker.finish = lambda *_: (print("sending", file=sys.stderr, flush=True), time.sleep(600))
signals.ECHO_SECONDS = 0
sys.exit(main())
"""


def test_a_signal_while_a_finished_run_sends_its_metrics_ends_it_with_0(arguments: list[str], tmp_path: Path) -> None:
    with started([sys.executable, "-c", SENDING, *arguments, "--max-steps=2"], tmp_path / "log", forked=True) as running:
        running.until(lambda: "sending" in running.stderr)
        running.process.send_signal(signal.SIGTERM)
        running.until(lambda: "all is saved; another SIGTERM leaves at once" in running.stderr)
        running.process.send_signal(signal.SIGTERM)
        assert running.wait(OUT_SECONDS) == 0, running.stderr
    assert (recorded(tmp_path / "out")["state"], recorded(tmp_path / "out")["exit_code"]) == ("finished", 0)


def test_a_second_signal_behind_the_save_names_the_checkpoint_and_the_command(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started([sys.executable, "-c", SENDING, *arguments], tmp_path / "log", forked=True) as running:
        trains(running, out)
        running.process.send_signal(signal.SIGTERM)
        running.until(lambda: "sending" in running.stderr)
        running.process.send_signal(signal.SIGTERM)
        assert running.wait(OUT_SECONDS) == 75, running.stderr
        assert running.stderr.splitlines()[-1] == f"stopped by SIGTERM, {resumes(arguments, out)}"
    assert recorded(out)["exit_code"] == 75


def test_a_network_that_brings_nothing_until_the_deadline_ends_with_75(
    server: Server, arguments: list[str], tmp_path: Path
) -> None:
    server.inject("s.jsonl.zst", {"do": "status", "status": 503, "times": 1000})
    arguments[0] = f"--dataset={server.url('s.jsonl.zst')}"
    done = trainers().run(["-m", "stream_pretrain", *arguments, "--data.retry-deadline=0.5"], ENVIRONMENT)
    assert done.returncode == 75, done.stderr
    assert "run the same command again, or raise --data.retry-deadline" in done.stderr.splitlines()[-1]


@pytest.mark.long
def test_all_ranks_end_with_75_where_the_network_brings_one_of_them_nothing(
    server: Server, arguments: list[str], tmp_path: Path
) -> None:
    shard = server.url("s.jsonl.zst")
    options = with_last([*arguments, f"--dataset={shard}", "--lanes=2", "--global-batch-size=2", "--data.retry-deadline=2"])
    with job(2, options, tmp_path / "log") as running:
        trains(running, tmp_path / "out")
        server.inject("s.jsonl.zst", {"do": "status", "status": 503, "times": 1000})
        assert running.wait(OUT_SECONDS) == 1, running.stderr
    run = recorded(tmp_path / "out")
    assert (run["state"], run["exit_code"]) == ("failed", 75)
    assert "run the same command again, or raise --data.retry-deadline" in run["error"]
    assert "exitcode  : 75" in running.stderr


@pytest.mark.parametrize(("more", "code"), [("--max-steps=2", 0), ("--dataset=/nowhere", 1), ("--max-steps=0", 2)])
def test_the_other_ends(arguments: list[str], more: str, code: int) -> None:
    name = more.partition("=")[0]
    options = [option for option in arguments if not option.startswith(f"{name}=")]
    done = trainers().run(["-m", "stream_pretrain", *options, more], ENVIRONMENT)
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_one_process_below_torchrun_keeps_0_for_a_stop(arguments: list[str], tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    with job(1, arguments, tmp_path / "log") as running:
        trains(running, out)
        [rank] = running.ranks()
        rank.send_signal(signal.Signals[name])
        assert running.wait(OUT_SECONDS) == 0, running.stderr
        said = running.stderr
    assert recorded(out)["exit_code"] == (130 if name == "SIGINT" else 75)
    assert f"stopped by {name}, saved in {out}/checkpoints/" in said
    assert f"; resume with: the same launcher and -m stream_pretrain {' '.join(arguments)}" in said


@pytest.mark.long
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_one_process_below_accelerate_launch_keeps_0_for_a_stop(arguments: list[str], tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    launcher = [str(Path(sys.executable).with_name("accelerate")), "launch", "--cpu", "--num_processes=1"]
    command = [*launcher, "-m", "stream_pretrain", *arguments]
    with started(command, tmp_path / "log", {"HF_HOME": str(tmp_path)}) as running:
        trains(running, out)
        [rank] = [process for process in running.processes() if process.ppid() == running.process.pid]
        rank.send_signal(signal.Signals[name])
        assert running.wait(OUT_SECONDS) == 0, running.stderr
    assert recorded(out)["exit_code"] == (130 if name == "SIGINT" else 75)


@pytest.mark.parametrize(("name", "code", "resumes"), [("SIGINT", 130, False), ("SIGTERM", 75, True)])
def test_a_signal_while_torch_is_imported_is_answered_at_once(
    arguments: list[str], tmp_path: Path, name: str, code: int, resumes: bool
) -> None:
    """The import stands still for a while, as on a slow file system."""
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")
    checkpoint = tmp_path / "out" / "checkpoints" / "step-00000004"
    if resumes:
        checkpoint.mkdir(parents=True)
    command = [sys.executable, "-m", "stream_pretrain", *arguments]
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.Signals[name])
        _, said = process.communicate(timeout=OUT_SECONDS)
    assert process.returncode == code
    kept = f", saved in {checkpoint}; resume with: stream-pretrain {' '.join(arguments)}"
    ends = kept if resumes else "; the same command starts it again: no step was done"
    assert without_times(said).splitlines()[-1] == f"stopped by {name}{ends}"
