"""How the ranks share the work on a model: data parallel, by torch's DistributedDataParallel (DDP).

Each rank has a full copy of the model and optimizer, and its own rows. DDP averages gradients over the ranks during the
backward pass of the last micro-batch of a step. Everything specific to that is in `DataParallel`; FSDP2, which shards the model
too, would be another class with the same methods. Accelerate only wraps the model: the rows are dealt already, and the loop
sets the learning rate.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor
from torch.optim import Optimizer

from stream_pretrain.config import Config
from stream_pretrain.errors import ConfigError
from stream_pretrain.model.loading import Export, LoadedModel, export_of
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.training.ranks.meeting import connect
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.state.model_state import load_optimizer_tensors, load_weights, optimizer_tensors, untrained

COLLECTIVE_TIMEOUT_SECONDS = 1_800.0
"""After this, plus --data.retry-deadline, torch ends ranks that wait in a collective."""


@dataclass(frozen=True)
class DataParallel:
    """A model and its optimizer, on all ranks alike."""

    accelerator: Accelerator
    ranks: Ranks
    loaded: LoadedModel
    bare: PretrainingModel
    """The model itself. Evaluation calls it: without DDP, ranks may run different numbers of micro-batches."""
    model: torch.nn.Module
    """What training calls: `bare`, or DDP around it."""
    optimizer: Optimizer

    @classmethod
    def of(
        cls, accelerator: Accelerator, ranks: Ranks, loaded: LoadedModel, bare: PretrainingModel, optimizer: Optimizer
    ) -> Self:
        """Called by all ranks; broadcasts the weights of the first one."""
        model, prepared = accelerator.prepare(bare, optimizer)
        return cls(accelerator, ranks, loaded, bare, model, prepared)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def loss_scale(self, labels: Tensor) -> Tensor:
        """The factor that turns the sum of the loss over a rank's labels into a mean over the labels of all ranks."""
        return (self.ranks.world / labels.clamp(min=1)).float()  # DDP averages over the ranks

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Around a micro-batch. Ranks synchronise in the last one of a step only, so that a rank may skip the others."""
        return nullcontext() if is_last else self.accelerator.no_sync(self.model)

    def export(self) -> Export:
        """What `from_pretrained` reads, with live weights. Called by the first rank only."""
        return export_of(self.loaded, self.bare)

    def untrained(self, exported: Iterable[str]) -> frozenset[str]:
        """The names of exported weights that no update changes."""
        return untrained(exported, self.bare.model)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Live state of the optimizer by parameter name. Called by the first rank only."""
        return optimizer_tensors(self.optimizer, self.bare.model.named_parameters())

    def load_optimizer(self, file: Path, *, updates: int) -> None:
        """Restore what `optimizer_tensors` gave. Called by all ranks; the first one reads. Raises: CheckpointError."""
        parameters = self.bare.model.named_parameters()
        load_optimizer_tensors(self.optimizer, parameters, file, updates=updates, ranks=self.ranks)


def load_trained_weights(ranks: Ranks, loaded: LoadedModel, bare: PretrainingModel, file: Path) -> None:
    """Restore the weights of a checkpoint on the first rank, before DDP broadcasts them. Raises: CheckpointError."""
    weights = export_of(loaded, bare).weights
    ranks.from_first(lambda: load_weights(weights, file, untrained(weights, bare.model)))


def collective_timeout(config: Config) -> timedelta:
    """How long a rank waits for the others, any of which may retry a server until its deadline."""
    return timedelta(seconds=config.data.retry_deadline + COLLECTIVE_TIMEOUT_SECONDS)


@contextmanager
def accelerate_for_one_run() -> Iterator[None]:
    """Reset the global state of Accelerate after a run: it refuses a second run with other settings in a process."""
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def accelerator_for(config: Config) -> Accelerator:
    """An Accelerator for the loop. Raises: ConfigError where the environment or launcher asks for other settings."""
    on_gpu = torch.cuda.is_available()
    precision = config.train.precision
    if precision == "auto":
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    mixed_precision = "bf16" if precision == "bf16" else "no"
    _refuse_environment(mixed_precision)
    launched = "LOCAL_RANK" in os.environ
    timeout = collective_timeout(config)
    try:
        connect("nccl" if on_gpu else "gloo", timeout)
        accelerator = Accelerator(
            cpu=launched and not on_gpu,  # else ranks on CPUs do not find each other
            mixed_precision=mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
        )
    except ValueError as error:
        raise ConfigError(
            f"the environment is not that of a launcher ({error}): launch with torchrun, or unset RANK, LOCAL_RANK, WORLD_SIZE "
            "and what begins with ACCELERATE_"
        ) from error
    supported = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in supported:
        raise ConfigError(
            f"the launcher asks for {accelerator.distributed_type.value}, which is not supported: launch with torchrun, or "
            "with `accelerate launch --multi_gpu`"
        )
    counted = {"WORLD_SIZE": str(accelerator.num_processes), "RANK": str(accelerator.process_index)}
    for name, value in counted.items():
        if (found := os.environ.get(name, value)) != value:
            raise ConfigError(f"{name} is {found}, but by the launch it is {value}: launch with torchrun, or unset it")
    assert accelerator.gradient_accumulation_steps == 1
    assert str(accelerator.state.dynamo_plugin.backend).rsplit(".", 1)[-1] == "NO"
    assert accelerator.mixed_precision == mixed_precision
    torch.set_float32_matmul_precision("high")
    return accelerator


def _refuse_environment(mixed_precision: str) -> None:
    """Refuse variables that would silently override options."""
    accepted = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1",), "--micro-batch-size decides that"),
        "ACCELERATE_DYNAMO_BACKEND": (("no",), "use --model.compile"),
        # `accelerate launch` always sets "no"; the Accelerator does not heed that.
        "ACCELERATE_MIXED_PRECISION": ((mixed_precision, "no"), "use --train.precision"),
        "ACCELERATE_USE_FSDP": (("false",), "it is not supported"),
        "ACCELERATE_USE_DEEPSPEED": (("false",), "it is not supported"),
        "ACCELERATE_USE_MEGATRON_LM": (("false",), "it is not supported"),
    }
    for name, (values, instead) in accepted.items():
        found = os.environ.get(name, values[0])
        if found.lower() not in values:
            raise ConfigError(f"{name} is set to {found}: unset it or launch with torchrun, {instead}")
