"""OUT holds its options, as `--config` takes them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from stream_pretrain.arguments import parse
from stream_pretrain.config import Config, validate
from stream_pretrain.errors import ConfigError
from stream_pretrain.training.files.options_file import write_options
from stream_pretrain.training.files.versions import program
from tests.corpora import documents, write_shard
from tests.integration.jobs import tiny_options
from tests.training.runs import run_here, run_to_end

NEEDED = ("--model=bert", "--max-steps=3")
SOURCES = [
    {"name": "a", "dataset": "x", "weight": 1.5, "text_template": "{title}\n\n{body}", "max_epochs": 2},
    {"name": "b", "dataset": "@list.txt", "storage_options": "@keys.json"},
]


def written(config: Config, folder: Path, parent: str | None = None) -> str:
    write_options(config, parent, folder)
    return (folder / "config.yaml").read_text("utf-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dataset=org/corpus", "--output-dir=OUT", "--resume=no", "--lanes=auto", "--train.epsilon=1e-9", "--model.compile"],
        ["--dataset=0012345", "--data.text-template={title}\n\n'{body}': #1", "--eval-every=1", "--eval.dataset=no"],
        ["--dataset=caf\udce9/\x1b.jsonl", "--data.text-field=漢: [x", '--data.storage-options={"anon": true}', "--lanes=8"],
        [f"--data.sources={json.dumps(SOURCES)}", '--data.weight-schedule=[{"from_step": 3, "weights": {"a": 0, "b": 2.5}}]'],
    ],
)
def test_options_are_read_back_as_they_were_but_for_where_and_how_to_start(tmp_path: Path, arguments: list[str]) -> None:
    config = parse([*arguments, *NEEDED])
    written(config, tmp_path)
    run = dataclasses.replace(config.run, output_dir=None, resume="auto")
    assert parse([f"--config={tmp_path / 'config.yaml'}"]) == dataclasses.replace(config, run=run)


SIGNS = "~'\"\n\r\t\x85\u2028\u2029\ufeff: #-"
"""Those with which YAML has ways of its own."""


@settings(max_examples=20)
@given(st.data())
def test_any_text_and_any_number_is_read_back(data: st.DataObject) -> None:
    kinds = {
        st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(SIGNS)): ["data.text-field", "data.name"],
        st.floats(0, 1e300): ["train.learning-rate", "data.retry-deadline"],
        st.integers(1, 2**70): ["train.max-steps", "data.lanes"],
    }
    options = [f"--{name}={data.draw(values)}" for values, names in kinds.items() for name in names]
    config = parse([*options, "--dataset=~", "--model=bert"])
    with TemporaryDirectory() as folder:
        written(config, Path(folder))
        assert parse([f"--config={folder}/config.yaml"]) == config


@pytest.mark.parametrize(
    ("line", "value"),
    [("text-field: ''", ""), ("text-field: '~'", "~"), ("text-field: null", "null"), ("name: ''", ""), ("name:", None)],
)
def test_what_is_left_out_is_none_and_what_is_in_quotes_is_text(tmp_path: Path, line: str, value: str | None) -> None:
    (tmp_path / "a.yaml").write_text(f"data:\n  {line}\n")
    data = parse([f"--config={tmp_path / 'a.yaml'}"]).data
    assert (data.name if line.startswith("name") else data.text_field) == value


@pytest.mark.parametrize("line", ["text-field:", "text-field: ~"])
def test_an_option_that_has_to_be_text_is_not_left_out(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.yaml").write_text(f"data:\n  {line}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: --data\.text-field: nothing is not text"):
        parse([f"--config={tmp_path / 'a.yaml'}"])


def test_a_secret_stands_as_a_comment_with_its_option_and_a_start_without_it_says_so(tmp_path: Path) -> None:
    url = "http://me:PASSWORD@host/x.jsonl?sig=SIGNATURE"
    keys = '{"headers": {"X-Key": "SECRETKEY"}, "endpoint": "here"}'
    options = [f"--dataset={url}", "--eval-every=1", f"--eval.dataset={url}", f"--data.storage-options={keys}"]
    text = written(parse([*options, *NEEDED]), tmp_path)
    for secret in ("PASSWORD", "SIGNATURE", "SECRETKEY"):
        assert secret not in text
    lines = [line.strip() for line in text.splitlines()]
    assert "# dataset: http://…@host/x.jsonl?…   # a secret is left out: give --data.dataset" in lines
    assert "# dataset: http://…@host/x.jsonl?…   # a secret is left out: give --eval.dataset" in lines
    shown = '{"headers": {"X-Key": "…"}, "endpoint": "here"}'
    assert f"# storage-options: {shown}   # a secret is left out: give --data.storage-options" in lines
    file = f"--config={tmp_path / 'config.yaml'}"
    with pytest.raises(ConfigError, match="--dataset is missing"):
        validate(parse([file]))
    validate(parse([file, f"--dataset={url}", f"--eval.dataset={url}"]))


def test_a_secret_in_a_mixture_has_to_be_put_back(tmp_path: Path) -> None:
    sources = [{"name": "a", "dataset": "http://me:PASSWORD@host/x.jsonl"}, {"name": "b", "dataset": "y"}]
    text = written(parse([f"--data.sources={json.dumps(sources)}", *NEEDED]), tmp_path)
    assert "PASSWORD" not in text
    with pytest.raises(ConfigError, match=r"--dataset http://…@host/x\.jsonl has … in place of a secret: put it back"):
        validate(parse([f"--config={tmp_path / 'config.yaml'}"]))


def test_leave_to_run_code_is_not_in_the_file(tmp_path: Path) -> None:
    text = written(parse(["--dataset=x", "--model.trust-remote-code", *NEEDED]), tmp_path)
    assert "# trust-remote-code: true   # on the command line only: --model.trust-remote-code" in text
    assert not parse([f"--config={tmp_path / 'config.yaml'}"]).model.trust_remote_code


def test_the_checkpoint_that_a_run_began_from_is_named(tmp_path: Path) -> None:
    text = written(parse(["--dataset=x", *NEEDED]), tmp_path, "runs/a/checkpoints/step-00000005")
    assert "# It began from a checkpoint: --resume runs/a/checkpoints/step-00000005\n" in text


def test_a_run_from_the_options_of_another_is_the_same_and_the_same_folder_goes_on(model: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(200), "plain")
    first = tiny_options(tmp_path / "s.jsonl", model, tmp_path / "a", "--max-steps=2", "--save-every=2")
    run_to_end(first)
    file = tmp_path / "a" / "config.yaml"
    run_to_end([f"--config={file}", f"--output-dir={tmp_path / 'b'}"])
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("a", "b")]
    assert all(bool((tensor == weights[1][key]).all()) for key, tensor in weights[0].items())
    gone_on = run_here([f"--config={file}", f"--output-dir={tmp_path / 'a'}", "--max-steps=3"])
    assert "resuming after step 2" in gone_on.stderr
    assert yaml.safe_load(file.read_text())["train"]["max-steps"] == 3
    for path in (tmp_path / "a" / "run.json", tmp_path / "a" / "checkpoints" / "step-00000003" / "trainer.json"):
        assert program().items() <= json.loads(path.read_text()).items()
    refused = run_here([f"--config={file}", f"--output-dir={tmp_path / 'a'}", "--seed=9", "--max-steps=4"])
    assert refused.returncode == 1
    assert yaml.safe_load(file.read_text())["train"]["max-steps"] == 3
