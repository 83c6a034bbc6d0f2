"""The unmodified wandb client, online, against a stand-in for its server on loopback."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.forks import trainers

ROOT = Path(__file__).resolve().parents[2]
TRAIN = """
import os, subprocess, sys, signal, urllib.request, warnings
from pathlib import Path

warnings.simplefilter("error")

from stream_pretrain.config import RunConfig
from stream_pretrain.training.report import tracking

tracking.CONNECT_TIMEOUT_SECONDS = tracking.FINISH_TIMEOUT_SECONDS = 3

def open_tracker(resumed_step=None, **more):
    config = {"train.seed": 7}
    return tracking.Tracker.open(RunConfig(), Path("OUT"), config=config, resumed_step=resumed_step, report=print, **more)

def log(tracker, *steps):
    for step in steps:
        tracker.log(step, {"train/loss": step / 2})

def answer(status):
    headers = {"Content-Type": "application/json"}
    body = b'{"status": %d}' % status
    urllib.request.urlopen(urllib.request.Request(os.environ["WANDB_BASE_URL"] + "/answer", body, headers)).close()
"""


@dataclass(frozen=True)
class Server:
    url: str

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/state") as response:
            return json.load(response)  # type: ignore[no-any-return]

    def run_of(self, directory: Path) -> dict[str, Any]:
        run: dict[str, Any] = self.state()["runs"][(directory / "OUT" / "wandb-id").read_text().strip()]
        return run

    def steps_of(self, directory: Path) -> list[int]:
        return [line["train/step"] for line in self.run_of(directory)["history"]]


@pytest.fixture
def server() -> Iterator[Server]:
    command = [sys.executable, str(Path(__file__).with_name("wandb_server.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Server(f"http://127.0.0.1:{int(process.stdout.readline())}")
        # Leaving closes the server's stdin, which ends it.


def environment(directory: Path, url: str) -> dict[str, str]:
    (directory / "OUT").mkdir(exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "PYTHONPATH": str(ROOT),
        "WANDB_API_KEY": "0" * 40,
        "WANDB_BASE_URL": url,
        "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
    }


def run(code: str, directory: Path, url: str) -> list[str]:
    """The lines the code prints; it ends by itself, in time, and says nothing else."""
    done = trainers().run(["-c", TRAIN + code], environment(directory, url), directory)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout.splitlines()


def test_steps_arrive_on_an_axis_of_their_own(server: Server, tmp_path: Path) -> None:
    printed = run("tracker = open_tracker(); log(tracker, 10, 20); tracker.finish('finished')", tmp_path, server.url)
    seen = server.run_of(tmp_path)
    assert printed == [f"W&B: {server.url}/somebody/stream_pretrain/runs/{seen['id']}"]
    assert [(line["train/step"], line["train/loss"]) for line in seen["history"]] == [(10, 5.0), (20, 10.0)]
    assert seen["name"] == "OUT"
    assert seen["config"]["train.seed"] == {"value": 7}
    axes = seen["config"]["_wandb"]["value"]["m"]  # 1: name, 2: pattern, 5: place of its axis in this list, from 1
    assert [(axis.get("1"), axis.get("2"), axis.get("5")) for axis in axes] == [("train/step", None, None), (None, "*", 1)]
    assert (seen["exitcode"], seen["preempting"]) == (0, False)


def test_a_preempted_run_goes_on_as_the_same_run_and_sends_no_step_twice(server: Server, tmp_path: Path) -> None:
    run("tracker = open_tracker(); log(tracker, 1, 2, 3, 4); tracker.finish('preempted')", tmp_path, server.url)
    seen = server.run_of(tmp_path)
    assert (seen["exitcode"], seen["preempting"]) == (1, True)
    run("tracker = open_tracker(2); log(tracker, 3, 4, 5); tracker.finish('finished')", tmp_path, server.url)
    assert server.steps_of(tmp_path) == [1, 2, 3, 4, 5]
    assert list(server.state()["runs"]) == [seen["id"]]
    assert server.run_of(tmp_path)["exitcode"] == 0


def test_a_failing_run_is_marked_failed(server: Server, tmp_path: Path) -> None:
    run(
        """
