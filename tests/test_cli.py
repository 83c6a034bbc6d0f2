"""The command line: two ways to give an option, one parser, one line for an error."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stream_pretrain import cli, config, errors
from stream_pretrain.arguments import Invocation, parse
from stream_pretrain.commands import Answer
from stream_pretrain.config import (
    COMMAND_GROUPS,
    GROUPS,
    NAMES,
    SHORT,
    SYNONYMS,
    TYPES,
    WITHOUT,
    Config,
    DataConfig,
    ModelConfig,
    SourceConfig,
    TrainConfig,
    WeightChange,
    flatten,
    help_texts,
    option,
    run_directory,
    shown_options,
    validate,
    without_places,
)
from stream_pretrain.errors import ConfigError
from stream_pretrain.training.ranks.signals import StopRequest
from stream_pretrain.training.report.progress import Progress

NEEDED = ["--dataset=corpus", "--model=model", "--max-steps=3"]


def parsed(*arguments: str) -> dict[str, Any]:
    """The options that differ from their default."""
    default = flatten(Config())
    return {name: value for name, value in flatten(parse(arguments)).items() if value != default[name]}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, Sequence[str]]]:
    """What the train command was started with."""
    calls: list[tuple[Config, Sequence[str]]] = []

    def run(given: Config, command: Sequence[str], stop: StopRequest) -> int:
        calls.append((given, command))
        return 0

    monkeypatch.setitem(sys.modules, "stream_pretrain.commands.train", SimpleNamespace(run=run))
    return calls


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(given: Config, command: Sequence[str], stop: StopRequest) -> int:
        raise error

    monkeypatch.setitem(sys.modules, "stream_pretrain.commands.train", SimpleNamespace(run=run))


def one_line_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


# --- Options ---


@pytest.mark.parametrize(("alias", "dotted"), SHORT.items())
def test_an_alias_and_its_dotted_name_are_one_option(alias: str, dotted: str) -> None:
    name = dotted.replace("-", "_")
    assert parsed(f"--{alias}=7")[name] in (7, "7")
    assert parsed(f"--{dotted}=8")[name] in (8, "8")


LAST_NAMES = {
    "data": "sources weight-schedule data-files data-dir storage-options reader text-field text-template text-documents "
    "min-characters max-characters special-tokens drop-duplicates sequence-length packing lanes workers window-bytes "
    "heldout-fraction max-line-bytes max-bad-fraction on-bad-shard retry-deadline engine",
    "model": "path tokenizer init-from resize-embeddings gradient-checkpointing compile trust-remote-code",
    "objective": "mask-rate final-mask-rate selection mask-share random-share",
    "train": "max-steps max-epochs global-batch-size micro-batch-size seed learning-rate schedule warmup-steps decay-fraction "
    "final-learning-rate beta1 beta2 epsilon weight-decay max-grad-norm precision max-bad-steps skip-steps",
    "eval": "every documents sets",
    "run": "output-dir resume save-every keep-last keep-every keep-best log-every wandb wandb-project wandb-entity wandb-name",
    "evaluate": "sample max-bytes batch-rows likelihood-sample probe",
    "ledger": "step document export steps text",
    "inspect": "rows",
    "verify": "run-steps kills full-model tolerance folder",
}
"""What is accepted without its group. Commands and files have these names: a further option must take none of them away (where
it shares one, the earlier option keeps the name as its short one)."""


@pytest.mark.parametrize("group", LAST_NAMES)
def test_the_last_part_of_a_name_is_enough_where_no_other_option_has_it(group: str) -> None:
    for name in LAST_NAMES[group].split():
        assert NAMES[name] == f"{group}.{name}"
    held = {f"{group}.{name}" for group, names in LAST_NAMES.items() for name in names.split()}
    assert {name for name in NAMES if "." in name} - held == {
        *("data.dataset", "data.name", "data.split", "data.revision", "model.path", "model.config", "model.revision"),
        *("objective.name", "eval.every", "eval.split", "eval.dataset", "eval.max-read-bytes", "inspect.max-read-bytes"),
    } - held, "a new option: its name belongs into the list above"


def test_an_option_without_its_group_is_the_option_on_the_command_line_and_in_a_file(tmp_path: Path) -> None:
    assert parsed("--learning-rate=1e-4", "--weight_decay", "0.1", "--compile") == {
        "train.learning_rate": 1e-4,
        "train.weight_decay": 0.1,
        "model.compile": True,
    }
    file = tmp_path / "run.yaml"
    file.write_text("learning-rate: 1e-4\nmask_rate: 0.2\nsources:\n  - {name: a, dataset: x}\n")
    assert parse([f"--config={file}"]).data.sources == (SourceConfig("a", "x"),)
    assert parsed(f"--config={file}", "--learning-rate=2e-4")["train.learning_rate"] == 2e-4


def test_a_name_that_several_options_have_is_answered_by_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert one_line_error(capsys, "--split=x") == "unknown option --split; give --data.split or --eval.split"
    said = "unknown option --revision; give --data.revision or --model.revision"
    assert one_line_error(capsys, "--revision=x") == said


@pytest.mark.parametrize(
    ("synonym", "option"),
    [
        ("lr", "learning-rate"),
        ("train.lr", "learning-rate"),
        ("mlm-probability", "mask-rate"),
        ("gradient_accumulation_steps", "global-batch-size"),
        ("per-device-train-batch-size", "micro-batch-size"),
        ("per_device_eval_batch_size", "micro-batch-size"),
        ("batch-size", "global-batch-size"),
        ("eval-steps", "eval-every"),
        ("save-steps", "save-every"),
        ("save-total-limit", "keep-last"),
        ("logging-steps", "log-every"),
        ("resume-from-checkpoint", "resume"),
        ("report-to", "wandb"),
        ("bf16", "precision"),
        ("fp16", "precision"),
        ("model-name-or-path", "model"),
        ("tokenizer-name", "tokenizer"),
        ("train-file", "dataset"),
        ("validation-file", "eval.dataset"),
        ("dataset-config-name", "data.name"),
        ("max-seq-length", "sequence-length"),
        ("num-train-epochs", "max-epochs"),
        ("max-train-steps", "max-steps"),
        ("lr-scheduler-type", "schedule"),
        ("warmup-ratio", "warmup-steps"),
        ("adam-beta2", "beta2"),
        ("out", "output-dir"),
        ("mlm", "objective.name"),
        ("run-name", "wandb-name"),
    ],
)
@pytest.mark.parametrize("value", [[], ["=1"]])
def test_what_other_programs_call_an_option_is_answered_by_its_name_and_its_help(
    capsys: pytest.CaptureFixture[str], synonym: str, option: str, value: list[str]
) -> None:
    said = one_line_error(capsys, *NEEDED, f"--{synonym}{''.join(value)}")
    names = f"--{option}" if "." in option else f"--{option} or --{NAMES[option]}"
    assert said.startswith(f"unknown option --{synonym.replace('_', '-')}; use {names}: ")
    assert said.endswith(".")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("deepspeed", "every GPU has the whole model: there is no DeepSpeed, FSDP, model parallelism, adapter or quantization"),
        ("device", "a GPU is used where there is one, and CUDA_VISIBLE_DEVICES says which"),
        ("do_train", "it always trains; `stream-pretrain evaluate` compares models"),
        ("token", "set the variable HF_TOKEN"),
        ("optimizer.name", "AdamW is the only optimizer"),
        ("streaming", "the corpus is always streamed, and nothing is prepared"),
        ("max-duration", "the run ends at --max-steps or --max-epochs; SIGUSR1 or SIGTERM stops it before, with a checkpoint"),
    ],
)
def test_what_only_other_programs_have_is_answered_by_how_it_is_here(
    capsys: pytest.CaptureFixture[str], name: str, why: str
) -> None:
    said = one_line_error(capsys, *NEEDED, f"--{name}=x")
    assert said == f"unknown option --{name.replace('_', '-')}; there is none: {why}"


def test_a_name_that_nothing_here_is_like_is_no_name_of_an_option() -> None:
    assert {*WITHOUT} & {*NAMES, *SYNONYMS} == set()


def test_a_synonym_that_is_an_option_of_another_command_is_answered_alike(capsys: pytest.CaptureFixture[str]) -> None:
    assert one_line_error(capsys, *NEEDED, "--steps=10") == (
        "unknown option --steps; use --max-steps or --train.max-steps: Optimizer steps of the run."
    )


def test_a_synonym_is_that_of_one_option_and_no_name_of_another() -> None:
    said = [
        word for group in GROUPS.values() for field in dataclasses.fields(group) for word in field.metadata.get("synonyms", ())
    ]
    assert len(said) > 100
    assert len(said) == len(set(said))
    of_runs = {name for name, dotted in NAMES.items() if dotted.partition(".")[0] in GROUPS}
    assert {word for word in said if word in of_runs or word in ("config", "debug", "help", "version")} == set()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seed=3", "--seed=3"], "--seed is given twice: leave one of them out"),
        (["--seed", "3", "--train.seed", "4"], "--seed and --train.seed are the same option: leave one of them out"),
        (["--train.beta1=0.8", "--beta1=0.9"], "--train.beta1 and --beta1 are the same option: leave one of them out"),
        (["--model.compile", "--model.compile=false"], "--model.compile is given twice: leave one of them out"),
        (["--max_steps=3", "--max-steps=none"], "--max-steps is given twice: leave one of them out"),
    ],
)
def test_an_option_given_twice_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert one_line_error(capsys, *arguments) == said


def test_variables_of_wandb_count_unless_the_option_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[tuple[Config, Sequence[str]]]
) -> None:
    for name in ("PROJECT", "NAME", "ENTITY"):
        monkeypatch.setenv(f"WANDB_{name}", f"our {name}")
    (tmp_path / "run.yaml").write_text("run:\n  wandb-name: that of the file\n")
    assert cli.main([*NEEDED, "--wandb-entity=that of the line", f"--config={tmp_path / 'run.yaml'}"]) == 0
    [(config, _)] = started
    assert (config.run.wandb_project, config.run.wandb_name) == ("our PROJECT", "that of the file")
    assert config.run.wandb_entity == "that of the line"
    assert "run.wandb_project" not in config.given
    monkeypatch.setenv("WANDB_PROJECT", "")
    assert cli.main(NEEDED) == 0
    assert started[1][0].run.wandb_project == "stream_pretrain"


def test_hyphens_and_underscores_are_equal_at_every_level() -> None:
    for name in ("--max_steps", "--max-steps", "--train.max_steps", "--train.max-steps"):
        assert parsed(name, "5") == {"train.max_steps": 5}


def test_underscores_of_a_value_are_kept() -> None:
    assert parsed("--dataset=my_org/my_data", "--data.packing=best_fit", "--objective.selection", "whole_word") == {
        "data.dataset": "my_org/my_data",
        "objective.selection": "whole_word",
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.compile"], True),
        (["--model.compile", "true"], True),
        (["--model.compile=TRUE"], True),
        (["--model.compile", "False"], False),
    ],
)
def test_a_boolean_is_a_bare_flag_or_true_or_false_in_any_case(arguments: list[str], expected: bool) -> None:
    assert parse(arguments).model.compile is expected
    assert parse([*arguments, "--seed=3"]).train.seed == 3


@pytest.mark.parametrize(("text", "value"), [("1e4", 10_000), ("20.0", 20), ("0012", 12), ("+5", 5)])
def test_a_whole_number_may_be_written_with_an_exponent(text: str, value: int) -> None:
    assert parsed(f"--max-steps={text}") == {"train.max_steps": value}
    assert parsed(f"--lanes={text}") == {"data.lanes": value}


@pytest.mark.parametrize("none", ["none", "None", "null", "NULL"])
def test_none_and_null_unset_an_optional_option(none: str) -> None:
    assert parsed(f"--max-steps={none}", f"--eval.split={none}") == {}


def test_none_is_a_value_where_it_is_a_choice() -> None:
    assert parsed("--data.packing=none") == {"data.packing": "none"}


def test_a_value_may_begin_with_a_hyphen() -> None:
    assert parsed("--dataset", "-odd", "--train.weight-decay", "-0.5", "--data.name=--odd") == {
        "data.dataset": "-odd",
        "train.weight_decay": -0.5,
        "data.name": "--odd",
    }


# --- Files ---


def test_a_file_gives_nested_dotted_and_short_names_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "dataset: org/name\n"
        "max-steps: 1e3\n"
        "train.seed: 4\n"
        "model:\n  path: bert\n  compile: True\n"
        "train:\n  learning_rate: 3e-4\n  beta1: .8\n"
    )
    assert parsed("--seed=5", "--config", str(file), "--model.compile=false") == {
        "data.dataset": "org/name",
        "model.path": "bert",
        "train.max_steps": 1000,
        "train.seed": 5,
        "train.learning_rate": 0.0003,
        "train.beta1": 0.8,
    }


def test_values_of_a_file_keep_their_spelling_and_empty_ones_are_none(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("run.resume: no\ndata:\n  name: 0012345\n  split: 1_000\n  revision:\n  data_dir: ~\ntrain:\nmodel: ~\n")
    assert parsed(f"--config={file}") == {"run.resume": "no", "data.name": "0012345", "data.split": "1_000"}


def test_a_later_file_overrides_an_earlier_one(tmp_path: Path) -> None:
    for seed in (1, 2):
        (tmp_path / f"{seed}.yaml").write_text(f"seed: {seed}\n")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    files = [f"--config={tmp_path / name}" for name in ("1.yaml", "2.yaml", "empty.yaml")]
    assert parsed(*files) == {"train.seed": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  sead: 3\n", "unknown option --train.sead; did you mean --train.seed?"),
        ("tran:\n  seed: 3\n", "unknown group tran; did you mean train?"),
        (
            "mlm_probability: 0.2\n",
            "unknown option --mlm-probability; use --mask-rate or --objective.mask-rate: Share of the maskable positions of a "
            "row that get a label (mlm).",
        ),
        (
            "dataset: [a, b]\n",
            "dataset takes one value, not a list or mapping; data.sources has several, with weights, @FILE a list in a file",
        ),
        ("eval:\n  dataset: [a, b]\n", "eval.dataset takes one value, not a list or mapping; eval.sets has several"),
        ("model: [a, b]\n", "model takes one value, not a list or mapping; quote it if that is its text"),
        ("--max-steps: 3\n", "--max-steps: in a file the name is max-steps"),
        ("train:\n  --max_steps: 3\n", "--max_steps: in a file the name is max_steps"),
        (
            "dataset: $DATA/texts\n",
            "--data.dataset $DATA/texts: $DATA is not replaced by its value here: write that in its place",
        ),
        (
            "output_dir: /scratch/${USER}/run\n",
            "--run.output-dir /scratch/${USER}/run: ${USER} is not replaced by its value here: write that in its place",
        ),
        (
            "data: {sources: [{name: a, dataset: $DATA/a}]}\n",
            "--data.sources: record 1: dataset $DATA/a: $DATA is not replaced by its value here: write that in its place",
        ),
        ("config: other.yaml\n", "config is for the command line only"),
        ("optimizer:\n  lr: 1\n", "unknown group optimizer; there are data, model, objective, train, eval, run"),
        (
            "model: {name: bert}\n",
            "unknown option --model.name; use --model or --model.path: Model to continue from: a Hub id or a local folder. For "
            "a model from scratch, give --model.config instead.",
        ),
        (
            "eval: {sets: [{name: a, file: x}]}\n",
            "--eval.sets: record 1: unknown key file; there are name, dataset, split, weight",
        ),
        (
            "dataset: >\n  texts\n",
            "--data.dataset 'texts\\n': the quotes or spaces around it are part of the value: give texts",
        ),
        ("train:\n  - seed: 3\n", "train is a group: give its options below it, or one as train.OPTION"),
        ("train:\n  <<: {seed: 3}\n", "train.<<: nothing is merged here: write the options out"),
        ("seed: 1\nlanes: 2\nseed: 3\n", "line 3: seed is given twice"),
        ("train:\n  seed: 1\n  seed: 1\n", "line 3: seed is given twice"),
        ("seed: 1\ntrain:\n  seed: 3\n", "train.seed is given twice, under different names"),
        ("train:\n  max_steps: many\n", "--train.max-steps: 'many' is not a whole number or none"),
    ],
)
def test_a_wrong_option_of_a_file_is_named_with_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert one_line_error(capsys, f"--config={file}") == f"{file}: {message}"


def test_a_dollar_or_a_tilde_that_is_in_a_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("$a", "~"):
        (tmp_path / folder).mkdir()
    found = parse(["--dataset=$a/*.jsonl", "--output-dir=~", "--max-steps=1", "--model=m"])
    assert (found.data.dataset, found.run.output_dir) == ("$a/*.jsonl", "~")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing, broken, words = tmp_path / "missing.yaml", tmp_path / "broken.yaml", tmp_path / "words.yaml"
    broken.write_text("a: [1\n")
    words.write_text("just words\n")
    needed = "a mapping of options to values is needed, such as max-steps: 1000"
    assert one_line_error(capsys, f"--config={missing}") == f"--config {missing}: No such file or directory"
    assert one_line_error(capsys, f"--config={broken}").startswith(f"--config {broken} is not YAML: ")
    assert one_line_error(capsys, f"--config={words}") == f"--config {words}: {needed}"
    for content, why in (
        (b"# caf\xe9\n", "invalid continuation byte at byte 5"),
        ("a: 1".encode("utf-16"), "invalid start byte at byte 0"),
    ):
        words.write_bytes(content)
        assert one_line_error(capsys, f"--config={words}") == f"--config {words} is not UTF-8 ({why}): save it as UTF-8"


@pytest.mark.parametrize(
    ("text", "what_to_do"),
    [
        ("train:\n\tseed: 3\n", "indent with spaces, not tabs"),
        ("dataset: @list.txt\n", "quote a value that begins with a sign"),
        ("dataset: *.jsonl\n", "quote a value that begins with a sign"),
        ("dataset: [*x]\n", "quote a value that begins with a sign"),
        ('dataset: "C:\\data"\n', "use single quotes, in which a backslash is nothing special"),
        ("seed: 1\n   max-steps: 3\n", "quote a value with a colon in it, and indent all options of a group alike"),
        ("seed: 1\n---\nseed: 2\n", "give each document as a --config of its own"),
        ("[" * 3000, None),
    ],
)
def test_a_usual_mistake_in_yaml_is_answered_by_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, what_to_do: str | None
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    said = one_line_error(capsys, f"--config={file}")
    assert said.startswith(f"--config {file} is not YAML: ")
    assert said.endswith(f"; {what_to_do}") or what_to_do is None


def test_a_file_of_options_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("seed: 3\n")
    assert parsed("--config=~/run.yaml") == {"train.seed": 3}


def test_a_tilde_is_the_home_folder_where_no_shell_has_replaced_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    file = tmp_path / "run.yaml"
    file.write_text('output-dir: ~/run\ndata: {dataset: ~/texts, storage_options: "@~/keys.json"}\n')
    assert parsed(f"--config={file}", "--model=~/bert", "--resume=~/run/checkpoints/step-1", "--data.text-field=~/text") == {
        "run.output_dir": "/home/me/run",
        "data.dataset": "~/texts",
        "data.storage_options": "@/home/me/keys.json",
        "model.path": "/home/me/bert",
        "run.resume": "/home/me/run/checkpoints/step-1",
        "data.text_field": "~/text",
    }


# --- Errors ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-stepz=3"], "unknown option --max-stepz; did you mean --max-steps?"),
        (["--lerning-rate=3"], "unknown option --lerning-rate; did you mean --learning-rate?"),
        (["--mask=0.3"], "unknown option --mask; did you mean --mask-rate?"),
        (["--label-smoothing-factor=0.1"], "unknown option --label-smoothing-factor; see --help"),
        (["--warm=3"], "unknown option --warm; did you mean --warmup-steps?"),
        (["--max=3"], "unknown option --max; did you mean --max-steps?"),
        (["--MAX-STEPS=3"], "unknown option --MAX-STEPS; did you mean --max-steps?"),
        (["--dryrun"], "unknown option --dryrun; did you mean --dry-run?"),
        (["--no-compile"], "unknown option --no-compile; give --compile false"),
        (["--no-resume"], "unknown option --no-resume; did you mean --resume?"),
        (["--stp=3"], "unknown option --stp; see --help"),  # --step is an option of another command
        (["--train=3"], "unknown option --train; it is a group: give one of its options as --train.OPTION"),
        (["--optimizer.beta1=3"], "unknown option --optimizer.beta1; did you mean --train.beta1?"),
        (["--config-file=run.yaml"], "unknown option --config-file; use --config FILE.yaml"),
        (["--config="], "--config needs a value"),
        (["--config=s3://bucket/run.yaml"], "--config s3://bucket/run.yaml: give a file on this machine"),
        (["--debug=true"], "--debug takes no value"),
        (["--max-steps", ""], "--max-steps needs a value"),
        (["--data.learning-rate=3"], "unknown option --data.learning-rate; did you mean --train.learning-rate?"),
        (["--xyzzy"], "unknown option --xyzzy; see --help"),
        (["--max-steps"], "--max-steps needs a value"),
        (["--max-steps", "--seed=3"], "--max-steps needs a value"),
        (["--max-steps=1e-4"], "--train.max-steps: '1e-4' is not a whole number or none"),
        (["--max-steps=1.5"], "--train.max-steps: '1.5' is not a whole number or none"),
        (["--max-steps=10k"], "--train.max-steps: '10k' is not a whole number or none: give 10000"),
        (["--max-steps=1,000"], "--train.max-steps: '1,000' is not a whole number or none: give 1000"),
        (["--max-steps=1,5"], "--train.max-steps: '1,5' is not a whole number or none"),
        (["--max-steps=10.000"], "--train.max-steps: '10.000' is not a whole number or none: give 10000"),
        (["--max-steps=3,"], "--train.max-steps: '3,' is not a whole number or none: give 3"),
        (["--max-steps=”3”"], "--train.max-steps: '”3”' is not a whole number or none: give 3"),
        (["--learning-rate=5e–4"], "--train.learning-rate: '5e–4' is not a number or auto: give 0.0005"),
        (["--learning-rate=0,001"], "--train.learning-rate: '0,001' is not a number or auto: give 0.001"),
        (["--data.window-bytes=1Ti"], "--data.window-bytes: '1Ti' is not a whole number or auto: give 1099511627776"),
        (["--dataset=“data”"], "--data.dataset '“data”': the quotes or spaces around it are part of the value: give data"),
        (["--model", "'bert'"], "--model.path \"'bert'\": the quotes or spaces around it are part of the value: give bert"),
        (["--data.window-bytes=64MiB"], "--data.window-bytes: '64MiB' is not a whole number or auto: give 67108864"),
        (["--max-read-bytes=1.5 GB"], "--eval.max-read-bytes: '1.5 GB' is not a whole number: give 1500000000"),
        (["--objective.mask-rate=15%"], "--objective.mask-rate: '15%' is not a number: give 0.15"),
        (["--warmup-steps=6%"], "--train.warmup-steps: '6%' is not a whole number or auto"),
        (["--data.retry-deadline=30m"], "--data.retry-deadline: '30m' is not a number"),
        (["--lanes=many"], "--data.lanes: 'many' is not a whole number or auto"),
        (["--model.compile=maybe"], "--model.compile: 'maybe' is not true or false"),
        (["--train.beta1=big"], "--train.beta1: 'big' is not a number"),
        (["--objective.selection=words"], "--objective.selection: 'words' is not one of token, whole_word, span"),
        (["--seed=none"], "--train.seed: 'none' is not a whole number"),
        (["train", "corpus"], "unexpected argument corpus: options are --name=value"),
        (["trian"], "unknown command trian; did you mean train?; see stream-pretrain --help"),
        ([], "--dataset is missing: give a Hub id, folder, glob or URL"),
        (["--dataset=", *NEEDED[1:]], "--dataset is missing: give a Hub id, folder, glob or URL"),
        (["--dataset= ", *NEEDED[1:]], "--dataset is missing: give a Hub id, folder, glob or URL"),
        (["--dataset=x", "--model=y", "--max-steps=0"], "--train.max-steps must be above 0, not 0"),
        (
            ["--dataset=x", "--model=y", "--max-steps=3", "--lanes=1000000000"],
            "--lanes must be at most 65,536, not 1,000,000,000: leave it out to have it chosen",
        ),
        (["--dataset=x", "--model=y", "--max-steps=1e99"], "--train.max-steps must be below 2^63"),
        ([*NEEDED, f"--seed={'9' * 400}"], "--train.seed must be below 2^63"),
        (["--dataset=x", "--model=", "--max-steps=3"], "--model.path is empty: give a value, or leave the option out"),
        ([*NEEDED, "--output-dir", " "], "--run.output-dir is empty: give a value, or leave the option out"),
        ([*NEEDED, "--data.text-field="], "--data.text-field is empty: give a value, or leave the option out"),
        ([*NEEDED, "--data.heldout-fraction=1"], "--data.heldout-fraction 1 leaves no document to train on: give less"),
        ([*NEEDED, "--train.learning-rate=inf"], "--train.learning-rate must be finite, not inf"),
        (
            [*NEEDED, "--eval.dataset=other"],
            "--eval.dataset and --eval.split need --eval-every",
        ),
        (
            [*NEEDED, "--output-dir=s3://bucket/out"],
            "--output-dir s3://bucket/out is a URL: give a folder, for example of a mounted bucket",
        ),
        ([*NEEDED, "--train.beta1=1"], "--train.beta1 1.0 and --train.beta2 0.98 must be below 1"),
    ],
)
def test_a_usage_error_is_one_line_that_says_what_to_do(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert one_line_error(capsys, *arguments) == message


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a shell puts in place of a pattern."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("a.jsonl.zst", "b.jsonl.zst", "data/c", "data/d", "run.yaml"):
        (tmp_path / name).touch()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--dataset", "a.jsonl.zst", "b.jsonl.zst", "--model=x"],
            "--dataset takes one value, but b.jsonl.zst follows: if the shell has expanded a pattern, quote it: '*.jsonl.zst'",
        ),
        (
            ["train", "--model=x", "--eval.dataset", "data/c", "data/d"],
            "--eval.dataset takes one value, but data/d follows: if the shell has expanded a pattern, quote it: 'data/*'",
        ),
        (
            ["--dataset=a.jsonl.zst", "--dataset=b.jsonl.zst"],
            "--dataset is given twice: if the shell has expanded a pattern, quote it: '*.jsonl.zst'",
        ),
        (
            ["--dataset", "a.jsonl.zst", "--data.dataset", "data/c"],
            "--dataset and --data.dataset are the same option: if the shell has expanded a pattern, quote it: 'data/*'",
        ),
        (["--dataset=data", "--dataset=data"], "--dataset is given twice: leave one of them out"),
        (
            ["--dataset", "org/a", "--dataset", "org/b"],
            "--dataset is given twice: list several in a file, one a line, and give --dataset @FILE",
        ),
        (
            ["--eval.dataset", "s3://a/x", "s3://b/y"],
            "unexpected argument s3://b/y: --eval.dataset takes one value; "
            "list several in a file, one a line, and give --eval.dataset @FILE",
        ),
        (["run.yaml", "--max-steps=3"], "run.yaml is a file of options: give --config run.yaml"),
        (["train", "run.yaml"], "run.yaml is a file of options: give --config run.yaml"),
        (["--max-steps", "3", "run.yaml"], "run.yaml is a file of options: give --config run.yaml"),
        (["configs/no.yaml"], "configs/no.yaml is a file of options: give --config configs/no.yaml"),
        (["a.jsonl.zst", "--model=x"], "a.jsonl.zst is a file or folder: give --dataset a.jsonl.zst"),
        (["train", "data", "--model=x"], "data is a file or folder: give --dataset data"),
        (["--wandb-name", "my", "run"], "unexpected argument run: --wandb-name takes one value; quote one that has spaces"),
        (["--compile", "yes"], "--compile: 'yes' is not true or false"),
        (["--compile", "data"], "data is a file or folder: give --dataset data"),
        (["@run.yaml"], "@run.yaml is a file of options: give --config run.yaml"),
        (["—seed", "3"], "unexpected argument —seed: the names of options begin with two hyphens, --seed"),
        (["‐‐seed=3"], "unexpected argument ‐‐seed=3: the names of options begin with two hyphens, --seed=3"),
        (["−−seed=3"], "unexpected argument −−seed=3: the names of options begin with two hyphens, --seed=3"),
        (["max_steps", "3"], "unexpected argument max_steps: the names of options begin with two hyphens, --max_steps"),
        (["seed: 3"], "unexpected argument seed: 3: the names of options begin with two hyphens, --seed=3"),
        (["++train.seed=3"], "unexpected argument ++train.seed=3: the names of options begin with two hyphens, --train.seed=3"),
        (["help"], "unexpected argument help: the names of options begin with two hyphens, --help"),
        (["-lr", "3"], "unexpected argument -lr: the names of options begin with two hyphens, --lr"),
        (["--max-steps=3", "—seed", "3"], "unexpected argument —seed: the names of options begin with two hyphens, --seed"),
        (["--max-steps=3", "seed=3"], "unexpected argument seed=3: the names of options begin with two hyphens, --seed=3"),
        (
            ["--seed=3", "-max_steps=3"],
            "unexpected argument -max_steps=3: the names of options begin with two hyphens, --max_steps=3",
        ),
        (["train", "x" * 5000], f"unexpected argument {'x' * 5000}: options are --name=value"),
    ],
)
@pytest.mark.usefixtures("files")
def test_an_argument_in_the_wrong_place_says_where_it_belongs(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert one_line_error(capsys, *arguments) == message


def test_an_error_of_the_run_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, errors.ContentError("shard a.zst is truncated at byte 7"))
    assert cli.main(NEEDED) == 1
    assert capsys.readouterr().err.endswith("\nerror: shard a.zst is truncated at byte 7\n")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, errors.ContentError("shard a.zst is truncated"))
    assert cli.main([*NEEDED, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert cli.main(NEEDED) == 130


# --- Commands ---


@pytest.mark.parametrize("command", [[], ["train"]])
def test_train_is_the_default_command_and_gets_the_options_and_the_command(
    started: list[tuple[Config, Sequence[str]]], command: list[str]
) -> None:
    assert cli.main([*command, *NEEDED, "--debug"]) == 0
    expected = Config(
        data=config.DataConfig(dataset="corpus"),
        model=config.ModelConfig(path="model"),
        train=config.TrainConfig(max_steps=3),
    )
    assert started == [(expected, ("stream-pretrain", *command, *NEEDED, "--debug"))]


def test_help_shows_every_option_with_its_names_and_its_default_on_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for name in flatten(Config()):
        assert f"--{name.replace('_', '-')} " in text
    assert "\n  --max-steps, --train.max-steps INTEGER   required, or --max-epochs\n      Optimizer steps of the run." in text
    assert "\n  --eval.split TEXT\n" in text
    assert "(default: 0.98)" in text
    assert "(default: none; or the variable WANDB_NAME)" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_the_example_of_the_help_could_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    example = capsys.readouterr().out.partition("example:\n")[2].partition("\n\n")[0]
    words = shlex.split(example.replace("\\\n", ""))
    assert words[0] == "stream-pretrain"
    validate(parse(words[1:]))


def test_what_the_help_marks_as_required_is_what_a_run_cannot_do_without(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    marked = re.findall(r"^  --([\w-]+), .*  required, or --([\w.-]+)$", capsys.readouterr().out, re.MULTILINE)
    assert marked == [("dataset", "data.sources"), ("model", "model.config"), ("max-steps", "max-epochs")]
    validate(parse(NEEDED))
    for missing in range(3):
        with pytest.raises(ConfigError):
            validate(parse([option for place, option in enumerate(NEEDED) if place != missing]))
    validate(parse(['--data.sources=[{"name": "a", "dataset": "x"}]', "--model.config=m", "--tokenizer=m", "--max-epochs=1"]))


@pytest.mark.parametrize("arguments", [["--help", "train"], ["train", "--help", "train"], ["-h", "train"], ["--help=train"]])
def test_help_of_a_group_is_that_group_alone(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith("train: Steps, batch, optimizer and learning rate.\n  --max-steps, --train.max-steps INTEGER")
    assert re.findall(r"--(data|model|eval|run)\.", text) == []
    assert cli.main(["--help", "learning_rate"]) == 0
    assert capsys.readouterr().out.startswith(
        "  --learning-rate, --train.learning-rate NUMBER|auto\n      Peak learning rate. "
    )
    assert one_line_error(capsys, "--help", "ledger") == "ledger is a command: see stream-pretrain ledger --help"
    assert one_line_error(capsys, "--help=trian") == (
        "no group trian; did you mean train?; --help takes data, model, objective, train, eval, run"
    )


LOOK = '''"""`stream-pretrain look`: look at a folder."""
GROUPS = ("data", "look")
NEEDED = ()
OPERANDS = "OUT"
EXAMPLE = "stream-pretrain look runs/first --color"
'''


@dataclasses.dataclass(frozen=True)
class LookConfig:
    """How to look."""

    color: bool = False
    """Show colours."""
    colors: int = option(16, bounds="positive")
    """Number of colours."""


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Invocation]:
    """What a command of its own group, operands and --json was started with."""
    (tmp_path / "look.py").write_text(LOOK)
    monkeypatch.setattr(cli.commands, "__path__", [str(tmp_path)])
    monkeypatch.setitem(COMMAND_GROUPS, "look", LookConfig)
    names = {"look.color": "look.color", "color": "look.color", "look.colors": "look.colors"}
    for name, dotted in names.items():
        monkeypatch.setitem(NAMES, name, dotted)
    monkeypatch.setitem(TYPES, "look.color", bool)
    monkeypatch.setitem(TYPES, "look.colors", int)
    monkeypatch.setitem(help_texts(), "look.color", "Show colours.")
    monkeypatch.setitem(help_texts(), "look.colors", "Number of colours.")
    calls: list[Invocation] = []

    def run(given: Invocation, progress: Progress) -> Answer:
        calls.append(given)
        return Answer(["two", "lines"], {"colours": "é"}, 3)

    monkeypatch.setitem(sys.modules, "stream_pretrain.commands.look", SimpleNamespace(run=run))
    return calls


def test_a_command_shows_and_takes_the_options_of_the_groups_that_it_names(
    look: list[Invocation], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["look", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: stream-pretrain look OUT [--OPTION VALUE ...]\n\nLook at a folder.\n\nexample:\n")
    shown = ("--data.dataset" in text, "--look.color" in text, "--json" in text, "--train.seed" in text, "required" in text)
    assert shown == (True, True, True, False, False)
    said = one_line_error(capsys, "look", "--dataset=x", "--seed=3")
    assert said == "look has no option --train.seed; see stream-pretrain look --help"


def test_a_command_is_given_its_own_options_operands_and_json_and_answers(
    look: list[Invocation], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["look", "runs/a", "--color", "runs/b", "--json", "--lanes=4"]) == 3
    assert cli.main(["look"]) == 3
    assert capsys.readouterr().out == '{"colours": "é"}\ntwo\nlines\n'
    [given, _] = look
    assert (given.operands, given.as_json, given.own["look"]) == (("runs/a", "runs/b"), True, LookConfig(color=True))
    assert given.config == Config(data=DataConfig(lanes=4))


def test_a_file_of_options_may_have_those_of_other_commands(look: list[Invocation], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("look: {color: true}\ntrain: {seed: 3}\n")
    assert cli.main(["look", f"--config={tmp_path}/run.yaml"]) == 3
    assert look[0].own["look"] == LookConfig(color=True)


def test_options_of_a_command_have_bounds_and_train_takes_none_of_them(
    look: list[Invocation], capsys: pytest.CaptureFixture[str]
) -> None:
    assert one_line_error(capsys, "look", "--look.colors=0") == "--look.colors must be above 0, not 0"
    assert look == []


def test_train_prints_no_result(started: list[tuple[Config, Sequence[str]]], capsys: pytest.CaptureFixture[str]) -> None:
    said = one_line_error(capsys, *NEEDED, "--json")
    assert said == "train has no option --json; see stream-pretrain train --help"


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys; from stream_pretrain.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'datasets', 'wandb', 'accelerate', 'numpy', 'pyarrow', 'tokenizers', 'fsspec',"
        "'huggingface_hub', 'requests', 'zstandard', 'psutil', 'safetensors.torch'} & set(sys.modules);"
        "sys.exit(code or ','.join(heavy) or 0)"
    )
    for options in (["--help"], ["--help", "train"], ["--version"]):
        finished = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=False)
        assert (finished.returncode, finished.stderr) == (0, "")


def test_what_stdout_does_not_take_is_one_line_and_a_reader_that_has_gone_none() -> None:
    code = "import sys; from stream_pretrain.cli import main; sys.exit(main(['--help']))"
    with open("/dev/full", "wb") as full:
        refused = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (refused.returncode, refused.stderr) == (1, "error: stdout cannot be written: No space left on device\n")
    reader, writer = os.pipe()
    os.close(reader)
    left = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (left.returncode, left.stderr) == (141, "")


def test_the_package_is_started_as_a_module_as_launchers_do() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "stream_pretrain", "--max-stepz=3"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    assert finished.stderr == "error: unknown option --max-stepz; did you mean --max-steps?\n"


MIXTURE = """
data:
  sources:
    - {name: new, dataset: ./domain, weight: 19, text-template: "{title}: {body}"}
    - {name: replay, dataset: org/old, weight: 1e0, max_epochs: null, heldout_fraction: 0.01}
  weight_schedule:
    - from_step: 1e3
      weights: {replay: 0.5}
