"""Starts on a folder that holds checkpoints of other starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import BertConfig

from stream_pretrain.config import Config, DataConfig, ModelConfig, RunConfig, TrainConfig, defaults, fixed_options
from stream_pretrain.data.lanes.stream_state import CURSOR_VERSION
from stream_pretrain.model.loading import Export
from stream_pretrain.training.files.run_directory import RunDirectory
from stream_pretrain.training.start.resume import Start, decide_start
from stream_pretrain.training.state import checkpoint
from stream_pretrain.training.state.checkpoint import Snapshot
from tests.training.checkpoints import tokenizer, trainer_of, unexpected

COMMAND = ["stream-pretrain", "--dataset", "org/texts", "--output-dir", "OUT", "--seed=1"]


def config(resume: str = "auto", **train: int) -> Config:
    return Config(
        data=DataConfig(dataset="org/texts"),
        model=ModelConfig(path="org/model"),
        train=TrainConfig(max_steps=100, **train),
        run=RunConfig(resume=resume),
    )


def save(directory: Path, step: int, of: Config | None = None, *, version: int = CURSOR_VERSION, **more: object) -> Path:
    """more: in trainer.json."""
    of = of or config()
    trainer = replace(trainer_of(step), **{"fixed": fixed_options(of), "defaults": defaults(of), **more})
    weights, stream = {"weight": torch.zeros(1)}, {"version": version}
    directory.mkdir(exist_ok=True)
    return checkpoint.write(
        Snapshot(Export(weights, BertConfig(), tokenizer()), {}, stream, b"{}", trainer), directory / "checkpoints"
    )


def start(
    out: Path, of: Config | None = None, *, report: Callable[[str], None] = unexpected, command: list[str] = COMMAND
) -> Start:
    with RunDirectory.own(out, command, unexpected) as owned:
        return decide_start(of or config(), owned, report, command)
