"""AdamW's groups, and the learning rate of every schedule as literal numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from stream_pretrain.config import TrainConfig
from stream_pretrain.training.start.optimizer import adamw, learning_rate

PEAK = TrainConfig(max_steps=10, learning_rate=1.0, warmup_steps=0, schedule="constant")


def rates(config: TrainConfig) -> list[float]:
    """The learning rates of all steps of a run that ends with `max_steps`."""
    assert config.max_steps is not None
    return [round(learning_rate(config, step, step / config.max_steps), 6) for step in range(config.max_steps)]


def test_biases_and_norms_do_not_decay_and_matrices_do() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 10}
    model = BertForMaskedLM(BertConfig(**sizes))
    optimizer = adamw(model, TrainConfig(learning_rate=5e-4, weight_decay=0.3, beta1=0.8, beta2=0.9, epsilon=1e-6))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays, stays = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert stays == {name for name in names.values() if name.endswith("bias") or "LayerNorm" in name}
    assert decays | stays == set(names.values())
    assert "bert.embeddings.word_embeddings.weight" in decays
    assert all(group["betas"] == (0.8, 0.9) and group["eps"] == 1e-6 for group in optimizer.param_groups)


@pytest.mark.parametrize(("device", "fused"), [("cpu", True), ("meta", False)])
def test_the_update_is_fused_where_torch_can(device: str, fused: bool) -> None:
    optimizer = adamw(torch.nn.Linear(2, 2, device=device), TrainConfig(learning_rate=5e-4))
    assert [group["fused"] for group in optimizer.param_groups] == [fused, fused]


def test_a_frozen_parameter_is_left_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = adamw(model, TrainConfig(learning_rate=5e-4))
    assert [list(group["params"]) for group in optimizer.param_groups] == [[model[1].weight], [model[1].bias]]


def test_decay_pulls_at_matrices_even_without_a_gradient() -> None:
    model = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(model.weight)
    torch.nn.init.ones_(model.bias)
    optimizer = adamw(model, TrainConfig(learning_rate=0.1, weight_decay=0.5))
    model.weight.grad, model.bias.grad = torch.zeros(1, 1), torch.zeros(1)
    optimizer.step()
    assert model.weight.item() == pytest.approx(1 - 0.1 * 0.5)
    assert model.bias.item() == 1.0


def test_a_constant_rate_is_constant() -> None:
    assert rates(PEAK) == [1.0] * 10


def test_warm_up_is_linear_and_the_first_step_already_learns() -> None:
    assert rates(replace(PEAK, warmup_steps=4)) == [0.25, 0.5, 0.75, *[1.0] * 7]


def test_wsd_holds_the_peak_and_then_decays_by_one_minus_a_root() -> None:
    config = replace(PEAK, schedule="wsd", warmup_steps=2, decay_fraction=0.4)
    decayed = [round(1 - math.sqrt(share), 6) for share in (0.25, 0.5, 0.75)]
    assert decayed == [0.5, 0.292893, 0.133975]
    assert rates(config) == [0.5, *[1.0] * 6, *decayed]
    assert learning_rate(config, 10, 1.0) == 0.0


def test_wsd_without_decay_never_leaves_the_peak() -> None:
    config = replace(PEAK, schedule="wsd", decay_fraction=0.0)
    assert rates(config) == [1.0] * 10
    assert learning_rate(config, 10, 1.0) == 1.0


def test_linear_falls_in_equal_steps_from_the_end_of_the_warm_up() -> None:
    assert rates(replace(PEAK, schedule="linear", warmup_steps=5)) == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert learning_rate(replace(PEAK, schedule="linear"), 10, 1.0) == 0.0


def test_cosine_is_half_way_down_in_the_middle() -> None:
    found = rates(replace(PEAK, schedule="cosine", max_steps=4))
    assert found == [1.0, 0.853553, 0.5, 0.146447]
    assert learning_rate(replace(PEAK, schedule="cosine"), 10, 1.0) == 0.0


@pytest.mark.parametrize("schedule", ["wsd", "linear", "cosine"])
def test_every_decay_ends_at_the_final_rate(schedule: str) -> None:
    config = replace(PEAK, schedule=schedule, final_learning_rate=0.1)  # type: ignore[arg-type]
    assert learning_rate(config, 10, 1.0) == pytest.approx(0.1)
    assert min(rates(config)) >= 0.1


def test_where_epochs_end_the_run_the_schedule_follows_what_was_read() -> None:
    config = replace(PEAK, max_steps=None, max_epochs=2, schedule="linear", warmup_steps=2)
    assert learning_rate(config, 0, 0.0) == 0.5
    assert learning_rate(config, 1, 0.01) == 0.99
    assert learning_rate(config, 900, 0.25) == 0.75
    assert learning_rate(config, 5_000, 1.0) == 0.0
    assert learning_rate(replace(config, schedule="wsd", decay_fraction=0.5), 900, 0.625) == 0.5
    assert learning_rate(replace(config, schedule="cosine"), 900, 0.5) == pytest.approx(0.5)


def test_a_run_that_is_all_warm_up_has_no_decay_to_divide_by() -> None:
    assert rates(replace(PEAK, schedule="cosine", max_steps=2, warmup_steps=2)) == [0.5, 1.0]
    assert rates(replace(PEAK, schedule="linear", max_steps=2, warmup_steps=20)) == [0.05, 0.1]


def test_a_warm_up_that_reaches_into_the_decay_meets_it_without_a_jump() -> None:
    config = replace(PEAK, schedule="wsd", warmup_steps=9, decay_fraction=0.5)
    rising = [round((step + 1) / 9, 6) for step in range(6)]
    falling = [round(1 - math.sqrt(share), 6) for share in (0.4, 0.6, 0.8)]
    assert falling == [0.367544, 0.225403, 0.105573]
    assert rates(config) == [*rising, 0.552786, *falling]
    assert rates(replace(config, schedule="constant"))[5:] == [0.666667, 0.777778, 0.888889, 1.0, 1.0]


def test_a_warm_up_that_ends_in_the_middle_of_the_epochs_goes_over_into_the_decay() -> None:
    config = replace(PEAK, max_steps=None, max_epochs=1, schedule="linear", warmup_steps=4)
    assert [learning_rate(config, step, step / 5) for step in range(5)] == pytest.approx([0.25, 0.5, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("schedule", ["wsd", "linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 100, 850, 1000, 1500])
@pytest.mark.parametrize("ends", [{"max_steps": 1000}, {"max_steps": None, "max_epochs": 1}])
def test_no_step_is_far_from_the_one_before(schedule: str, warmup_steps: int, ends: dict[str, int | None]) -> None:
    config = replace(PEAK, schedule=schedule, warmup_steps=warmup_steps, decay_fraction=0.2, **ends)  # type: ignore[arg-type]
    found = [learning_rate(config, step, step / 1000) for step in range(1000)]
    begins = 0 if warmup_steps == 0 else 1 / warmup_steps
    assert found[0] == pytest.approx(begins or 1.0)
    # The steepest is the first step of the root's decay.
    assert max(abs(b - a) for a, b in pairwise(found)) <= 1.001 * max(begins, math.sqrt(1 / 200))
