"""Weights and the state of the optimizer go out by name and come back to the same bits, or are refused by name."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stream_pretrain.errors import CheckpointError, TrainingError
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.state import checkpoint
from stream_pretrain.training.state.model_state import HostCopies, load_optimizer_tensors, load_weights, optimizer_tensors
from tests.training.checkpoints import small_snapshot


def load(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, torch.Tensor], updates: int = 1) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "optimizer.safetensors"
        save_file(dict(tensors), file)
        load_optimizer_tensors(optimizer, model.named_parameters(), file, updates=updates, ranks=Ranks())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def adamw(model: nn.Module, learning_rate: float = 0.1, fused: bool = False) -> torch.optim.AdamW:
    """With two groups, in an order that is not the model's."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    biases = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    return torch.optim.AdamW([{"params": biases, "weight_decay": 0.0}, {"params": weights}], lr=learning_rate, fused=fused)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        model(torch.arange(6.0).reshape(2, 3) + step).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_continues_to_the_same_bits_after_a_checkpoint(tmp_path: Path, fused: bool) -> None:
    model = network()
    optimizer = adamw(model, fused=fused)
    train(model, optimizer, 3)
    state = HostCopies().of(optimizer_tensors(optimizer, model.named_parameters()))
    assert sorted(state)[:3] == ["exp_avg.0.bias", "exp_avg.0.weight", "exp_avg.1.bias"]
    assert (state["step.1.weight"].item(), state["step.1.weight"].dtype) == (3.0, torch.float32)
    snapshot = small_snapshot(3)
    weights = HostCopies().of(model.state_dict())
    snapshot = replace(snapshot, export=replace(snapshot.export, weights=weights), optimizer=state)
    train(model, optimizer, 2)  # must not reach what the snapshot holds

    written = checkpoint.write(snapshot, tmp_path)
    resumed = network()
    load_weights(resumed.state_dict(), written / "model.safetensors")
    resumed_optimizer = adamw(resumed, fused=fused)
    file = written / "optimizer.safetensors"
    load_optimizer_tensors(resumed_optimizer, resumed.named_parameters(), file, updates=3, ranks=Ranks())
    train(resumed, resumed_optimizer, 2)
    for expected, found in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, found)
    checkpoint.verify(written)  # training goes on in memory of its own


def test_a_learning_rate_is_not_taken_from_the_checkpoint() -> None:
    model = network()
    optimizer = adamw(model, learning_rate=0.1)
    train(model, optimizer, 1)
    state = optimizer_tensors(optimizer, model.named_parameters())
    other = adamw(model, learning_rate=0.05)
    load(other, model, state)
    assert [group["lr"] for group in other.param_groups] == [0.05, 0.05]
    assert [group["weight_decay"] for group in other.param_groups] == [0.0, 0.01]


def test_an_accelerate_wrapper_is_unwrapped() -> None:
    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    model = network()
    optimizer = adamw(model)
    train(model, optimizer, 1)
    state = optimizer_tensors(Wrapper(optimizer), model.named_parameters())  # type: ignore[arg-type]
    other = adamw(model)
    load(Wrapper(other), model, state)  # type: ignore[arg-type]
    assert other.state[model[0].weight]["step"].item() == 1.0


def test_an_optimizer_before_its_first_update_has_no_state() -> None:
    model = network()
    optimizer = adamw(model)
    assert optimizer_tensors(optimizer, model.named_parameters()) == {}
    load(optimizer, model, {}, updates=0)
    assert not optimizer.state


