"""Weights and optimizer state by parameter name: taken for a checkpoint, restored from one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from stream_pretrain.errors import NO_MEMORY, CheckpointError, TrainingError
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.units import human_bytes

STATES = ("step", "exp_avg", "exp_avg_sq")
"""State of AdamW for a parameter: its number of updates, a scalar, and two tensors of the parameter's shape."""

_COPY_THREADS = 4
"""One core cannot saturate the memory bandwidth."""


class HostCopies:
    """Copies of tensors in host memory that is allocated once: a fresh allocation takes several times as long as the copy."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Contiguous CPU copies, which the next call overwrites; names, shapes and dtypes must be those of the first call.

        Raises: TrainingError where this machine has no memory for them.
        """
        try:
            copies = {name: self._memory_for(name, tensor) for name, tensor in tensors.items()}
        except RuntimeError as error:  # of torch, which has none of its own for the memory of the machine
            # Pinning memory also raises what a kernel before it has done, such as "an illegal memory access".
            if not NO_MEMORY.search(str(error)):
                raise
            size = human_bytes(sum(tensor.nbytes for tensor in tensors.values()))
            raise TrainingError(
                f"out of memory while saving: the copy that is written needs {size} of this machine's memory; give fewer "
                "--workers or --lanes, or a machine with more"
            ) from error
        if any(tensor.is_cuda for tensor in tensors.values()):
            for name, tensor in tensors.items():
                copies[name].copy_(tensor.detach(), non_blocking=True)
            torch.cuda.synchronize()
        else:
            with ThreadPoolExecutor(_COPY_THREADS) as threads:
                list(threads.map(lambda name: copies[name].copy_(tensors[name].detach()), tensors))
        return copies

    def _memory_for(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._memory:
            self._memory[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        memory = self._memory[name]
        assert (memory.shape, memory.dtype) == (tensor.shape, tensor.dtype), name
        return memory


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value is NaN or infinite; by the extremes, ten times as fast as testing each value."""
    kinds = (tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel())
    return all(bool(extreme.isfinite()) for tensor in kinds for extreme in tensor.aminmax())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, memory-mapped: copy what must outlive the file. Raises: CheckpointError."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be used ({error}): use another checkpoint") from error
    return tensors


def untrained(weights: Iterable[str], model: Module) -> frozenset[str]:
    """The names of weights that no update changes."""
    return frozenset(weights) - {name for name, value in model.named_parameters(remove_duplicate=False) if value.requires_grad}


def load_weights(weights: Mapping[str, Tensor], file: Path, untrained: Collection[str] = ()) -> None:
    """Overwrite live weights with those of a file.

    Raises: CheckpointError for weights of another model, or trained weights that are not finite.
    """
    saved = read_tensors(file)
    _refuse_other_names(file, weights.keys(), saved.keys())
    for name, weight in weights.items():
        _refuse_other_kind(file, name, saved[name], weight.shape, weight.dtype)
        if name not in untrained and not all_finite([saved[name]]):
            raise CheckpointError(f"{file}: {name} is not finite: use another checkpoint")
    for name, weight in weights.items():
        weight.detach().copy_(saved[name])


def optimizer_tensors(optimizer: Optimizer, named_parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The live optimizer state by `<state>.<parameter name>`, for example `exp_avg.encoder.weight`; empty before any update.

    named_parameters: of the bare model. An Accelerate wrapper of the optimizer is unwrapped.
    """
    bare, names = _bare(optimizer), {id(parameter): name for name, parameter in named_parameters}
    parameters = _parameters(bare)
    assert all(id(parameter) in names for parameter in parameters), "the optimizer has parameters that the model has not"
    states = {names[id(parameter)]: bare.state.get(parameter) or {} for parameter in parameters}
    assert not any(states.values()) or all(states.values()), "some parameters have never been updated"
    return {f"{key}.{name}": value for name, state in states.items() for key, value in state.items()}


def load_optimizer_tensors(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, Tensor]], file: Path, *, updates: int, ranks: Ranks
) -> None:
    """Restore the state that `optimizer_tensors` gave; hyperparameters such as the learning rate stay.

    The first rank reads the file and broadcasts it. updates: the most that a parameter can have had.
    Raises: CheckpointError for a missing or unknown parameter, or one of another shape.
    """
    bare, names = _bare(optimizer), {id(parameter): name for name, parameter in named_parameters}
    parameters = {names[id(parameter)]: parameter for parameter in _parameters(bare)}
    saved: dict[str, Tensor] = {}

    def check() -> bool:
        saved.update(read_tensors(file))
        _refuse_foreign_state(file, parameters, saved, updates)
        return bool(saved)

    if not ranks.from_first(check):
        return
    state = [
        # The step count stays on the host; `load_state_dict` moves it for the fused and capturable kernels.
        {
            key: torch.empty(() if key == "step" else parameter.shape, device="cpu" if key == "step" else parameter.device)
            for key in STATES
        }
        for parameter in parameters.values()
    ]
    for name, of_parameter in zip(parameters, state, strict=True):
        for key, tensor in of_parameter.items() if ranks.is_first else ():
            tensor.copy_(saved[f"{key}.{name}"])
    ranks.broadcast(
        [tensor for of_parameter in state for tensor in of_parameter.values()], next(iter(parameters.values())).device
    )
    bare.load_state_dict({**bare.state_dict(), "state": dict(enumerate(state))})


def _refuse_foreign_state(file: Path, parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor], updates: int) -> None:
    if not saved and updates == 0:
        return
    _refuse_other_names(file, [f"{key}.{name}" for name in parameters for key in STATES], saved.keys())
    for name, parameter in parameters.items():
        for key in STATES:
            shape = torch.Size() if key == "step" else parameter.shape
            _refuse_other_kind(file, f"{key}.{name}", saved[f"{key}.{name}"], shape, torch.float32)
        steps = saved[f"step.{name}"].item()
        if not 1 <= steps <= updates:
            raise CheckpointError(f"{file}: {name} has {steps:g} updates after {updates} steps: use another checkpoint")


def _refuse_other_names(file: Path, expected: Iterable[str], found: Iterable[str]) -> None:
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing:
        raise CheckpointError(f"{file} has no {missing[0]}: it belongs to another model")
    if unknown:
        raise CheckpointError(f"{file} has {unknown[0]!r}, which the model does not have: it belongs to another model")


def _refuse_other_kind(file: Path, name: str, tensor: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    if tensor.shape != shape:
        shapes = f"{list(tensor.shape)} instead of {list(shape)}"
        raise CheckpointError(f"{file}: {name} has shape {shapes}: it belongs to another model")
    if tensor.dtype != dtype:
        raise CheckpointError(f"{file}: {name} is {tensor.dtype} instead of {dtype}: it belongs to another model")


def _bare(optimizer: Optimizer) -> Optimizer:
    return getattr(optimizer, "optimizer", optimizer)  # Accelerate keeps the torch optimizer there


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    """In the order in which torch numbers them in a state dict."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