try:
    with open_tracker() as tracker:
        raise RuntimeError
except RuntimeError:
    pass
""",
        tmp_path,
        server.url,
    )
    seen = server.run_of(tmp_path)
    assert (seen["exitcode"], seen["preempting"]) == (1, False)


def test_a_killed_run_sends_no_step_twice(server: Server, tmp_path: Path) -> None:
    code = "tracker = open_tracker(); log(tracker, 1, 2, 3); print('logged', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", TRAIN + code],
        cwd=tmp_path,
        env=environment(tmp_path, server.url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert list(iter(process.stdout.readline, "logged\n")) == [
            f"W&B: {server.url}/somebody/stream_pretrain/runs/{server.run_of(tmp_path)['id']}\n"
        ]
        while server.run_of(tmp_path)["summary"].get("train/step") != 3:
            time.sleep(0.1)  # until the client has transmitted; the test's own time limit ends a vain wait
        process.kill()
    run("with open_tracker(resumed_step=1) as tracker: log(tracker, 2, 3, 4)", tmp_path, server.url)
    assert server.steps_of(tmp_path) == [1, 2, 3, 4]


def test_an_outage_while_training_stops_nothing_and_the_next_start_sends_what_is_missing(
    server: Server, tmp_path: Path
) -> None:
    outage = "tracker = open_tracker(); answer(503); log(tracker, *range(1, 1001)); tracker.finish('preempted')"
    printed = run(outage, tmp_path, server.url)
    assert printed[1:] == ["W&B stopped: Timed out finishing run.; OUT/metrics.jsonl has every metric"]
    assert len((tmp_path / "OUT" / "metrics.jsonl").read_text().splitlines()) == 1000
    assert server.steps_of(tmp_path) == []
    run("answer(200)\nwith open_tracker(resumed_step=1000) as tracker: log(tracker, 1001)", tmp_path, server.url)
    assert server.steps_of(tmp_path) == list(range(1, 1002))


@pytest.mark.long
def test_a_run_that_finished_in_an_outage_sends_its_steps_when_it_is_started_again_and_only_once(
    server: Server, tmp_path: Path
) -> None:
    run("tracker = open_tracker(); answer(503); log(tracker, 1, 2, 3); tracker.finish('finished')", tmp_path, server.url)
    assert server.steps_of(tmp_path) == []
    again = "tracker = open_tracker(3, only_missed=True); print(tracker._view is not None); tracker.finish('finished')"
    assert run(f"answer(200)\n{again}", tmp_path, server.url)[-1] == "True"
    assert (server.steps_of(tmp_path), server.run_of(tmp_path)["exitcode"]) == ([1, 2, 3], 0)
    assert run(again, tmp_path, server.url) == ["False"]


@pytest.mark.long
def test_a_server_that_fails_at_the_start_leaves_the_run_offline(server: Server, tmp_path: Path) -> None:
    printed = run("answer(503)\nwith open_tracker() as tracker: log(tracker, 1)", tmp_path, server.url)
    (line,) = printed
    assert line.startswith("W&B is offline, online failed (")
    assert server.state()["refused"] > 0
    run_id = (tmp_path / "OUT" / "wandb-id").read_text().strip()
    assert len(list((tmp_path / "OUT" / "wandb").glob(f"offline-run-*-{run_id}"))) == 1


def test_a_client_that_dies_is_reported_once_and_stops_nothing(server: Server, tmp_path: Path) -> None:
    printed = run(
        """
tracker = open_tracker()
client = subprocess.run(["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True, check=True).stdout
os.kill(int(client), signal.SIGKILL)
log(tracker, *range(1, 1001))
tracker.finish("finished")
""",
        tmp_path,
        server.url,
    )
    assert printed[1:] == ["W&B stopped: Connection lost; OUT/metrics.jsonl has every metric"]
    assert len((tmp_path / "OUT" / "metrics.jsonl").read_text().splitlines()) == 1000