def changed(name: str, value: torch.Tensor | None) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(state: dict[str, torch.Tensor]) -> None:
        if value is None:
            del state[name]
        else:
            state[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("exp_avg.1.bias", None), r"has no exp_avg\.1\.bias: it belongs to another model"),
        (changed("exp_avg_sq.0.weight", None), r"has no exp_avg_sq\.0\.weight"),
        (changed("step.1.bias", None), r"has no step\.1\.bias"),
        (lambda state: state.clear(), r"has no exp_avg\.0\.bias"),
        (changed("exp_avg.2.weight", torch.zeros(1)), r"has 'exp_avg\.2\.weight', which the model does not have"),
        (changed("max_exp_avg_sq.1.bias", torch.zeros(2)), r"has 'max_exp_avg_sq\.1\.bias', which the model does not have"),
        (changed("exp_avg.1.bias", torch.zeros(5)), r"exp_avg\.1\.bias has shape \[5\] instead of \[2\]"),
        (changed("exp_avg.1.bias", torch.tensor(0.0)), r"exp_avg\.1\.bias has shape \[\] instead of \[2\]"),
        (changed("step.1.bias", torch.zeros(2)), r"step\.1\.bias has shape \[2\] instead of \[\]"),
        (changed("exp_avg.1.bias", torch.zeros(2, dtype=torch.int64)), r"exp_avg\.1\.bias is torch\.int64 instead of torch\.f"),
        (changed("step.1.bias", torch.tensor(-1.0)), r"1\.bias has -1 updates after 1 steps"),
        (changed("step.1.bias", torch.tensor(2.0)), r"1\.bias has 2 updates after 1 steps"),
        (changed("step.1.bias", torch.tensor(float("nan"))), r"1\.bias has nan updates after 1 steps"),
    ],
)
def test_optimizer_state_of_another_model_is_refused_by_name(
    change: Callable[[dict[str, torch.Tensor]], None], said: str
) -> None:
    model = network()
    optimizer = adamw(model)
    train(model, optimizer, 1)
    state = optimizer_tensors(optimizer, model.named_parameters())
    load(adamw(model), model, state)
    change(state)
    with pytest.raises(CheckpointError, match=said):
        load(adamw(model), model, state)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("1.bias", None), r"has no 1\.bias: it belongs to another model"),
        (changed("2.bias", torch.zeros(2)), r"has '2\.bias', which the model does not have"),
        (changed("1.bias", torch.zeros(3)), r"1\.bias has shape \[3\] instead of \[2\]"),
        (changed("1.bias", torch.zeros(2, dtype=torch.float16)), r"1\.bias is torch\.float16 instead of torch\.float32"),
        (changed("1.bias", torch.tensor([0.0, float("inf")])), r"1\.bias is not finite"),
        (changed("1.bias", torch.tensor([float("nan"), 0.0])), r"1\.bias is not finite"),
    ],
)
def test_weights_of_another_model_are_refused_by_name_and_none_is_loaded(
    change: Callable[[dict[str, torch.Tensor]], None], said: str, tmp_path: Path
) -> None:
    model = network()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    weights = {name: torch.zeros_like(weight) for name, weight in before.items()}
    change(weights)
    save_file(weights, tmp_path / "weights")
    with pytest.raises(CheckpointError, match=said):
        load_weights(model.state_dict(), tmp_path / "weights")
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in before.items())


def test_copies_are_made_in_the_same_memory_and_share_none_with_the_originals() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    copies = HostCopies()
    first = copies.of({"weight": weight.T, "step": torch.tensor(3.0)})
    place = first["weight"].data_ptr()
    assert first["weight"].is_contiguous()
    assert first["weight"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    weight.add_(1)
    assert first["weight"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    second = copies.of({"weight": weight.T, "step": torch.tensor(4.0)})
    assert second["weight"].tolist() == [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
    assert second["step"].item() == 4.0
    assert second["weight"].data_ptr() == place


def test_a_copy_that_this_machine_has_no_memory_for_is_no_matter_of_the_micro_batch() -> None:
    with pytest.raises(TrainingError) as caught:
        HostCopies().of({"weight": torch.zeros(1, 1 << 20).expand(1 << 30, -1)})
    assert str(caught.value) == (
        "out of memory while saving: the copy that is written needs 4.5 PB of this machine's memory; give fewer --workers or "
        "--lanes, or a machine with more"
    )


def test_another_fault_of_the_device_is_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        HostCopies().of({"weight": torch.zeros(1)})
