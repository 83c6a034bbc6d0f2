"""Python code that comes with a model runs where the command line says so, and is never asked about."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM

from stream_pretrain import cli
from stream_pretrain.arguments import parse
from stream_pretrain.config import ModelConfig
from stream_pretrain.errors import ConfigError, ModelError
from stream_pretrain.model.loading import export_of, load_model
from stream_pretrain.model.tokenizer import load_tokenizer
from stream_pretrain.training.state.checkpoint import write_model
from tests.corpora import documents, json_lines, word_tokenizer
from tests.model.families import tiny_model

MLM = False  # not causal
CODE = """
from pathlib import Path
from transformers import BertConfig, BertForMaskedLM
Path({ran!r}).touch()
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertForMaskedLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose model needs its own code, which leaves `ran` behind; a `y` waits on stdin."""
    folder = tmp_path / "own"
    tiny_model("bert", vocab_size=len(word_tokenizer())).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own", "architectures": ["OwnModel"]}
    settings["auto_map"] = {"AutoConfig": "own_code.OwnConfig", "AutoModelForMaskedLM": "own_code.OwnModel"}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own_code.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def said(folder: Path) -> str:
    return (
        f"{folder} needs Python code that comes with it (auto_map), which is not run: read it, then give "
        "--model.trust-remote-code on the command line, or choose another model"
    )


def test_a_model_with_its_own_code_is_refused_without_a_question(own_model: Path) -> None:
    with pytest.raises(ModelError) as error:
        load_model(ModelConfig(path=str(own_model)), MLM, word_tokenizer(), 24, 0)
    assert str(error.value) == said(own_model)
    with pytest.raises(ModelError) as error:
        load_model(ModelConfig(config=str(own_model), tokenizer="x"), MLM, word_tokenizer(), 24, 0)
    assert str(error.value) == said(own_model)
    assert not (own_model.parent / "ran").exists()


def test_a_tokenizer_with_its_own_code_is_refused_without_a_question(own_model: Path) -> None:
    settings = json.loads((own_model / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own_code.OwnTokenizer", None]}}
    (own_model / "tokenizer_config.json").write_text(json.dumps(settings))
    (own_model / "config.json").unlink()
    with pytest.raises(ModelError) as error:
        load_tokenizer(ModelConfig(path=str(own_model)))
    assert str(error.value) == said(own_model)
    assert not (own_model.parent / "ran").exists()


def test_a_model_with_its_own_code_trains_where_the_command_line_says_so(own_model: Path) -> None:
    config = parse([f"--model={own_model}", "--model.trust-remote-code"]).model
    loaded = load_model(config, MLM, load_tokenizer(config), 24, 0)
    assert type(loaded.model).__name__ == "OwnModel"
    assert (own_model.parent / "ran").exists()


def test_a_model_with_its_own_code_is_evaluated_where_the_command_line_says_so(
    own_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(documents(2)))
    arguments = ["evaluate", str(own_model), f"--dataset={tmp_path / 'a.jsonl'}", "--sequence-length=24"]
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err.endswith(f"error: {said(own_model)}\n")
    assert cli.main([*arguments, "--model.trust-remote-code", "--evaluate.likelihood-sample=1"]) == 0
    assert cli.main([*arguments, "--model.revision=main"]) == 2
    assert cli.main(["evaluate", "--help"]) == 0
    assert (
        "options of other groups:\n  --trust-remote-code, --model.trust-remote-code [true|false]\n" in capsys.readouterr().out
    )


@pytest.mark.parametrize("options", [["--model={}"], ["--model.config={}", "--model.tokenizer={}"]], ids=["from", "scratch"])
def test_an_export_has_the_code_that_its_model_needs(own_model: Path, options: list[str]) -> None:
    config = parse([*(option.format(own_model) for option in options), "--model.trust-remote-code"]).model
    loaded = load_model(config, MLM, load_tokenizer(config), 24, 0)
    out = own_model.parent / "export"
    export = export_of(loaded, loaded.model)
    write_model(replace(export, weights={name: weight.clone() for name, weight in export.weights.items()}), out)
    assert type(AutoModelForMaskedLM.from_pretrained(out, trust_remote_code=True)).__name__ == "OwnModel"


def test_code_that_a_usual_model_also_brings_is_not_run(own_model: Path) -> None:
    settings = json.loads((own_model / "config.json").read_text()) | {"model_type": "bert"}
    (own_model / "config.json").write_text(json.dumps(settings))
    config = ModelConfig(path=str(own_model))
    assert type(load_model(config, MLM, load_tokenizer(config), 24, 0).model).__name__ == "BertForMaskedLM"
    assert not (own_model.parent / "ran").exists()


@pytest.mark.parametrize("name", ["model: {trust-remote-code: true}", "model.trust_remote_code: true"])
def test_no_file_says_that_code_may_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "run.yaml").write_text(name)
    with pytest.raises(ConfigError) as error:
        parse([f"--config={tmp_path / 'run.yaml'}"])
    assert str(error.value) == (
        f"--config {tmp_path / 'run.yaml'}: model.trust-remote-code runs code of a model: give it on the command line only"
    )
