"""The launch files and `accelerate launch`, run for real: stopped by the signal of their system, and started again."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import yaml

from stream_pretrain.training.state.checkpoint import verify
from tests.integration.jobs import ENVIRONMENT, START_SECONDS, Job, checkpoints, lines, recorded, started, tiny_options

pytestmark = pytest.mark.long

LAUNCH = Path(__file__).resolve().parents[2] / "configs" / "launch"
OUT_SECONDS = 25.0
COMMANDS = Path(sys.executable).parent

# Two tasks, as on two machines. Signals go on to both, and once one has failed the other is killed with all it has started.
SRUN = """#!{python}
import signal, subprocess, sys, time, psutil
kill_on_bad_exit, *command = sys.argv[1:]
assert kill_on_bad_exit == "--kill-on-bad-exit=1"
tasks = [subprocess.Popen(command) for _ in range(2)]
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, _: [task.send_signal(number) for task in tasks])
while any(task.poll() is None for task in tasks):
    time.sleep(0.05)
    if any(task.poll() for task in tasks):
        for task in tasks:
            if task.poll() is None:
                for process in [*psutil.Process(task.pid).children(recursive=True), task]:
                    process.kill()
sys.exit(max(task.returncode != 0 for task in tasks))
"""


def environment(**variables: object) -> dict[str, str]:
    path = f"{COMMANDS}:{ENVIRONMENT['PATH']}"
    return {"PATH": path, "PROCESSES": "2", **{name: str(value) for name, value in variables.items()}}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def without_place(options: list[str]) -> list[str]:
    return [option for option in options if not option.startswith("--output-dir")]


def until_it_trains(running: Job, out: Path) -> None:
    running.until(lambda: len(lines(out / "metrics.jsonl")) > 2)


def assert_saved(out: Path, output: str) -> int:
    """The run was stopped and has the last step saved; returns that."""
    run = recorded(out)
    assert run["state"] == "preempted", output
    step = checkpoints(out)[-1]
    verify(out / "checkpoints" / f"step-{step:08d}")
    assert step == lines(out / "metrics.jsonl")[-1]["step"] == run["step"]
    return step


def assert_finished(out: Path, step: int, world: int) -> None:
    assert recorded(out)["state"] == "finished"
    assert [line["step"] for line in lines(out / "metrics.jsonl")] == list(range(1, step + 1))
    assert json.loads((out / "checkpoints" / f"step-{step:08d}" / "trainer.json").read_text())["world"] == world


def test_a_single_node_is_stopped_by_sigusr1_and_goes_on(corpus: Path, model: Path, out: Path) -> None:
    command = [str(LAUNCH / "single_node.sh"), str(out), *without_place(tiny_options(corpus, model, out))]
    with started(command, out.with_suffix(".log"), environment()) as running:
        until_it_trains(running, out)
        running.process.send_signal(signal.SIGUSR1)
        assert running.wait(OUT_SECONDS) == 75
        step = assert_saved(out, running.stderr)
    with started([*command, f"--max-steps={step + 2}"], out.with_suffix(".next"), environment()) as running:
        assert running.wait(START_SECONDS) == 0, running.stderr
    assert_finished(out, step + 2, world=2)


def test_wrong_options_end_the_launch_file_as_they_do_the_command(out: Path) -> None:
    with started(
        [str(LAUNCH / "single_node.sh"), str(out), "--max-steps=x"], out.with_suffix(".log"), environment()
    ) as running:
        assert running.wait(START_SECONDS) == 2, running.stderr


def test_a_signal_to_one_of_two_nodes_stops_both_and_they_go_on(corpus: Path, model: Path, out: Path) -> None:
    command = [str(LAUNCH / "two_nodes.sh"), str(out), *without_place(tiny_options(corpus, model, out))]
    logs = [out.with_suffix(f".{node}") for node in range(4)]
    nodes = environment(HEAD="127.0.0.1", PORT=free_port(), PROCESSES=1)
    with started(command, logs[0], nodes) as first, started(command, logs[1], nodes) as second:
        until_it_trains(first, out)
        second.process.send_signal(signal.SIGUSR1)
        second.wait(OUT_SECONDS)
        deadline = time.monotonic() + OUT_SECONDS
        while len(first.processes()) > 2:
            assert time.monotonic() < deadline, first.stderr
            time.sleep(0.1)
        step = assert_saved(out, first.stderr + second.stderr)
        # Its ranks have left; torchrun, for which the script waits, may wait five minutes for the one that was told to stop.
    nodes = environment(HEAD="127.0.0.1", PORT=free_port(), PROCESSES=1)
    again = [*command, f"--max-steps={step + 2}"]
    with started(again, logs[2], nodes) as first, started(again, logs[3], nodes) as second:
        assert first.wait(START_SECONDS) == 0, first.stderr
        assert second.wait(START_SECONDS) == 0, second.stderr
    assert_finished(out, step + 2, world=2)


def test_a_slurm_job_on_two_nodes_saves_itself_at_the_notice_is_queued_again_and_finishes(
    corpus: Path, model: Path, out: Path, tmp_path: Path
) -> None:
    commands, asked = tmp_path / "bin", tmp_path / "scontrol"
    commands.mkdir()
    (commands / "srun").write_text(SRUN.format(python=sys.executable))
    (commands / "scontrol").write_text(f'#!/usr/bin/env bash\necho "$@" >> {asked}; echo 127.0.0.1; echo 127.0.0.1\n')
    for stub in commands.iterdir():
        stub.chmod(0o755)
    command = ["bash", str(LAUNCH / "slurm.sbatch"), str(out), *without_place(tiny_options(corpus, model, out))]

    def allocation() -> dict[str, str]:
        given = environment(SLURM_JOB_ID=7, SLURM_JOB_NODELIST="n[1-2]", SLURM_JOB_NUM_NODES=2, PROCESSES=1, PORT=free_port())
        return {**given, "PATH": f"{commands}:{given['PATH']}"}

    with started(command, out.with_suffix(".log"), allocation()) as running:
        until_it_trains(running, out)
        running.process.send_signal(signal.SIGUSR1)  # B: the shell of the job alone
        assert running.wait(OUT_SECONDS) == 75, running.stderr
        step = assert_saved(out, running.stderr)
    assert asked.read_text().splitlines() == ["show hostnames n[1-2]", "requeue 7"]
    with started([*command, f"--max-steps={step + 2}"], out.with_suffix(".next"), allocation()) as running:
        assert running.wait(START_SECONDS) == 0, running.stderr
    assert_finished(out, step + 2, world=2)
    assert asked.read_text().count("requeue") == 1


def test_a_kubernetes_pod_that_is_evicted_saves_itself_and_the_next_one_finishes(
    corpus: Path, model: Path, out: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    job = yaml.safe_load((LAUNCH / "kubernetes_job.yaml").read_text())
    [container] = job["spec"]["template"]["spec"]["containers"]
    [script] = container["args"]
    assert script.count("/config/run.yaml") == 1
    pod = [*container["command"], script.replace("/config/run.yaml", str(config))]

    def configure(*more: str) -> None:
        options = dict(option.removeprefix("--").split("=", 1) for option in tiny_options(corpus, model, out, *more))
        del options["output-dir"]
        config.write_text(yaml.safe_dump({name: yaml.safe_load(value) for name, value in options.items()}))

    configure()
    with started(pod, out.with_suffix(".1"), environment(OUT=out)) as running:
        until_it_trains(running, out)
        running.process.send_signal(signal.SIGTERM)
        assert running.wait(OUT_SECONDS) == 75, running.stderr
        step = assert_saved(out, running.stderr)
    configure("--seed=1")
    with started(pod, out.with_suffix(".2"), environment(OUT=out)) as running:
        assert running.wait(START_SECONDS) == 1, running.stderr  # refused: the Job ends
    assert recorded(out)["state"] == "preempted"
    configure(f"--max-steps={step + 2}")
    with started(pod, out.with_suffix(".3"), environment(OUT=out)) as running:
        assert running.wait(START_SECONDS) == 0, running.stderr
    assert_finished(out, step + 2, world=2)


def test_accelerate_launch_starts_as_many_processes_as_it_is_told_and_forwards_sigusr1(
    corpus: Path, model: Path, out: Path
) -> None:
    # What it starts by itself where it sees several GPUs; with --cpu it starts one process, whatever --num_processes says.
    launcher = [str(COMMANDS / "accelerate"), "launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    command = [*launcher, "-m", "stream_pretrain", *tiny_options(corpus, model, out)]
    variables = environment(HF_HOME=out.parent, PET_SIGNALS_TO_HANDLE="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    with started(command, out.with_suffix(".log"), variables) as running:
        until_it_trains(running, out)
        running.process.send_signal(signal.SIGUSR1)
        running.wait(OUT_SECONDS)
        step = assert_saved(out, running.stderr)
    with started([*command, f"--max-steps={step + 2}"], out.with_suffix(".next"), variables) as running:
        assert running.wait(START_SECONDS) == 0, running.stderr
    assert_finished(out, step + 2, world=2)
