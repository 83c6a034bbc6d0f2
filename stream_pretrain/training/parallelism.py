"""How the ranks share the work on a model: data parallel, by torch's DistributedDataParallel (DDP).

Each rank has the whole model and optimizer, and trains on rows of its own. DDP averages the gradients over the ranks during the
backward pass of the last micro-batch of a step. All that follows from this is in `DataParallel`; a way to shard the model too,
such as FSDP2, is another class with the same methods. Accelerate only wraps the model: the data comes sharded already, and the
loop sets the learning rate.
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
from transformers import PretrainedConfig

from stream_pretrain.config import Config
from stream_pretrain.errors import ConfigError
from stream_pretrain.model.loading import LoadedModel, export_state
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.training.model_state import load_optimizer_tensors, load_weights, optimizer_tensors, untrained
from stream_pretrain.training.ranks import Ranks

PATIENCE_SECONDS = 1_800.0
"""What a rank may take, besides the wait for a server, before torch ends those that wait for it."""


@dataclass(frozen=True)
class DataParallel:
    """A model and its optimizer, on all ranks alike."""

    accelerator: Accelerator
    ranks: Ranks
    loaded: LoadedModel
    bare: PretrainingModel
    """The model itself. Evaluation calls it, so that ranks need not keep in step."""
    model: torch.nn.Module
    """What training calls: `bare`, or DDP around it."""
    optimizer: Optimizer

    @classmethod
    def of(
        cls, accelerator: Accelerator, ranks: Ranks, loaded: LoadedModel, bare: PretrainingModel, optimizer: Optimizer
    ) -> Self:
        """Called by all ranks; each has the weights of the first one afterwards."""
        model, prepared = accelerator.prepare(bare, optimizer)
        return cls(accelerator, ranks, loaded, bare, model, prepared)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def loss_scale(self, labels: Tensor) -> Tensor:
        """What a sum over labels is multiplied by, so that the gradient is that of the mean over the labels of all ranks."""
        return (self.ranks.world / labels.clamp(min=1)).float()  # DDP averages over the ranks

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Around a micro-batch: the ranks meet in the last one of a step only, so that one rank may leave out the others."""
        return nullcontext() if is_last else self.accelerator.no_sync(self.model)

    def export(self) -> tuple[dict[str, Tensor], PretrainedConfig]:
        """Live weights and configuration, as `export_state` gives them. Called by the first rank only, which has them all."""
        return export_state(self.loaded, self.bare)

    def untrained(self, exported: Iterable[str]) -> frozenset[str]:
        """Of the names of exported weights those that no update changes."""
        return untrained(exported, self.bare.model)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Live state of the optimizer by the names of the parameters. Called by the first rank only, which has it all."""
        return optimizer_tensors(self.optimizer, self.bare.model.named_parameters())

    def load_optimizer(self, file: Path, *, updates: int) -> None:
        """Put back what `optimizer_tensors` gave. Called by all ranks; the first one reads. Raises: CheckpointError."""
        parameters = self.bare.model.named_parameters()
        load_optimizer_tensors(self.optimizer, parameters, file, updates=updates, ranks=self.ranks)


def load_trained_weights(ranks: Ranks, loaded: LoadedModel, bare: PretrainingModel, file: Path) -> None:
    """Put back the weights of a checkpoint, before the model is wrapped: on the first rank, from which DDP gives them to all.

    Raises: CheckpointError.
    """
    weights, _ = export_state(loaded, bare)
    ranks.from_first(lambda: load_weights(weights, file, untrained(weights, bare.model)))


@contextmanager
def accelerate_for_one_run() -> Iterator[None]:
    """Let Accelerate forget the run at its end: it refuses another one in the process that asks for anything else."""
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def accelerator_for(config: Config) -> Accelerator:
    """Accelerate as the loop needs it. Raises ConfigError where the environment or a launcher wants it otherwise."""
    on_gpu = torch.cuda.is_available()
    precision = config.train.precision
    if precision == "auto":
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    mixed_precision = "bf16" if precision == "bf16" else "no"
    _refuse_environment(mixed_precision)
    launched = "LOCAL_RANK" in os.environ
    accelerator = Accelerator(
        cpu=launched and not on_gpu,  # without this, ranks on CPUs would not find each other
        mixed_precision=mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        # A rank may wait for a server as long as it is told to, and the others for that rank.
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(seconds=config.data.retry_deadline + PATIENCE_SECONDS)),
        ],
    )
    supported = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in supported:
        raise ConfigError(
            f"the launcher asks for {accelerator.distributed_type.value}, which is not supported: launch with torchrun, or "
            "with `accelerate launch --multi_gpu`"
        )
    if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {accelerator.num_processes} processes have found each other: "
            "launch with torchrun, or unset it"
        )
    assert accelerator.gradient_accumulation_steps == 1
    assert str(accelerator.state.dynamo_plugin.backend).rsplit(".", 1)[-1] == "NO"
    assert accelerator.mixed_precision == mixed_precision
    torch.set_float32_matmul_precision("high")
    return accelerator


def _refuse_environment(mixed_precision: str) -> None:
    """Refuse variables that override, without a word, what the options say."""
    accepted = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1",), "--micro-batch-size decides that"),
        "ACCELERATE_DYNAMO_BACKEND": (("no",), "use --model.compile"),
        # "no" is what `accelerate launch` sets by itself; it does not change what the Accelerator is asked for.
        "ACCELERATE_MIXED_PRECISION": ((mixed_precision, "no"), "use --train.precision"),
        "ACCELERATE_USE_FSDP": (("false",), "it is not supported"),
        "ACCELERATE_USE_DEEPSPEED": (("false",), "it is not supported"),
        "ACCELERATE_USE_MEGATRON_LM": (("false",), "it is not supported"),
    }
    for name, (values, instead) in accepted.items():
        found = os.environ.get(name, values[0])
        if found.lower() not in values:
            raise ConfigError(f"{name} is set to {found}: unset it or launch with torchrun, {instead}")
