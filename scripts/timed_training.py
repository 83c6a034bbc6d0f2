"""Training by this package with a clock: what is trained, on which corpus, and what its steps cost."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from benchmarking import MASK_RATE, documents
from demo_corpus import train_wordpiece, write_shards
from transformers import BertConfig, BertTokenizerFast, ModernBertConfig, PreTrainedConfig

from stream_pretrain.config import Config, DataConfig, ModelConfig, ObjectiveConfig, RunConfig, TrainConfig
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.rows.batches import memory_for
from stream_pretrain.model.flops import peak_bf16_flops
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.training.files.run_directory import RunDirectory
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import ignore_in_worker, stop_on_signals
from stream_pretrain.training.ranks.watchdog import Watchdog
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.start.setup import Setup, set_up
from stream_pretrain.training.state.parallelism import accelerate_for_one_run, accelerator_for
from stream_pretrain.training.steps.loop import StepResult, training_steps
from stream_pretrain.training.steps.metrics import useful_flops

LEARNING_RATE = 1e-4
SHARDS = 4
LONGEST_ROW = {"bert": 512, "modernbert": 8192}
"""Positions that the models have."""

Ingredient = Literal["packing", "labelled head", "varlen attention", "compile", "fused AdamW"]


@dataclass(frozen=True)
class Setting:
    """What is trained; equal for all that are compared."""

    folder: str
    """With the corpus, the tokenizer and the configurations of the models."""
    cuda: bool
    megabytes: float
    vocabulary: int
    """Of the model; at most, that of the tokenizer that is trained on the corpus."""
    layers: int
    hidden: int
    sequence_length: int
    batch: int
    """Rows of a step."""
    warmup: int
    """Steps before the clock starts."""
    steps: int
    workers: int
    """Data workers of this package; the usual recipes have nothing left for one to do but pad and mask."""
    seed: int = 0
    """Of the weights and of the documents that are drawn."""
    architecture: Literal["bert", "modernbert"] = "bert"
    micro_batch: int | None = None
    """Rows; all of a step by default."""

    @property
    def corpus(self) -> str:
        return f"{self.folder}/corpus"

    @property
    def tokenizer(self) -> str:
        return f"{self.folder}/tokenizer"

    @property
    def model(self) -> str:
        return f"{self.folder}/{self.architecture}-{self.layers}"


@dataclass(frozen=True)
class Measured:
    """The steps of one contender after its warm-up."""

    tokens: int
    wall_seconds: float
    processor_seconds: float
    waiting_seconds: float | None = None
    """For data; only this package reports it."""
    slowest_over_median: float | None = None
    """Of the steps: above 2 something was compiled while the clock ran."""
    tokens_a_segment: float | None = None
    mfu: float | None = None
    """None where the peak of the device is not known."""


def write_corpus(setting: Setting) -> None:
    """The shards and the tokenizer of a setting, in its folder."""
    Path(setting.corpus).mkdir()
    texts = list(documents(setting.megabytes))
    write_shards(Path(setting.corpus), "part", texts, SHARDS)
    train_wordpiece(texts[:5_000], setting.vocabulary, Path(setting.tokenizer))


def write_model(setting: Setting) -> None:
    """The configuration of the model of a setting, in its folder; weights are drawn when it is loaded."""
    tokenizer = BertTokenizerFast.from_pretrained(setting.tokenizer)
    config: PreTrainedConfig
    sizes = {
        "hidden_size": setting.hidden,
        "num_hidden_layers": setting.layers,
        "num_attention_heads": max(2, setting.hidden // 64),
        "max_position_embeddings": max(setting.sequence_length, LONGEST_ROW[setting.architecture]),
    }
    if setting.architecture == "bert":
        config = BertConfig(
            vocab_size=setting.vocabulary,
            intermediate_size=4 * setting.hidden,
            attention_probs_dropout_prob=0.0,  # for all: packed rows have none
            **sizes,
        )
    else:
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
        config = ModernBertConfig(
            vocab_size=setting.vocabulary,
            intermediate_size=setting.hidden * 3 // 2,
            bos_token_id=special["cls_token_id"],
            eos_token_id=special["sep_token_id"],
            **special,
            **sizes,
        )
    config.save_pretrained(setting.model)


def config_of(setting: Setting, *, compile_it: bool, packing: bool = True) -> Config:
    """The options of a run of this package that trains a setting and never ends."""
    return Config(
        data=DataConfig(
            dataset=setting.corpus,
            sequence_length=setting.sequence_length,
            workers=setting.workers,
            packing="best_fit" if packing else "none",
        ),
        model=ModelConfig(config=setting.model, tokenizer=setting.tokenizer, compile=compile_it),
        objective=ObjectiveConfig(mask_rate=MASK_RATE),
        train=TrainConfig(
            max_steps=100_000,
            seed=setting.seed,
            global_batch_size=setting.batch,
            micro_batch_size=setting.micro_batch or setting.batch,
            learning_rate=LEARNING_RATE,
            warmup_steps=0,
            schedule="linear",
        ),
        run=RunConfig(wandb="disabled"),
    )


@contextmanager
def prepared_run(config: Config, within: str | None = None) -> Iterator[tuple[Setup, StepStream]]:
    """A run without what surrounds its steps: no log, no checkpoints. Its folder is gone at the end of the block.

    within: the folder to make that in, by default where temporary files are.
    """
    with (
        tempfile.TemporaryDirectory(dir=within) as folder,
        accelerate_for_one_run(),
        stop_on_signals() as stop,
        RunDirectory.own(Path(folder) / "out", [], lambda _: None) as out,
    ):
        setup = set_up(config, [], accelerator_for(config), Ranks(), Progress(None), stop, out)
        with StepStream(
            setup.plan,
            setup.cursors,
            workers=config.data.workers,
            in_worker=ignore_in_worker,
            memory=memory_for(setup.parallel.device),
        ) as stream:
            yield setup, stream


def steps_of(setup: Setup, stream: StepStream) -> Iterator[StepResult]:
    """The steps of a run on a corpus that is read again and again."""
    for result in training_steps(setup, stream, Watchdog(setup.ranks, print)):
        assert isinstance(result, StepResult), "the corpus has no end"
        yield result


class Clock:
    """Counts steps and tokens from the end of the warm-up to the last step."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.step = 0
        self.tokens: Any = 0  # a number, or a tensor on the device, which nothing has to wait for
        self.started = (0.0, 0.0)
        self.seconds = (0.0, 0.0)

    def tick(self, tokens: Any) -> bool:
        """Count a step of `tokens`; whether it was the last."""
        self.step += 1
        if self.step > self.setting.warmup:
            self.tokens = self.tokens + tokens
        if self.step == self.setting.warmup:
            self.started = self._now()
        ends = self.step == self.setting.warmup + self.setting.steps
        if ends:
            wall, processor = self._now()
            self.seconds = wall - self.started[0], processor - self.started[1]
        return ends

    def measured(self) -> Measured:
        return Measured(int(self.tokens), *self.seconds)

    def _now(self) -> tuple[float, float]:
        if self.setting.cuda:
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def train(setting: Setting, without: Ingredient | None = None) -> Measured:
    """This package, with one ingredient taken away if it is named."""
    if without == "labelled head":
        PretrainingModel.forward = _dense_forward(PretrainingModel.forward)  # type: ignore[method-assign]
    config = config_of(setting, compile_it=setting.cuda and without != "compile", packing=without != "packing")
    with prepared_run(config) as (setup, stream):
        bare = setup.parallel.bare
        if without == "varlen attention":  # a mask [L, L] of each row isolates its documents
            bare.model.set_attn_implementation("sdpa")
            bare.by_mask = True
        if without == "fused AdamW":
            setup = replace(setup, parallel=replace(setup.parallel, optimizer=torch.optim.AdamW(bare.parameters())))
        return timed(setting, setup, steps_of(setup, stream))


def timed(setting: Setting, setup: Setup, steps: Iterator[StepResult]) -> Measured:
    """The warm-up of a setting and its steps."""
    clock, results = Clock(setting), []
    framing = len(setup.plan.encoder.prefix) + len(setup.plan.encoder.suffix)
    for result in steps:
        results.append(result)
        if clock.tick(result.tokens - framing * result.segments):
            break
    counted = results[setting.warmup :]
    seconds = [result.seconds for result in counted]
    measured = clock.measured()
    peak = peak_bf16_flops(torch.cuda.get_device_name()) if setting.cuda else None
    flops = sum(useful_flops(setup.parallel.bare.model.config, result.rows_seen.trained) for result in counted)
    return replace(
        measured,
        waiting_seconds=sum(result.seconds_waiting for result in counted),
        slowest_over_median=round(max(seconds) / statistics.median(seconds), 2),
        tokens_a_segment=round(sum(result.tokens for result in counted) / sum(result.segments for result in counted), 1),
        mfu=None if peak is None else round(flops / measured.wall_seconds / peak, 4),
    )


def _dense_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The head on every position, as in the usual recipes."""

    def dense(
        self: Any, input_ids: Any, position_ids: Any, cu_seq_lens: Any, label_positions: Any, labels: Any, label_sources: Any
    ) -> tuple[Any, ...]:
        everywhere = torch.arange(input_ids.numel(), device=input_ids.device)
        of_positions = torch.full((input_ids.numel() + 1,), -100, device=input_ids.device)
        of_positions.scatter_(0, torch.where(labels >= 0, label_positions, input_ids.numel()), labels)
        of_positions, one_source = of_positions[:-1], label_sources.new_zeros(input_ids.numel())
        sums: tuple[Any, ...] = forward(self, input_ids, position_ids, cu_seq_lens, everywhere, of_positions, one_source)
        return sums

    return dense
