"""The examples of docs/library.md are run as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from tests.corpora import documents, word_tokenizer, write_shard
from tests.library.models import bert

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "library.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"^## (.*?)\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))


def with_old_name(weight: str) -> str:
    """As the first BERTs on the Hub name it."""
    return weight.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


class Loaded(TrainerCallback):
    """The weights with which a Trainer begins."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights = {name: value.clone() for name, value in kwargs["model"].state_dict().items()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus and a model of the names in the page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (tmp_path / "corpus").mkdir()
    write_shard(tmp_path / "corpus" / "a", documents(200), "zst")
    bert().save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    save_file({with_old_name(name): value for name, value in load_file(file).items()}, file, {"format": "pt"})
    word_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # of the Trainer
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_as_it_is_printed(name: str, folder: Path) -> None:
    space: dict[str, Any] = {"__name__": "example"}
    exec(compile(EXAMPLES[name], name, "exec"), space)
    if name == "torch":
        assert torch.load("last.pt")["stream"]["step"] == space["stream"].step == 4
        assert EXAMPLES[name].count("\n") <= 18
    if name == "Accelerate":
        assert space["stream"].step == 4
    if name == "Trainer of transformers":
        assert json.loads((folder / "trained/checkpoint-4/stream.json").read_text())["step"] == 4
        trained = space["model"].state_dict()
        begins, train, goes_on = EXAMPLES[name].replace("max_steps=4", "max_steps=10").partition("trainer.train(")
        exec(compile(begins, name, "exec"), space)
        loaded = Loaded()
        space["trainer"].add_callback(loaded)
        exec(compile(train + goes_on, name, "exec"), space)  # resumes
        torch.testing.assert_close(loaded.weights, dict(trained), rtol=0, atol=0)
        assert space["stream"].step == space["trainer"].state.global_step == 10
        exec(compile(EXAMPLES[name].replace("max_steps=4", "max_steps=11"), name, "exec"), space)  # of 8 and 10
        assert space["last"].parent.name == "checkpoint-10"


def test_every_example_is_found() -> None:
    assert list(EXAMPLES) == ["torch", "Accelerate", "Trainer of transformers", "A model as it is"]