"""


def output_folder(*arguments: str) -> str:
    return run_directory(parse([*arguments, "--max-steps=3"])).as_posix()


def test_the_output_folder_is_named_by_what_must_not_change() -> None:
    folder = output_folder("--dataset=org/corpus", "--model=org/bert")
    assert re.fullmatch(r"runs/corpus-bert-[0-9a-f]{8}", folder)
    assert output_folder("--dataset=org/corpus", "--model=org/bert", "--workers=3") == folder
    assert output_folder("--dataset=org/corpus", "--model=org/bert", "--seed=3") != folder


def test_the_output_folder_has_the_whole_name_of_a_dataset_on_the_hub() -> None:
    name = "corpus-" + "x" * 84  # with the owner the 96 characters that it may have
    assert output_folder(f"--dataset=orgs/{name}", "--model=bert").startswith(f"runs/{name}-bert-")


def test_the_output_folder_has_no_signature_and_stays_where_a_new_one_is_given() -> None:
    first, second = (
        output_folder(f"--dataset=https://me:secret@host/a.jsonl?X-Sig={letter * 500}", "--model=bert") for letter in "ab"
    )
    assert re.fullmatch(r"runs/a.jsonl-bert-[0-9a-f]{8}", first)
    assert first == second


def test_what_is_shown_of_the_options_has_no_signature_and_no_key() -> None:
    url, options = "https://me:secret@host/a.jsonl?signature=secret", '{"token": "secret"}'
    sources = [{"name": "one", "dataset": url, "storage_options": options, "weight": 2}]
    single = [f"--dataset={url}", f"--eval.dataset={url}", "--eval-every=1", f"--data.storage-options={options}"]
    for given in (single, [f"--data.sources={json.dumps(sources)}"]):
        shown = shown_options(flatten(parse([*given, "--model=bert", "--max-steps=3"])))
        assert "secret" not in json.dumps(shown)
        assert "https://host/a.jsonl" in json.dumps(shown)


def test_the_output_folder_of_a_mixture_goes_by_its_sources_not_their_keys() -> None:
    def sources(key: str, count: int = 20) -> str:
        options = json.dumps({"token": key})
        records = [
            {"name": f"source-{n}", "dataset": f"https://host/{n}.jsonl?{key}", "storage_options": options}
            for n in range(count)
        ]
        return f"--data.sources={json.dumps(records)}"

    folder = output_folder(sources("one"), "--model=bert")
    assert re.fullmatch(r"runs/[a-z0-9+-]{100}-bert-[0-9a-f]{8}", folder)
    assert output_folder(sources("two"), "--model=bert") == folder
    assert output_folder(sources("one", 19), "--model=bert") != folder


def test_a_file_lists_the_sources_of_a_mixture(tmp_path: Path) -> None:
    file = tmp_path / "mixture.yaml"
    file.write_text(MIXTURE)
    config = parse([f"--config={file}"])
    assert config.data.sources == (
        SourceConfig("new", "./domain", 19.0, text_template="{title}: {body}"),
        SourceConfig("replay", "org/old", 1.0, heldout_fraction=0.01),
    )
    assert config.data.weight_schedule == (WeightChange(1000, {"replay": 0.5}),)


def test_the_sources_of_a_mixture_are_one_json_argument() -> None:
    config = parse(["--data.sources", '[{"name": "a", "dataset": "x", "max_epochs": 2}]'])
    assert config.data.sources == (SourceConfig("a", "x", max_epochs=2),)
    config = parse(["--data.sources", '[{"name": "a", "dataset": "x", "text_documents": "file"}]'])
    assert config.data.sources == (SourceConfig("a", "x", text_documents="file"),)


def test_a_key_that_a_mixture_does_not_use_is_none_that_has_changed() -> None:
    was = {"data.sources": [{"name": "a", "dataset": "x", "weight": 1.0}]}
    now = {"data.sources": [{"name": "a", "dataset": "y", "weight": 1.0, "text_documents": None}]}
    assert without_places(was) == without_places(now)
    now["data.sources"][0]["text_documents"] = "file"
    assert without_places(was) != without_places(now)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[{}", "--data.sources is not JSON: Expecting ',' delimiter: line 1 column 4 (char 3)"),
        ('{"name": "a"}', '--data.sources: a list of records is needed, such as [{"name": ..., "dataset": ...}]'),
        ('[{"name": "a"}]', "--data.sources: record 1: dataset is missing"),
        ('[{"name": "a", "dataset": "x", "wieght": 1}]', "--data.sources: record 1: unknown key wieght; did you mean weight?"),
        ('[{"name": "a", "dataset": "x", "weight": "much"}]', "--data.sources: record 1: weight: 'much' is not a number"),
        (
            '[{"name": "a", "dataset": "x", "max_epochs": 1.5}]',
            "--data.sources: record 1: max_epochs: 1.5 is not a whole number or none",
        ),
        (
            '[{"name": "a", "dataset": "x", "text_documents": "page"}]',
            "--data.sources: record 1: text_documents: 'page' is not one of line, blank-line, file or none",
        ),
        ('[{"name": "a", "dataset": "x", "text_field": 3}]', "--data.sources: record 1: text_field: 3 is not text or none"),
    ],
)
def test_a_wrong_record_of_a_mixture_is_named(value: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse([f"--data.sources={value}"])
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"learning_rate": 1e-4, "final_learning_rate": 2e-4},
            "--train.final-learning-rate 0.0002 must not be above --train.learning-rate 0.0001",
        ),
        (
            {"schedule": "constant", "final_learning_rate": 1e-5},
            "--train.final-learning-rate needs a --train.schedule that decays: wsd, cosine or linear",
        ),
    ],
)
def test_a_final_rate_that_no_decay_leads_to_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(Config(data=DataConfig(dataset="x"), model=ModelConfig(path="m"), train=TrainConfig(max_steps=1, **options)))
    assert str(error.value) == said


A = SourceConfig("a", "x")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (DataConfig(dataset="x", sources=(A,)), "give either --dataset or --data.sources, not both"),
        (DataConfig(sources=(A, A)), "--data.sources: the name 'a' must be unique, of letters"),
        (DataConfig(sources=(SourceConfig("a/b", "x"),)), "--data.sources: the name 'a/b' must be unique, of letters"),
        (DataConfig(sources=(SourceConfig("a", "x", -1),)), "--data.sources: a: weight must not be negative, not -1"),
        (DataConfig(sources=(SourceConfig("a", "x", 0),)), "--data.sources: no source has a weight"),
        (DataConfig(sources=(SourceConfig("a", "x", max_epochs=0),)), "--data.sources: a: max_epochs must be above 0, not 0"),
        (
            DataConfig(sources=(SourceConfig("a", "x", heldout_fraction=2),)),
            "--data.sources: a: heldout_fraction must be between 0 and 1, not 2",
        ),
        (
            DataConfig(sources=(A,), weight_schedule=(WeightChange(0, {"a": 1}),)),
            "--data.weight-schedule: from_step 0: must be above 0",
        ),
        (
            DataConfig(sources=(A,), weight_schedule=(WeightChange(5, {"b": 1}),)),
            "--data.weight-schedule: from_step 5: there is no source 'b', only a",
        ),
        (
            DataConfig(sources=(A,), weight_schedule=(WeightChange(5, {"a": 0}),)),
            "--data.weight-schedule: from_step 5: no source has a weight",
        ),
        (DataConfig(dataset="x", text_template="{title"), "--data.text-template '{title': expected '}' before end of string"),
        (DataConfig(dataset="x", text_template="title"), "--data.text-template 'title' names no field, as {title} would"),
        (
            DataConfig(dataset="x", text_template="{title!r}"),
            "--data.text-template '{title!r}': a field is its name in braces, {title}, and nothing else",
        ),
        (
            DataConfig(dataset="x", min_characters=9, max_characters=3),
            "--data.max-characters 3 is below --data.min-characters 9",
        ),
    ],
)
def test_a_corpus_that_cannot_be_is_refused(data: DataConfig, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(Config(data=data, model=ModelConfig(path="m"), train=TrainConfig(max_steps=1)))
    assert str(error.value).startswith(said)
