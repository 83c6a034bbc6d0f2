"""Runs of the command that may be killed on the way, and what shows that two of them are the same."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.command_lines import with_last
from tests.integration.jobs import Job, started

TIMINGS = ("train/tokens_per_second", "train/data_wait")


def options(corpus: Path, model: Path, out: Path, *more: str) -> list[str]:
    given = [
        *(f"--dataset={corpus}", f"--model.config={model}", f"--model.tokenizer={model}", f"--output-dir={out}"),
        *("--max-steps=80", "--sequence-length=32", "--global-batch-size=8", "--micro-batch-size=4", "--workers=1"),
        *("--save-every=5", "--log-every=1", "--eval-every=10", "--data.heldout-fraction=0.1", "--eval.documents=20"),
        *("--run.wandb=disabled", "--train.warmup-steps=5", *more),
    ]
    return with_last(given)


def command(corpus: Path, model: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "stream_pretrain", *options(corpus, model, out, *more)]


def metrics(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(TIMINGS)} for line in lines]


def last_checkpoint(out: Path) -> Path:
    return max((out / "checkpoints").glob("step-*"))


def kill_when(command: list[str], number: signal.Signals, out: Path, reached: Callable[[], object], delay: float) -> Job:
    """Start a run and send it a signal a while after it has reached something; returns the job after its end."""
    with started(command, out.with_suffix(".log"), forked=True) as running:
        running.until(reached)
        time.sleep(delay)
        running.process.send_signal(number)
        running.wait(60)
    return running


def assert_same_run(out: Path, expected: Path) -> None:
    assert metrics(out) == metrics(expected)
    for name in ("model", "optimizer"):
        tensors, others = (load_file(last_checkpoint(folder) / f"{name}.safetensors") for folder in (out, expected))
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, others[key]), f"{name}: {key}"
    states = [json.loads((last_checkpoint(folder) / "stream.json").read_text()) for folder in (out, expected)]
    assert states[0] == states[1]
