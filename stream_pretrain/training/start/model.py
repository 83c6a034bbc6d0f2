"""The model of a run on every rank: loaded, checked, and ready to train on its devices."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import Accelerator

from stream_pretrain.config import Config
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.rows.objective import objective_named
from stream_pretrain.errors import ModelError
from stream_pretrain.model.isolation import isolation_fault
from stream_pretrain.model.loading import LoadedModel, load_model
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.model.tokenizer import load_tokenizer
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.start.optimizer import adamw
from stream_pretrain.training.state.checkpoint import Saved, verify_models
from stream_pretrain.training.state.parallelism import DataParallel, load_trained_weights


def load_on_all_ranks(
    config: Config, saved: Saved | None, accelerator: Accelerator, ranks: Ranks, progress: Progress
) -> LoadedModel:
    """The model and its tokenizer, before the weights of a checkpoint. Called by all ranks. Raises: ModelError."""
    with progress.phase("loading the model") as found:
        if saved is None:
            ranks.from_first(lambda: verify_models(config.model.path, config.model.init_from))
        loaded = _loaded_once_per_machine(config, saved, accelerator, ranks)
        precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
        found(f"{loaded.model.num_parameters() / 1e6:.1f}M parameters, {precision} on {devices_of(accelerator)}")
    for note in loaded.notes:
        progress.notice(note)
    return loaded


def ready_to_train(
    config: Config, loaded: LoadedModel, plan: StreamPlan, saved: Saved | None, accelerator: Accelerator, ranks: Ranks
) -> DataParallel:
    """The model on its devices, with the weights of the checkpoint and a new optimizer. Called by all ranks.

    Raises: CheckpointError, and ModelError where documents of a row are not isolated on the device.
    """
    bare = PretrainingModel(loaded.model, len(plan.sources)).train()
    if saved is not None:
        load_trained_weights(ranks, loaded, bare, saved.path / "model.safetensors")
    if config.model.compile:
        bare.compile(dynamic=False)
    parallel = DataParallel.of(accelerator, ranks, loaded, bare, adamw(bare, config.train))
    with accelerator.autocast():  # probed again where it trains: a GPU computes attention with another kernel
        fault = isolation_fault(bare, config.data.sequence_length, plan.objective.causal, loaded.tokenizer.mask_token_id)
    if fault is not None:
        raise ModelError(
            f"the documents of a row are not isolated on this {accelerator.device.type} ({fault}): choose another model"
        )
    return parallel


def _loaded_once_per_machine(config: Config, saved: Saved | None, accelerator: Accelerator, ranks: Ranks) -> LoadedModel:
    """The first rank loads first and fails for all; then one rank of each machine, which may download, then the others."""
    if saved is not None and config.model.init_from is not None:  # a resumed run needs no initial weights
        weights = str(saved.path) if saved.path.exists() else None  # a rank that cannot see them gets them from the first
        config = replace(config, model=replace(config.model, init_from=weights))
    loaded: LoadedModel | None = None

    def load() -> None:
        nonlocal loaded
        loaded = _load(config, saved)

    ranks.from_first(load)
    if loaded is None and accelerator.is_local_main_process:
        load()
    ranks.wait()
    return loaded or _load(config, saved, local_files_only=True)


def _load(config: Config, saved: Saved | None, *, local_files_only: bool = False) -> LoadedModel:
    tokenizer = load_tokenizer(config.model, local_files_only=local_files_only)
    return load_model(
        config.model,
        objective_named(config.objective.name).causal,
        tokenizer,
        config.data.sequence_length,
        config.train.seed,
        local_files_only=local_files_only,
        vocabulary=None if saved is None else saved.vocabulary,
    )


def devices_of(accelerator: Accelerator) -> str:
    """The devices of all ranks, in words."""
    name = torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else accelerator.device.type
    return name if accelerator.num_processes == 1 else f"{accelerator.num_processes} x {name}"
