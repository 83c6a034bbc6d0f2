"""Runs of the command on any number of ranks, and what shows that they saw the same rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.integration.jobs import Job, started


def options(corpus: Path, model: Path, out: Path, *more: str) -> list[str]:
    return [
        *(f"--dataset={corpus}", f"--model.config={model}", f"--model.tokenizer={model}", f"--output-dir={out}"),
        *("--sequence-length=32", "--global-batch-size=12", "--lanes=12", "--micro-batch-size=5", "--workers=1"),
        *("--save-every=1000", "--log-every=1", "--run.wandb=disabled", "--data.window-bytes=9000"),
        *("--train.schedule=constant", "--train.warmup-steps=0"),
        *more,
    ]


def launch(world: int, arguments: list[str], program: Sequence[str] = ("-m", "stream_pretrain")) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}", "--standalone"]
    return [*(torchrun if world > 1 else [sys.executable]), *program, *arguments]


def train(world: int, arguments: list[str], out: Path, program: Sequence[str] = ("-m", "stream_pretrain")) -> Job:
    """The job after it has ended by itself, without an error."""
    with started(launch(world, arguments, program), out.with_suffix(".log"), forked=True) as running:
        assert running.wait(170) == 0, running.stderr
    return running


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[float]:
    return [line["train/loss"] for line in metrics(out)]


def same_rows(lines: list[dict[str, float]]) -> list[tuple[float, ...]]:
    return [(line["step"], line["train/tokens"], line["train/documents"], line["train/segments_per_row"]) for line in lines]
