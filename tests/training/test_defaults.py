"""Defaults of a run under way do not change."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from stream_pretrain.config import Config, DataConfig, ModelConfig, TrainConfig, defaults, fixed_options
from stream_pretrain.errors import CheckpointError, DamagedCheckpointError
from stream_pretrain.training.defaults import defaults_of_then, with_options
from tests.corpora import documents, write_shard, write_tiny_bert
from tests.training.runs import prepared, run_here, tiny_run
from tests.training.test_run_directory import save
from tests.training.test_run_directory import start as begin

TODAY = Config(data=DataConfig(dataset="org/texts"), model=ModelConfig(path="org/model"), train=TrainConfig(max_steps=100))


@dataclass(frozen=True)
class LaterData(DataConfig):
    """The options of a later version: one has another default, one is new."""

    sequence_length: int = 1024
    dummy: bool = False


@dataclass(frozen=True)
class LaterTrain(TrainConfig):
    learning_rate: float = 1e-3


def later(**data: object) -> Config:
    return dataclasses.replace(TODAY, data=LaterData(dataset="org/texts", **data), train=LaterTrain(max_steps=100))


def test_an_option_that_is_new_is_as_by_default_in_a_run_of_before(tmp_path: Path) -> None:
    newest = save(tmp_path, 5, TODAY)
    assert begin(tmp_path, later(sequence_length=512)).checkpoint == newest
    with pytest.raises(CheckpointError, match=r"--data\.dummy: was False, is True"):
        begin(tmp_path, later(sequence_length=512, dummy=True))


def test_an_option_that_is_not_given_keeps_the_default_of_when_the_run_began(tmp_path: Path) -> None:
    trainer = {"fixed": fixed_options(TODAY), "defaults": json.loads(json.dumps(defaults(TODAY)))}
    kept = defaults_of_then(later(), trainer, tmp_path, ["stream-pretrain"])
    assert kept == {"data.sequence_length": 512, "train.learning_rate": 5e-4}
    config = with_options(later(), kept)
    assert (config.data.sequence_length, config.train.learning_rate) == (512, 5e-4)
    assert defaults_of_then(later(sequence_length=64), trainer, tmp_path, []) == {"train.learning_rate": 5e-4}
    given = ["stream-pretrain", "--sequence-length=1024", "--train.learning_rate", "1e-3"]
    assert defaults_of_then(later(), trainer, tmp_path, given) == {}


def test_a_checkpoint_of_an_earlier_version_had_the_defaults_of_then(tmp_path: Path) -> None:
    newest = save(tmp_path, 5, TODAY)
    lines: list[str] = []
    started = begin(tmp_path, later(), report=lines.append)
    assert (started.checkpoint, started.defaults) == (newest, {"data.sequence_length": 512})
    assert lines == ["--data.sequence-length stays 512, as by default when the run began (now 1024), unless you give it"]


def test_a_default_of_another_type_is_no_default(tmp_path: Path) -> None:
    trainer = {"fixed": {}, "defaults": {"train.learning_rate": "much"}}
    with pytest.raises(DamagedCheckpointError, match=r"trainer\.json: defaults\.train\.learning_rate is 'much'"):
        defaults_of_then(TODAY, trainer, tmp_path, [])


def test_a_run_goes_on_with_the_defaults_that_it_began_with(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(200), "plain")
    model = write_tiny_bert(tmp_path / "model")
    config = tiny_run(tmp_path / "s.jsonl", model, tmp_path / "out", max_steps=1)
    options = [
        "--sequence-length=64",
        "--global-batch-size=8",
        "--max-steps=1",
        "--train.precision=fp32",
        "--run.wandb=disabled",
    ]
    corpus = [f"--dataset={tmp_path / 's.jsonl'}", "--lanes=8", "--data.window-bytes=2048", f"--output-dir={tmp_path / 'out'}"]
    done = run_here([*corpus, f"--model.config={model}", f"--model.tokenizer={model}", *options])
    assert done.returncode == 0, done.stderr
    with prepared(dataclasses.replace(config, train=LaterTrain(max_steps=2, global_batch_size=8, precision="fp32"))) as setup:
        assert setup.config.train.learning_rate == 5e-4
