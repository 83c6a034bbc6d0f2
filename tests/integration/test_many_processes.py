"""Any number of processes: the same rows, the same losses, one checkpoint; real gloo processes under torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.corpora import documents, write_shard, write_tiny_bert

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for i, (style, count) in enumerate([("plain", 150), ("zst", 40), ("zst-multi", 90), ("gz", 1), ("parquet", 120)]):
        write_shard(folder / f"s{i}", documents(count, seed=i), style)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("model"), dropout=0.0)


def options(corpus: Path, model: Path, out: Path, *more: str) -> list[str]:
    return [
        *(f"--dataset={corpus}", f"--model.config={model}", f"--model.tokenizer={model}", f"--output-dir={out}"),
        *("--sequence-length=32", "--global-batch-size=12", "--lanes=12", "--micro-batch-size=5", "--workers=1"),
        *("--save-every=1000", "--log-every=1", "--run.wandb=disabled", "--data.window-bytes=9000", *more),
    ]


def launch(world: int, arguments: list[str]) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}", "--standalone"]
    return [*(torchrun if world > 1 else [sys.executable]), "-m", "stream_pretrain", *arguments]


def train(world: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        launch(world, arguments),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, stderr = process.communicate(timeout=170)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, "", stderr)


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same_rows(lines: list[dict[str, float]]) -> list[tuple[float, ...]]:
    return [(line["step"], line["train/tokens"], line["train/documents"], line["train/segments_per_row"]) for line in lines]


@pytest.fixture(scope="module")
def alone(corpus: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    out = tmp_path_factory.mktemp("alone")
    done = train(1, options(corpus, model, out, "--max-steps=15"))
    assert done.returncode == 0, done.stderr
    return metrics(out)


def last_saved(out: Path) -> int:
    return max((int(path.name.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*")), default=0)


def test_a_run_over_1_2_4_3_and_1_processes_killed_at_each_change_is_the_run_on_one(
    corpus: Path, model: Path, alone: list[dict[str, float]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for world, reached, workers in ((1, 2, 0), (2, 5, 1), (4, 8, 2), (3, 11, 0)):
        arguments = options(corpus, model, out, "--max-steps=15", "--save-every=1", f"--workers={workers}")
        process = subprocess.Popen(
            launch(world, arguments), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            until(lambda reached=reached: last_saved(out) >= reached, process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    done = train(1, options(corpus, model, out, "--max-steps=15"))
    assert done.returncode == 0, done.stderr
    assert same_rows(metrics(out)) == same_rows(alone)
    assert [line["train/loss"] for line in metrics(out)] == pytest.approx([line["train/loss"] for line in alone], rel=1e-4)


@pytest.mark.long
def test_the_loss_does_not_depend_on_the_number_of_processes(
    corpus: Path, model: Path, alone: list[dict[str, float]], tmp_path: Path
) -> None:
    for world in (2, 3):
        out = tmp_path / f"out{world}"
        done = train(world, options(corpus, model, out, "--max-steps=15", "--micro-batch-size=2"))
        assert done.returncode == 0, done.stderr
        assert same_rows(metrics(out)) == same_rows(alone)
        assert [line["train/loss"] for line in metrics(out)] == pytest.approx([line["train/loss"] for line in alone], rel=1e-4)


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.long), 4])
def test_one_epoch_of_uneven_shards_ends_on_every_rank_having_seen_all_documents(
    corpus: Path, model: Path, tmp_path: Path, world: int
) -> None:
    out = tmp_path / "out"
    done = train(world, options(corpus, model, out, "--max-epochs=1", "--log-every=5"))
    assert done.returncode == 0, done.stderr
    stream = json.loads(max((out / "checkpoints").glob("step-*")).joinpath("stream.json").read_text())
    at = stream["fields"].index("documents")
    assert sum(lane["sources"][0][at] for lane in stream["lanes"]) == 401
    assert json.loads((out / "run.json").read_text())["state"] == "finished"


def until(condition: object, process: subprocess.Popen[str], seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trainers(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    """The rank processes under a launcher, in the order of their start."""
    return sorted(
        (child for child in psutil.Process(launcher.pid).children() if "stream_pretrain" in " ".join(child.cmdline())),
        key=lambda child: child.create_time(),
    )


@pytest.mark.parametrize("whom", ["launcher", "one rank"])
def test_a_signal_to_the_launcher_or_one_rank_saves_and_stops_all(corpus: Path, model: Path, tmp_path: Path, whom: str) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        launch(2, options(corpus, model, out, "--max-steps=100000")),
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: (out / "metrics.jsonl").exists() and len(metrics_so_far(out)) > 3, process)
        (process if whom == "launcher" else trainers(process)[1]).send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=40)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    run = json.loads((out / "run.json").read_text())
    assert run["state"] == "preempted", stderr
    saved = max((out / "checkpoints").glob("step-*"))
    assert int(saved.name.removeprefix("step-")) == metrics(out)[-1]["step"] == run["step"]


def metrics_so_far(out: Path) -> list[str]:
    return (out / "metrics.jsonl").read_text().splitlines()


def test_a_killed_rank_ends_the_run_and_the_same_command_goes_on(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        launch(2, options(corpus, model, out, "--max-steps=100000", "--save-every=2")),
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        until((out / "checkpoints" / "step-00000004").exists, process)
        trainers(process)[1].kill()
        process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    saved = int(max((out / "checkpoints").glob("step-*")).name.removeprefix("step-"))
    done = train(2, options(corpus, model, out, f"--max-steps={saved + 3}", "--train.schedule=constant"))
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in metrics(out)] == list(range(1, saved + 4))


def test_more_ranks_than_lanes_are_refused_by_one_line(corpus: Path, model: Path, tmp_path: Path) -> None:
    done = train(3, options(corpus, model, tmp_path / "out", "--max-steps=5", "--lanes=2"))
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "--lanes 2 does not give each of 3 ranks one" in lines[0]


def test_a_second_run_on_the_same_folder_is_refused(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = subprocess.Popen(
        launch(1, options(corpus, model, out, "--max-steps=100000")),
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until((out / "metrics.jsonl").exists, first)
        second = train(2, options(corpus, model, out, "--max-steps=100000"))
    finally:
        first.kill()
        first.communicate()
    assert second.returncode != 0
    assert f"is in use by process {first.pid}" in second.stderr
