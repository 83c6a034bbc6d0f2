"""Defaults of a run under way do not change."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from stream_pretrain.arguments import parse
from stream_pretrain.config import GROUPS, Config, DataConfig, ModelConfig, TrainConfig, defaults, option
from stream_pretrain.errors import CheckpointError
from stream_pretrain.model import loading
from stream_pretrain.training.start.kept_defaults import kept_options, with_options
from tests.corpora import documents, write_shard, write_tiny_bert
from tests.integration.jobs import tiny_options
from tests.training.runs import run_here, run_to_end
from tests.training.starts import save
from tests.training.starts import start as begin

TODAY = Config(data=DataConfig(dataset="org/texts"), model=ModelConfig(path="org/model"), train=TrainConfig(max_steps=100))


@dataclass(frozen=True)
class LaterData(DataConfig):
    """The options of a later version: one has another default, one is new."""

    sequence_length: int = 1024
    dummy: bool = False


@dataclass(frozen=True)
class LaterTrain(TrainConfig):
    epsilon: float = option(1e-6, may_change=True)
    learning_rate: float | Literal["auto"] = option(1e-3, may_change=True)


def later(**data: object) -> Config:
    return dataclasses.replace(TODAY, data=LaterData(dataset="org/texts", **data), train=LaterTrain(max_steps=100))


def test_an_option_that_is_new_is_as_by_default_in_a_run_of_before(tmp_path: Path) -> None:
    newest, lines = save(tmp_path, 5, TODAY), list[str]()
    assert begin(tmp_path, later(sequence_length=512), report=lines.append).checkpoint == newest
    with pytest.raises(CheckpointError, match=r"--data\.dummy: was false, is true"):
        begin(tmp_path, later(sequence_length=512, dummy=True), report=lines.append)


def test_an_option_that_is_not_given_keeps_the_default_of_when_the_run_began(tmp_path: Path) -> None:
    then = json.loads(json.dumps(defaults(TODAY)))
    kept = kept_options(later(), then, tmp_path)
    assert kept == {"data.sequence_length": 512, "train.epsilon": 1e-8, "train.learning_rate": "auto"}
    config = with_options(later(), kept)
    assert (config.data.sequence_length, config.train.epsilon, config.train.learning_rate) == (512, 1e-8, "auto")
    assert kept_options(later(sequence_length=64), then, tmp_path) == {"train.epsilon": 1e-8, "train.learning_rate": "auto"}


def test_an_option_is_given_in_a_file_as_on_the_command_line_and_a_value_is_none(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train:\n  learning-rate: 1e-3\n")
    then = {"data.sequence_length": 512, "train.learning_rate": 5e-4, "train.seed": 1}

    def kept(*arguments: str) -> set[str]:
        return set(kept_options(dataclasses.replace(later(), given=parse(arguments).given), then, tmp_path))

    assert kept("--run.wandb-name", "seed") == {"data.sequence_length", "train.learning_rate", "train.seed"}
    assert kept("--sequence-length=1024", f"--config={file}") == {"train.seed"}
    assert kept(f"--config={file}", "--train.seed", "0") == {"data.sequence_length"}


@pytest.mark.parametrize(
    ("name", "value", "wrong"),
    [
        ("train.learning_rate", "much", " is 'much'"),
        ("train.learning_rate", None, " is None"),
        ("train.warmup_steps", True, " is True"),
        ("train.max_epochs", 1.5, " is 1.5"),
        ("data.packing", "best", " is 'best'"),
        ("data.sources", [{"name": "a", "dataset": 1}], "[0].dataset is 1"),
    ],
)
def test_a_default_of_another_type_is_no_default(tmp_path: Path, name: str, value: object, wrong: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"trainer.json: defaults.{name}{wrong}, which no run writes")):
        kept_options(TODAY, {name: value}, tmp_path)


def test_a_run_goes_on_with_the_defaults_that_it_began_with_however_often(
    small_corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = tiny_options(small_corpus, model, tmp_path / "out")
    run_to_end([*arguments, "--max-steps=1"])
    monkeypatch.setitem(GROUPS, "train", LaterTrain)
    said = "--train.epsilon stays 1e-08, the default when the run began (now 1e-06), unless you give it"
    for steps in (2, 3):
        gone_on = run_here([*arguments, f"--max-steps={steps}"])
        assert (gone_on.returncode, said in gone_on.stderr) == (0, True), gone_on.stderr
        trainer = json.loads((tmp_path / "out" / "checkpoints" / f"step-{steps:08d}" / "trainer.json").read_text())
        assert trainer["defaults"]["train.epsilon"] == 1e-8


def test_a_run_from_scratch_keeps_the_size_of_its_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions left an embedding as it was that is larger than the tokenizer."""
    write_shard(tmp_path / "s", documents(200), "plain")
    model = write_tiny_bert(tmp_path / "model")
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "vocab_size": 500}))
    arguments = tiny_options(tmp_path / "s.jsonl", model, tmp_path / "out", "--model.resize-embeddings")
    with monkeypatch.context() as earlier:
        earlier.setattr(loading, "_vocabulary", lambda config, tokenizer, known, local_files_only: known)
        run_to_end([*arguments, "--max-steps=1"])
    run_to_end([*arguments, "--max-steps=2"])
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["vocab_size"] == 500
    new = run_to_end([*arguments, "--max-steps=1", f"--output-dir={tmp_path / 'new'}"])
    assert "the embedding has 128 tokens, as the tokenizer needs, not 500" in new
