"""The learning rate and the warm-up that `auto` stands for are chosen at the first start, and stay."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stream_pretrain.config import Config, DataConfig, ModelConfig, RunConfig, TrainConfig, run_directory
from stream_pretrain.errors import CheckpointError, ConfigError
from stream_pretrain.training.files.manifest import write_manifest
from stream_pretrain.training.start.optimizer import learning_rate
from stream_pretrain.training.state.auto_learning_rate import Chosen, chosen_for, warmup_of
from stream_pretrain.training.state.trainer_state import read_trainer_state
from tests.corpora import documents, write_shard
from tests.integration.jobs import tiny_options
from tests.training.runs import run_to_end
from tests.training.starts import save, start

FROM_SCRATCH = ModelConfig(config="c", tokenizer="t")


def of(model: ModelConfig = FROM_SCRATCH, **train: Any) -> Config:
    return Config(data=DataConfig(dataset="org/texts"), model=model, train=TrainConfig(**train))


def metrics(out: Path) -> dict[int, float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: round(line["train/lr"], 9) for line in lines}


@pytest.mark.parametrize(
    ("model", "rate"),
    [
        (FROM_SCRATCH, 5e-4),
        (ModelConfig(path="m"), 1e-4),
        (ModelConfig(config="c", tokenizer="t", init_from="weights"), 1e-4),
    ],
)
def test_weights_that_have_learnt_something_have_a_lower_rate_than_those_from_scratch(model: ModelConfig, rate: float) -> None:
    assert chosen_for(of(model, max_steps=1000)) == Chosen(rate, 60)


def test_the_warmup_is_6_percent_of_the_run_and_at_most_2000_steps() -> None:
    assert [warmup_of(steps) for steps in (1, 10, 40, 1_000, 33_333, 40_000, 1_000_000)] == [0, 1, 2, 60, 2_000, 2_000, 2_000]


def test_a_number_of_ones_own_wins(tmp_path: Path) -> None:
    chosen = Chosen(1e-4, 60)
    assert chosen.applied(of(max_steps=9)).train == TrainConfig(max_steps=9, learning_rate=1e-4, warmup_steps=60)
    given = of(max_steps=9, learning_rate=3e-4, warmup_steps=0)
    assert chosen.applied(given) == given


def test_a_final_rate_above_the_one_that_is_chosen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must not be above --train.learning-rate 0\.0001 \(auto\)$"):
        start(tmp_path, of(ModelConfig(path="m"), max_steps=9, final_learning_rate=2e-4))


def test_more_steps_move_neither_the_warmup_nor_the_rate_at_a_step(tmp_path: Path) -> None:
    def run_of(steps: int) -> Config:
        return of(ModelConfig(path="org/model"), max_steps=steps)

    first = start(tmp_path, run_of(1_000))
    save(tmp_path, 500, run_of(1_000), chosen={"learning_rate": 1e-4, "warmup_steps": 60})
    longer, shorter = start(tmp_path, run_of(20_000)), start(tmp_path, run_of(600))
    assert first.chosen == longer.chosen == shorter.chosen == Chosen(1e-4, 60)
    assert learning_rate(longer.chosen.applied(run_of(20_000)).train, 500, 500 / 20_000) == 1e-4
    moved = chosen_for(run_of(20_000)).applied(run_of(20_000)).train
    assert learning_rate(moved, 500, 500 / 20_000) == pytest.approx(4.2e-5, rel=0.01)


def test_a_new_run_from_a_checkpoint_has_its_values_and_one_from_its_weights_its_own(tmp_path: Path) -> None:
    scratch = of(max_steps=1_000)
    checkpoint = save(tmp_path / "a", 500, scratch, chosen={"learning_rate": 5e-4, "warmup_steps": 60})
    resumed = replace(scratch, run=RunConfig(resume=str(checkpoint)), train=TrainConfig(max_steps=20_000))
    assert start(tmp_path / "b", resumed).chosen == Chosen(5e-4, 60)
    weights = replace(scratch, model=replace(FROM_SCRATCH, init_from=str(checkpoint)))
    assert start(tmp_path / "c", weights).chosen == Chosen(1e-4, 60)


def options(folder: Path, model: Path) -> list[str]:
    write_shard(folder / "s", documents(200), "plain")
    more = ("--sequence-length=64", "--global-batch-size=8", "--micro-batch-size=8", "--train.warmup-steps=auto")
    return tiny_options(folder / "s.jsonl", model, folder / "out", *more)


def test_the_rate_of_a_run_is_pinned_in_its_checkpoints(model: Path, tmp_path: Path) -> None:
    arguments, out = options(tmp_path, model), tmp_path / "out"

    def trained(*more: str) -> str:
        return run_to_end([*arguments, *more])

    def pinned(step: int) -> Any:
        return read_trainer_state(out / "checkpoints" / f"step-{step:08d}").chosen

    trained("--max-steps=30")
    assert {step: rate for step, rate in metrics(out).items() if step < 4} == {1: 2.5e-4, 2: 5e-4, 3: 5e-4}
    said = trained("--max-steps=32", "--train.learning-rate=3e-4")
    assert metrics(out)[32] == 3e-4
    trained("--max-steps=33")
    assert metrics(out)[33] == 5e-4
    assert [pinned(30), pinned(32), pinned(33)] == 3 * [Chosen(5e-4, 2)]
    assert "stays" not in said


@pytest.mark.parametrize("recorded", ["auto", "numbers", "nothing"])
def test_a_checkpoint_without_them_keeps_the_defaults_of_then_and_says_so(model: Path, tmp_path: Path, recorded: str) -> None:
    arguments, out = options(tmp_path, model), tmp_path / "out"
    of_then = {"train.learning_rate": 5e-4, "train.warmup_steps": 0}
    weights = tmp_path / "weights"  # from which a run of today has a rate of 1e-4
    run_to_end([*arguments, "--max-steps=1", f"--output-dir={weights}"])
    arguments = [option for option in arguments if "warmup" not in option] + [f"--init-from={weights / 'model'}"]
    run_to_end([*arguments, "--max-steps=2"])
    checkpoint = out / "checkpoints" / "step-00000002"
    trainer = json.loads((checkpoint / "trainer.json").read_text())
    del trainer["chosen"]
    if recorded == "numbers":
        trainer["defaults"] |= of_then
    elif recorded == "nothing":
        del trainer["defaults"]
    (checkpoint / "trainer.json").write_text(json.dumps(trainer))
    (checkpoint / "MANIFEST.json").unlink()
    write_manifest(checkpoint)
    for steps in (40, 41):  # the second time from a checkpoint that has them
        said = run_to_end([*arguments, f"--max-steps={steps}", "--train.schedule=constant"]).splitlines()
        assert [line for line in said if "the default when the run began" in line] == [
            "warning: --train.learning-rate stays 0.0005, the default when the run began (now auto), unless you give it",
            "warning: --train.warmup-steps stays 0, the default when the run began (now auto), unless you give it",
        ]
    assert {rate for step, rate in metrics(out).items() if step > 2} == {5e-4}
    run_to_end([*arguments, "--max-steps=42", "--train.learning-rate=3e-4"])
    assert metrics(out)[42] == 3e-4


@pytest.mark.parametrize(
    "value",
    [
        *(None, 7, [], {}, {"learning_rate": 1e-4}, {"learning_rate": "1", "warmup_steps": 0}),
        *({"learning_rate": 0.0, "warmup_steps": 0}, {"learning_rate": 1, "warmup_steps": 0}),
        *({"learning_rate": 1e-4, "warmup_steps": -1}, {"learning_rate": 1e-4, "warmup_steps": 1.5}),
        *({"learning_rate": float("inf"), "warmup_steps": 0}, {"learning_rate": 1e-4, "warmup_steps": 0, "more": 0}),
    ],
)
def test_a_checkpoint_that_pins_what_no_run_chooses_is_one_line(value: object, tmp_path: Path) -> None:
    save(tmp_path, 50, chosen=value)
    with pytest.raises(CheckpointError, match=r"trainer\.json: chosen") as caught:
        start(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_folder_of_a_run_has_the_name_that_it_had_when_the_rate_was_a_number() -> None:
    assert run_directory(of(ModelConfig(path="org/model"), max_steps=100)) == Path("runs/texts-model-e2a746d8")


def test_epochs_have_a_warmup_that_is_pinned(model: Path, tmp_path: Path) -> None:
    arguments = [option for option in options(tmp_path, model) if not option.startswith("--max-steps")]
    for epochs in (1, 2):
        run_to_end([*arguments, f"--max-epochs={epochs}"])
    saved = sorted((tmp_path / "out" / "checkpoints").iterdir())
    steps = int(saved[0].name.removeprefix("step-"))
    first, *others = [read_trainer_state(checkpoint).chosen for checkpoint in saved]
    assert first.warmup_steps == pytest.approx(0.06 * steps, rel=0.5)
    assert others == [first] * len(others)
