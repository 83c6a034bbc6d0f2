"""A signal to the launcher or to one rank, at any time, ends all of them with a checkpoint, and the next run goes on."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from stream_pretrain.training.state.checkpoint import verify
from tests.corpora import documents
from tests.integration.http_server import Server, serve
from tests.integration.jobs import Job, assert_goes_on, checkpoints, job, lines, recorded, started, tiny_options

OUT_SECONDS = 25.0


def signalled(running: Job, whom: str, name: str) -> None:
    if whom == "launcher":
        running.process.send_signal(signal.Signals[name])
    else:
        running.ranks()[int(whom.removeprefix("rank "))].send_signal(signal.Signals[name])


def assert_saved_and_preempted(running: Job, out: Path) -> int:
    """All are out in time, and the last checkpoint is the last step; returns that."""
    running.wait(OUT_SECONDS)
    assert not running.errors()
    assert "Interrupted" not in running.stderr
    run = recorded(out)
    assert run["state"] == "preempted", running.stderr
    steps = lines(out / "metrics.jsonl")
    saved = checkpoints(out)
    if not saved:
        assert not steps
        return 0
    verify(out / "checkpoints" / f"step-{saved[-1]:08d}")
    assert saved[-1] == steps[-1]["step"] == run["step"]
    return saved[-1]


long = pytest.mark.long


@pytest.mark.parametrize(
    ("whom", "name"),
    [
        ("launcher", "SIGUSR1"),
        pytest.param("rank 1", "SIGUSR1", marks=long),
        pytest.param("launcher", "SIGTERM", marks=long),
        pytest.param("launcher", "SIGINT", marks=long),
        pytest.param("launcher", "SIGHUP", marks=long),
        pytest.param("rank 0", "SIGHUP", marks=long),
        pytest.param("rank 0", "SIGTERM", marks=long),
        pytest.param("rank 0", "SIGINT", marks=long),
        pytest.param("rank 1", "SIGTERM", marks=long),
    ],
)
def test_a_signal_during_a_step_saves_and_the_next_run_goes_on(
    corpus: Path, model: Path, out: Path, whom: str, name: str
) -> None:
    arguments = tiny_options(corpus, model, out)
    with job(2, arguments, out.with_suffix(".log")) as running:
        running.until(lambda: len(lines(out / "metrics.jsonl")) > 2)
        signalled(running, whom, name)
        step = assert_saved_and_preempted(running, out)
    assert step > 2
    assert_goes_on(arguments, out, step)


# The terminal of one rank.
NOHUP = """
import os, signal, sys
from stream_pretrain.cli import main
if os.environ["RANK"] == "1":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
sys.exit(main())
"""


@long
def test_a_signal_that_another_rank_ignores_stops_that_one_too(corpus: Path, model: Path, out: Path, tmp_path: Path) -> None:
    program = tmp_path / "nohup.py"
    program.write_text(NOHUP)
    with job(2, tiny_options(corpus, model, out), out.with_suffix(".log"), program=[str(program)]) as running:
        running.until(lambda: len(lines(out / "metrics.jsonl")) > 2)
        signalled(running, "rank 0", "SIGHUP")
        assert assert_saved_and_preempted(running, out) > 2
    assert "stopped by SIGHUP" in running.stderr


@long
@pytest.mark.parametrize(
    ("whom", "name"), [("rank 1", "SIGTERM"), ("rank 0", "SIGUSR1"), ("launcher", "SIGINT"), ("launcher", "SIGTERM")]
)
@pytest.mark.parametrize("moment", ["loading the model", "resolving the corpus"])
def test_a_signal_during_the_start_ends_all_ranks_and_the_run_can_be_started_again(
    corpus: Path, model: Path, out: Path, whom: str, name: str, moment: str
) -> None:
    arguments = tiny_options(corpus, model, out)
    with job(2, arguments, out.with_suffix(".log")) as running:
        running.until((out / "run.json").exists)
        if moment == "resolving the corpus":
            running.until(lambda: "loading the model" in running.stderr)
        signalled(running, whom, name)
        step = assert_saved_and_preempted(running, out)
    assert step or "all is saved" not in running.stderr
    assert_goes_on(arguments, out, step)


@long
@pytest.mark.parametrize(("whom", "name"), [("launcher", "SIGTERM"), ("rank 1", "SIGINT"), ("rank 0", "SIGUSR1")])
def test_a_signal_during_an_evaluation_ends_it_and_saves(corpus: Path, model: Path, out: Path, whom: str, name: str) -> None:
    evaluation = ("--eval-every=3", "--data.heldout-fraction=0.9", "--eval.documents=20", "--micro-batch-size=1")
    arguments = tiny_options(corpus, model, out, *evaluation)
    out.mkdir()
    texts = [json.dumps({"text": text}) + "\n" for text in documents(20_000, longest=40)]
    (out / "evaluation.jsonl").write_text("".join(texts))  # an evaluation set that takes minutes
    with job(2, arguments, out.with_suffix(".log")) as running:
        running.until(lambda: "resolving the corpus…" in running.stderr)
        time.sleep(6)  # packing the set, then within the evaluation before the first step
        signalled(running, whom, name)
        running.wait(OUT_SECONDS)
    assert recorded(out)["state"] == "preempted", running.stderr
    assert not lines(out / "metrics.jsonl")


@long
@pytest.mark.parametrize("whom", ["rank 0", "rank 1"])
def test_an_evaluation_that_a_signal_takes_away_is_made_up_by_any_number_of_ranks(
    corpus: Path, model: Path, out: Path, whom: str
) -> None:
    more = ("--eval-every=1", "--data.heldout-fraction=0.1", "--eval.documents=20")
    arguments = tiny_options(corpus, model, out, *more)
    with job(2, arguments, out.with_suffix(".log")) as running:
        running.until(lambda: len(lines(out / "metrics.jsonl")) > 3)
        signalled(running, whom, "SIGTERM")
        step = assert_saved_and_preempted(running, out)
    assert step > 1
    assert_goes_on(arguments, out, step)
    assert [line["step"] for line in lines(out / "metrics.jsonl") if "eval/loss" in line] == list(range(step + 3))
    assert len(lines(out / "metrics.jsonl")) == step + 3


@long
@pytest.mark.parametrize(("whom", "name"), [("rank 0", "SIGTERM"), ("launcher", "SIGUSR1"), ("rank 1", "SIGINT")])
def test_a_signal_while_checkpoints_are_written_leaves_whole_ones(
    corpus: Path, model: Path, out: Path, whom: str, name: str
) -> None:
    arguments = tiny_options(corpus, model, out, "--save-every=1", "--run.keep-last=3")
    with job(2, arguments, out.with_suffix(".log")) as running:
        running.until(lambda: any((out / "checkpoints").glob(".tmp-step-*")) and len(checkpoints(out)) > 1)
        signalled(running, whom, name)
        step = assert_saved_and_preempted(running, out)
    for checkpoint in (out / "checkpoints").iterdir():
        assert checkpoint.name.startswith("step-")
        verify(checkpoint)
    assert_goes_on(arguments, out, step)


@pytest.fixture
def server(corpus: Path) -> Iterator[Server]:
    with serve(corpus) as server:
        yield server


def written_down(server: Server, path: Path) -> Path:
    path.write_text("".join(server.url(f"s{i}.jsonl.zst") + "\n" for i in range(4)))
    return path


@pytest.mark.parametrize(
    ("whom", "name", "workers", "lanes"),
    [
        pytest.param("rank 1", "SIGTERM", "1", "4", marks=long),
        pytest.param("launcher", "SIGUSR1", "1", "4", marks=long),
        pytest.param("rank 0", "SIGINT", "0", "4", marks=long),
        pytest.param("launcher", "SIGTERM", "0", "4", marks=long),
        ("rank 0", "SIGTERM", "4", "8"),  # torch alone would wait 5 s for each of those workers
    ],
)
def test_a_signal_ends_a_read_that_stalls(
    server: Server, model: Path, out: Path, tmp_path: Path, whom: str, name: str, workers: str, lanes: str
) -> None:
    shards = written_down(server, tmp_path / "shards.txt")
    more = (f"--workers={workers}", f"--lanes={lanes}", f"--global-batch-size={lanes}")
    arguments = tiny_options(f"@{shards}", model, out, *more)
    for i in range(4):
        server.inject(f"s{i}.jsonl.zst", {"do": "stall", "after": 1_000, "times": 100})
    with job(2, arguments, out.with_suffix(".log")) as running:
        running.until(lambda: len({request["path"] for request in server.log()}) > 1)
        time.sleep(2)
        signalled(running, whom, name)
        step = assert_saved_and_preempted(running, out)
    server.forget()
    assert_goes_on(arguments, out, step)


@pytest.fixture
def silent() -> Iterator[tuple[str, list[socket.socket]]]:
    """A server that takes connections and never answers: where it is, and the connections it has."""
    taken: list[socket.socket] = []

    def take(listening: socket.socket) -> None:
        with suppress(OSError):  # the end of the test
            while True:
                taken.append(listening.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=take, args=(listening,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", taken
        listening.shutdown(socket.SHUT_RDWR)
    for connection in taken:
        connection.close()


@long
@pytest.mark.parametrize(("whom", "name"), [("rank 1", "SIGTERM"), ("launcher", "SIGUSR1"), ("rank 0", "SIGINT")])
@pytest.mark.parametrize("waits_for", ["the Hub", "W&B", "the evaluation set"])
def test_a_signal_ends_a_start_that_stalls(
    server: Server, silent: tuple[str, list[socket.socket]], corpus: Path, model: Path, out: Path, tmp_path: Path,
    waits_for: str, whom: str, name: str,
) -> None:  # fmt: skip
    address, connections = silent
    arguments = tiny_options(corpus, model, out)
    environment: dict[str, str] = {}
    if waits_for == "the Hub":
        arguments[0] = "--dataset=org/corpus"
        environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    elif waits_for == "W&B":
        arguments += ["--run.wandb=online"]
        environment = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
    else:
        shards = written_down(server, tmp_path / "shards.txt")
        arguments[0] = f"--dataset=@{shards}"
        arguments += ["--eval-every=5", "--data.heldout-fraction=0.5"]
        server.inject("s0.jsonl.zst", {"do": "stall", "after": 1_000, "times": 100})
    with job(2, arguments, out.with_suffix(".log"), environment, forked=False) as running:
        running.until(lambda: connections or server.log())
        time.sleep(3)
        signalled(running, whom, name)
        running.wait(OUT_SECONDS)
        assert not running.errors()
        if waits_for == "the Hub":  # which is asked before there is anything of a run
            assert not (out / "run.json").exists() or recorded(out)["state"] == "preempted", running.stderr
        else:
            assert recorded(out)["state"] == "preempted", running.stderr
            assert "the same command starts it again: no step was done" in running.stderr
        assert "all is saved" not in running.stderr
    server.forget()
    assert_goes_on(tiny_options(corpus, model, out), out, 0)


@long
def test_a_signal_before_torch_is_there_ends_the_start_without_an_error(corpus: Path, model: Path, out: Path) -> None:
    command = [sys.executable, "-m", "stream_pretrain", *tiny_options(corpus, model, out)]
    with started(command, out.with_suffix(".log")) as running:
        # The signals that are caught, as a mask: the handlers are there before the import of torch.
        running.until(lambda: int(caught(running.process.pid), 16) >> (signal.SIGUSR1 - 1) & 1)
        running.process.send_signal(signal.SIGUSR1)
        assert running.wait(OUT_SECONDS) == 75, running.stderr
    assert (
        running.stderr.splitlines() == ["stopped by SIGUSR1 before anything was done; the same command starts it again"]
        or running.stderr.splitlines()[-1] == "stopped by SIGUSR1; the same command starts it again: no step was done"
    )


def caught(process: int) -> str:
    return Path(f"/proc/{process}/status").read_text().split("SigCgt:")[1].split()[0]


@pytest.mark.parametrize("whom", ["rank 1", pytest.param("rank 0", marks=long), pytest.param("launcher", marks=long)])
def test_a_second_signal_ends_all_at_once_and_checkpoints_stay_whole(corpus: Path, model: Path, out: Path, whom: str) -> None:
    arguments = tiny_options(corpus, model, out, "--save-every=2")
    with job(2, arguments, out.with_suffix(".log")) as running:
        running.until(lambda: len(checkpoints(out)) > 1)
        ranks = running.ranks()
        other = ranks[1] if whom == "rank 0" else ranks[0]
        other.suspend()  # so that the others wait for it in a collective, where no handler of Python runs
        time.sleep(1)
        signalled(running, whom, "SIGTERM")
        time.sleep(2.5)
        signalled(running, whom, "SIGTERM")
        if whom != "launcher":
            ranks[int(whom.removeprefix("rank "))].wait(3)
        other.resume()
        assert running.wait(OUT_SECONDS) != 0
    for step in checkpoints(out):
        verify(out / "checkpoints" / f"step-{step:08d}")
    assert_goes_on(arguments, out, checkpoints(out)[-1])


# A disk that takes its time.
SLOW = """
import sys, time
from stream_pretrain.cli import main
from stream_pretrain.training.state.background_writer import BackgroundWriter

def save(self, snapshot, save=BackgroundWriter._save):
    time.sleep(5)
    save(self, snapshot)

BackgroundWriter._save = save
sys.exit(main())
"""


@long
def test_no_rank_leaves_before_the_last_checkpoint_is_whole(corpus: Path, model: Path, out: Path, tmp_path: Path) -> None:
    # On several machines the launcher of the first to leave may end the others.
    program = tmp_path / "slow.py"
    program.write_text(SLOW)
    with job(2, tiny_options(corpus, model, out), out.with_suffix(".log"), program=[str(program)]) as running:
        running.until(lambda: len(lines(out / "metrics.jsonl")) > 2)
        other = running.ranks()[1]
        signalled(running, "rank 1", "SIGTERM")
        other.wait(OUT_SECONDS)
        assert recorded(out)["state"] == "preempted"
        assert assert_saved_and_preempted(running, out) > 2
