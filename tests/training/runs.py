"""Runs inside the test process: tiny models, and the steps as the loop gives them out."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path

import torch
from transformers import ModernBertConfig

from stream_pretrain import cli
from stream_pretrain.config import Config, DataConfig, ModelConfig, ObjectiveConfig, RunConfig, TrainConfig
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.training.files.run_directory import RunDirectory
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import stop_on_signals
from stream_pretrain.training.ranks.watchdog import Watchdog
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.start.setup import Setup, set_up
from stream_pretrain.training.state.parallelism import accelerator_for
from stream_pretrain.training.steps.loop import StepResult, training_steps
from tests.command_lines import with_last
from tests.corpora import SPECIAL, VOCABULARY, word_tokenizer


def tiny_run(corpus: Path, model: Path, out: Path, **train: object) -> Config:
    """A run from scratch on one lane a row, read in small windows by the process itself."""
    batch = int(train.get("global_batch_size", 8))  # type: ignore[call-overload]
    return Config(
        data=DataConfig(dataset=str(corpus), sequence_length=64, workers=0, lanes=batch, window_bytes=2048),
        model=ModelConfig(config=str(model), tokenizer=str(model)),
        objective=ObjectiveConfig(mask_rate=0.3),
        train=replace(TrainConfig(global_batch_size=batch, precision="fp32", warmup_steps=0), **train),  # type: ignore[arg-type]
        run=RunConfig(output_dir=str(out), wandb="disabled"),
    )


@contextmanager
def prepared(config: Config) -> Iterator[Setup]:
    """The run, ready to train."""
    assert config.run.output_dir is not None
    with stop_on_signals() as stop, RunDirectory.own(Path(config.run.output_dir), [], lambda _: None) as out:
        yield set_up(config, [], accelerator_for(config), Ranks(0, 1), Progress(None), stop, out)


def steps_of(setup: Setup, optimizer: torch.optim.Optimizer | None = None) -> Iterator[StepResult]:
    """The steps of the run, with its own optimizer or another."""
    with StepStream(setup.plan, setup.cursors) as stream:
        parallel = replace(setup.parallel, optimizer=optimizer or setup.parallel.optimizer)
        steps = training_steps(replace(setup, parallel=parallel), stream, Watchdog(setup.ranks, setup.progress.warning))
        yield from (step for step in steps if isinstance(step, StepResult))


def run_here(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The whole command in this process, which has imported everything already: its exit code, and what it says."""
    with redirect_stderr(io.StringIO()) as said:
        code = cli.main(with_last([*arguments, "--workers=0"]))
    return subprocess.CompletedProcess(arguments, code, "", said.getvalue())


def run_to_end(arguments: Sequence[str]) -> str:
    """What the whole command says, of a run that comes to its end."""
    done = run_here(arguments)
    assert done.returncode == 0, done.stderr
    return done.stderr


def write_tiny_modernbert(folder: Path) -> Path:
    """The configuration of a ModernBERT with sliding windows shorter than the documents, and its tokenizer."""
    ModernBertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        local_attention=8,
        global_attn_every_n_layers=2,
        **{f"{token}_token_id": SPECIAL.index(f"[{token.upper()}]") for token in ("pad", "cls", "sep")},
        bos_token_id=None,
        eos_token_id=None,
    ).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder
