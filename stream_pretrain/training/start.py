"""A run that is ready to train: its model, corpus and checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator

from stream_pretrain.config import Config, defaults
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.corpus.formats import count_formats, show_counts
from stream_pretrain.data.corpus.pinned import PinnedCorpus
from stream_pretrain.data.lanes import pinning
from stream_pretrain.data.lanes.standing import refuse_impossible
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors, cursors_from, first_cursors
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.tokenizer_probe import EngineRecord, note_on_engine, probed, refuse_unlike
from stream_pretrain.errors import (
    CheckpointError,
    ModelError,
)
from stream_pretrain.model.isolation import isolation_fault
from stream_pretrain.model.loading import LoadedModel, load_model, load_tokenizer
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.training import evaluation
from stream_pretrain.training.advice import advice
from stream_pretrain.training.checkpoint import (
    Saved,
    read,
    verify,
)
from stream_pretrain.training.defaults import defaults_of_then, with_options
from stream_pretrain.training.evaluation import EvaluationSet
from stream_pretrain.training.evaluation_documents import evaluation_documents
from stream_pretrain.training.learning_rate import learning_rate
from stream_pretrain.training.manifest import MANIFEST
from stream_pretrain.training.optimizer import adamw
from stream_pretrain.training.options_file import write_options
from stream_pretrain.training.out_files import RECORDS
from stream_pretrain.training.parallelism import DataParallel, load_trained_weights
from stream_pretrain.training.progress import Progress, human_bytes
from stream_pretrain.training.ranks import Ranks
from stream_pretrain.training.records import trim_after
from stream_pretrain.training.run_directory import RunDirectory, decide_start
from stream_pretrain.training.signals import StopRequest
from stream_pretrain.training.totals import Totals


@dataclass(frozen=True)
class Setup:
    """A run that is ready to train."""

    config: Config
    parallel: DataParallel
    ranks: Ranks
    out: RunDirectory
    progress: Progress
    stop: StopRequest
    loaded: LoadedModel
    pinned: PinnedCorpus
    plan: StreamPlan
    engine: EngineRecord
    evaluation_set: EvaluationSet | None
    cursors: list[LaneCursors]
    totals: Totals
    parent: str | None
    defaults: Mapping[str, Any]
    """Those of the run's first start; of an option that is newer, those of the start that first knew it."""


def prepare(
    config: Config,
    command: Sequence[str],
    accelerator: Accelerator,
    ranks: Ranks,
    progress: Progress,
    stop: StopRequest,
    out: RunDirectory,
) -> Setup:
    """Load the model, resolve the corpus, and stand where the last checkpoint stood. No shard is read before this is done."""
    transformers.utils.logging.disable_progress_bar()  # the phases below say what goes on
    with stop.interruptible():
        start = ranks.from_first(lambda: decide_start(config, out, progress.warning, command))
        config, checkpoint = with_options(config, start.kept), start.checkpoint
        saved = None if checkpoint is None else ranks.from_first(lambda: read(checkpoint))
        with progress.phase("loading the model") as found:
            if checkpoint is None:
                ranks.from_first(lambda: _verify_given(config.model.init_from))
            loaded = _loaded_by_all(config, checkpoint, accelerator, ranks)
            precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
            found(f"{loaded.model.num_parameters() / 1e6:.1f}M parameters, {precision} on {_devices(accelerator)}")
        for note in loaded.notes:
            progress.notice(note)
        with progress.phase("resolving the corpus") as found:
            pinned = ranks.from_first(lambda: _pinned_corpus(config, saved, ranks.world))
            sizes = [shard.size for shard in pinned.shards if shard.size is not None]
            mixed = f"{len(pinned.sources)} sources, " if len(pinned.sources) > 1 else ""
            kinds = show_counts(count_formats(shard.name for shard in pinned.shards))
            found(f"{mixed}{len(pinned.shards)} shards ({kinds}), {human_bytes(sum(sizes))}, {pinned.lanes} lanes")
        plan = stream_plan(config, loaded.tokenizer, pinned)
        for note in plan.encoder.notes:
            progress.notice(note)
        engine = engine_of_all(config, plan.encoder, ranks, saved, progress)
        for line in advice(plan, ranks, config.data.workers):
            progress.warning(line)
        evaluation_set = None
        if config.eval.every:
            texts = ranks.from_first(lambda: evaluation_documents(config, plan, out.path, progress))
            evaluation_set = evaluation.evaluation_set(texts, plan, config.train.micro_batch_size)

    bare = PretrainingModel(loaded.model, len(pinned.sources)).train()
    cursors, totals = first_cursors(pinned.lanes, len(pinned.sources)), Totals()
    if checkpoint is not None:
        load_trained_weights(ranks, loaded, bare, checkpoint / "model.safetensors")
    if config.model.compile:
        bare.compile(dynamic=False)
    parallel = DataParallel.of(accelerator, ranks, loaded, bare, adamw(bare, config.train))
    with accelerator.autocast():  # asked again where it trains: a GPU computes attention with another kernel
        fault = isolation_fault(bare, config.data.sequence_length, plan.objective.causal, loaded.tokenizer.mask_token_id)
    if fault is not None:
        raise ModelError(f"the documents of a row are not kept apart on this {accelerator.device.type}: {fault}")
    if saved is not None and checkpoint is not None:
        cursors, totals = ranks.from_first(lambda: _where_it_stood(saved, plan))
        parallel.load_optimizer(checkpoint / "optimizer.safetensors", updates=totals.step - totals.bad_steps)
        progress.notice(f"going on after step {totals.step:,}, from {checkpoint}")
        was, now = saved.trainer["max_steps"], config.train.max_steps
        if was is not None and now is not None and was != now:
            old = learning_rate(replace(config.train, max_steps=was), totals.step, totals.step / was)
            new = learning_rate(config.train, totals.step, totals.step / now)
            progress.notice(f"--max-steps was {was:,}, is {now:,}: the learning rate goes on with {new:.2e}, not {old:.2e}")
    then = {} if saved is None else defaults_of_then(saved.trainer)
    if ranks.is_first:
        for name in RECORDS:
            trim_after(out.path / name, totals.step if saved is not None else None, progress.warning)
        write_options(config, start.parent, out.path)
    return Setup(
        config, parallel, ranks, out, progress, stop, loaded, pinned, plan, engine, evaluation_set, cursors, totals,
        start.parent, {**defaults(config), **then},
    )  # fmt: skip


