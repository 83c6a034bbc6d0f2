"""What the environment or another launcher would silently change is refused in one line."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.forks import ENVIRONMENT, trainers

PROGRAM = """
import sys
from stream_pretrain.config import Config, TrainConfig
from stream_pretrain.errors import ConfigError
from stream_pretrain.training.state.parallelism import accelerator_for
try:
    accelerator = accelerator_for(Config(train=TrainConfig(precision=sys.argv[1])))
    print(accelerator.mixed_precision, accelerator.gradient_accumulation_steps, accelerator.num_processes)
except ConfigError as error:
    print("refused:", error)
"""


def accelerator(environment: Mapping[str, str], precision: str = "auto") -> str:
    """What the program says in a process of its own: Accelerate keeps its state for the life of a process."""
    done = trainers().run(["-c", PROGRAM, precision], {**ENVIRONMENT, **environment})
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    return line


def test_a_clean_environment_is_accepted() -> None:
    assert accelerator({}) == "no 1 1"


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS is set"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "ACCELERATE_DYNAMO_BACKEND is set"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "ACCELERATE_MIXED_PRECISION is set"),
        (
            {"ACCELERATE_USE_CPU": "maybe"},
            "(invalid truth value maybe): launch with torchrun, or unset RANK, LOCAL_RANK, WORLD_",
        ),
        (
            {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"},
            "environment variable MASTER_ADDR expected, but not set): launch",
        ),
        ({"LOCAL_RANK": "0", "RANK": "a", "WORLD_SIZE": "1"}, "invalid literal for int() with base 10: 'a'): launch"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but by the launch it is 1: launch with torchrun, or unset it"),
        ({"RANK": "1"}, "RANK is 1, but by the launch it is 0: launch with torchrun, or unset it"),
        ({"RANK": "a"}, "RANK is a, but by the launch it is 0: launch with torchrun, or unset it"),
        ({"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP is set"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED is set"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "ACCELERATE_USE_MEGATRON_LM is set"),
    ],
)
def test_a_variable_that_would_change_the_run_is_refused(environment: dict[str, str], named: str) -> None:
    said = accelerator(environment)
    assert said.startswith("refused: ")
    assert named in said
    assert "unset it" in said or "torchrun" in said


def test_what_accelerate_launch_sets_by_itself_is_accepted() -> None:
    launched = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_CPU": "True"}
    assert accelerator(launched) == "no 1 1"


def test_the_precision_of_the_options_holds_under_accelerate_launch_as_well() -> None:
    assert accelerator({"ACCELERATE_MIXED_PRECISION": "no"}, "bf16") == "bf16 1 1"
