"""Options: their names and values, on the command line and in files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from stream_pretrain.arguments import parse
from stream_pretrain.config import GROUPS, NAMES, SHORT, SYNONYMS, WITHOUT, SourceConfig, WeightChange, flatten, shown_options
from tests.command_lines import NEEDED, one_line_error, parsed


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


def test_a_file_behind_one_of_options_is_answered_as_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, shard = tmp_path / "run.yaml", tmp_path / "texts.jsonl"
    options.write_text("max-steps: 3\n")
    shard.touch()
    said = one_line_error(capsys, "--config", str(options), str(shard))
    assert said == f"{shard} is a file or folder: give --dataset {shard}"


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


MIXTURE = """
data:
  sources:
    - {name: new, dataset: ./domain, weight: 19, text-template: "{title}: {body}"}
    - {name: replay, dataset: org/old, weight: 1e0, max_epochs: null, heldout_fraction: 0.01}
  weight_schedule:
    - from_step: 1e3
      weights: {replay: 0.5}
"""


def test_what_is_shown_of_the_options_has_no_signature_and_no_key() -> None:
    url, options = "https://me:secret@host/a.jsonl?signature=secret", '{"token": "secret"}'
    sources = [{"name": "one", "dataset": url, "storage_options": options, "weight": 2}]
    single = [f"--dataset={url}", f"--eval.dataset={url}", "--eval-every=1", f"--data.storage-options={options}"]
    for given in (single, [f"--data.sources={json.dumps(sources)}"]):
        shown = shown_options(flatten(parse([*given, "--model=bert", "--max-steps=3"])))
        assert "secret" not in json.dumps(shown)
        assert "https://host/a.jsonl" in json.dumps(shown)


@pytest.mark.parametrize("text", ["|\n  {}\n", "' {} '"])
def test_options_of_a_store_may_have_space_around_them(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data.storage-options: " + text.replace("{}", '{"token": "mysecret"}'))
    options = parse([f"--config={file}"]).data.storage_options
    assert options is not None
    assert json.loads(options) == {"token": "mysecret"}


@pytest.mark.parametrize("options", ["'{}'", " '{}'", "\u201c{}\u201d"])
def test_options_of_a_store_in_quotes_are_refused_without_being_shown(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = options.replace("{}", '{"token": "mysecret"}')
    said = one_line_error(capsys, "--dataset=s3://a/b", "--model=m", "--max-steps=3", f"--data.storage-options={given}")
    assert "--data.storage-options" in said
    assert "mysecret" not in said


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