def _where_it_stood(saved: Saved, plan: StreamPlan) -> tuple[list[LaneCursors], Totals]:
    """The cursors and the totals of a checkpoint. Raises: CheckpointError for what the run can never have been at."""
    cursors = cursors_from(saved.stream, plan.layout.lanes)
    totals = Totals.from_json(saved.trainer["totals"], len(plan.sources), "trainer.json: totals")
    refuse_impossible(cursors, plan, totals.step)
    return cursors, totals


def engine_of_all(config: Config, encoder: Encoder, ranks: Ranks, saved: Saved | None, progress: Progress) -> EngineRecord:
    """What makes the ids, when it makes the same on all ranks as when the run began. Raises: CheckpointError, ModelError."""
    name = config.model.tokenizer or config.model.path
    assert name is not None, "validated: a model from scratch has a tokenizer"
    engine = probed(encoder, name)
    refuse_unlike(ranks.gather(engine))
    if saved is None:
        return engine
    if saved.trainer["tokenizer"] != encoder.fingerprint:
        raise CheckpointError(
            f"the tokenizer of {name} is not the one the run began with: "
            "put it back, or start a new run with another --output-dir"
        )
    note = note_on_engine(engine, saved.trainer.get("engine"))
    if note is not None:
        progress.notice(note)
    return engine


def _verify_given(weights: str | None) -> None:
    """Verify the weights to begin with where they are those of a checkpoint; a model folder has nothing to verify it by."""
    if weights is not None and os.path.lexists(Path(weights) / MANIFEST):
        verify(Path(weights))


def _loaded_by_all(config: Config, checkpoint: Path | None, accelerator: Accelerator, ranks: Ranks) -> LoadedModel:
    """The first rank refuses for all, one rank of each machine asks the Hub, and the others find what it fetched.

    checkpoint: of a run that is resumed, which does without the weights that it began with.
    """
    if checkpoint is not None and config.model.init_from is not None:  # a rank that does not see it has them from the first
        weights = str(checkpoint) if checkpoint.exists() else None
        config = replace(config, model=replace(config.model, init_from=weights))
    loaded: LoadedModel | None = None

    def load() -> None:
        nonlocal loaded
        loaded = _loaded(config)

    ranks.from_first(load)
    if loaded is None and accelerator.is_local_main_process:
        load()
    ranks.wait()
    return loaded or _loaded(config, local_files_only=True)


def _loaded(config: Config, *, local_files_only: bool = False) -> LoadedModel:
    tokenizer = load_tokenizer(config.model, local_files_only=local_files_only)
    return load_model(
        config.model,
        config.objective,
        tokenizer,
        config.data.sequence_length,
        config.train.seed,
        local_files_only=local_files_only,
    )


def _devices(accelerator: Accelerator) -> str:
    name = torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else accelerator.device.type
    return name if accelerator.num_processes == 1 else f"{accelerator.num_processes} x {name}"


def _pinned_corpus(config: Config, saved: Saved | None, world: int) -> PinnedCorpus:
    """The corpus that the run began with, where it lies now, or as it is found now."""
    if saved is None:
        return pinning.pin(config, world)
    return pinning.found_again(config, PinnedCorpus.from_json(saved.corpus), world)
