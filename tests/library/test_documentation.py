"""The examples of docs/library.md are run as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.corpora import documents, word_tokenizer, write_shard
from tests.library.models import bert

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "library.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"^## (.*?)\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus and a model of the names in the page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (tmp_path / "corpus").mkdir()
    write_shard(tmp_path / "corpus" / "a", documents(200), "zst")
    bert().save_pretrained(tmp_path / "base")
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
        exec(compile(EXAMPLES[name].replace("max_steps=4", "max_steps=10"), name, "exec"), space)  # resumes
        assert space["stream"].step == space["trainer"].state.global_step == 10
        exec(compile(EXAMPLES[name].replace("max_steps=4", "max_steps=11"), name, "exec"), space)  # of 8 and 10
        assert space["last"].parent.name == "checkpoint-10"


def test_every_example_is_found() -> None:
    assert list(EXAMPLES) == ["torch", "Accelerate", "Trainer of transformers", "A model as it is"]
