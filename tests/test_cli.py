"""The command line: commands, their help, and one line for an error."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from stream_pretrain import cli, config, errors
from stream_pretrain.arguments import Invocation, parse
from stream_pretrain.commands import Answer
from stream_pretrain.config import (
    COMMAND_GROUPS,
    GROUPS,
    NAMES,
    TYPES,
    Config,
    DataConfig,
    flatten,
    help_texts,
    option,
    validate,
)
from stream_pretrain.errors import ConfigError
from stream_pretrain.training.ranks.signals import StopRequest
from stream_pretrain.training.report.progress import Progress
from tests.command_lines import NEEDED, one_line_error


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
    with pytest.raises(ConfigError, match=r"^--init-from takes the weights alone: give that folder as --model instead, or "):
        validate(parse(["--dataset=corpus", "--init-from=runs/a/checkpoints/step-00000005", "--max-steps=3"]))
    validate(parse(['--data.sources=[{"name": "a", "dataset": "x"}]', "--model.config=m", "--tokenizer=m", "--max-epochs=1"]))


@pytest.mark.parametrize("arguments", [["--help", "train"], ["train", "--help", "train"], ["-h", "train"], ["--help=train"]])
def test_help_of_a_group_is_that_group_alone(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith("train: Steps, batch, optimizer and learning rate.\n  --max-steps, --train.max-steps INTEGER")
    assert re.findall(r"--(data|model|eval|run)\.", text) == []


@pytest.mark.parametrize("name", ["learning_rate", "lr"])  # lr: as other programs have it
def test_help_of_an_option_is_that_option_alone(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert cli.main(["--help", name]) == 0
    begin, *others = capsys.readouterr().out.split("  --learning-rate, ")
    assert (begin, len(others)) == ("", 1)
    assert others[0].startswith("--train.learning-rate NUMBER|auto\n      Peak learning rate. ")


@pytest.mark.parametrize(("name", "near"), [("trian", "train"), ("learning_rte", "learning-rate")])
def test_help_of_a_misspelt_name_names_the_nearest(capsys: pytest.CaptureFixture[str], name: str, near: str) -> None:
    groups = "the groups are data, model, objective, train, eval, run"
    assert one_line_error(capsys, f"--help={name}") == f"no group or option {name}; did you mean {near}?; {groups}"


def test_help_of_another_command_says_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert one_line_error(capsys, "--help", "ledger") == "ledger is a command: see stream-pretrain ledger --help"


def test_help_breaks_no_line_within_the_name_of_a_command_or_option(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "evaluate", "inspect", "ledger", "verify-resume"):
        assert cli.main([command, "--help"]) == 0
        assert [line for line in capsys.readouterr().out.splitlines() if re.search(r"\w-$", line)] == []


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
    code = """
import sys
from stream_pretrain.cli import main
from stream_pretrain.help import command_names, declaration_of

assert main(["--version"]) == main(["--help", "--dataset", "x"]) == main(["--help", "learning-rate"]) == 0
for command in command_names():
    for group in ("", *declaration_of(command).groups):
        assert main([command, "--help", *group.split()]) == 0
heavy = {"torch", "transformers", "datasets", "wandb", "accelerate", "numpy", "pyarrow", "tokenizers", "fsspec", "requests"}
heavy |= {"huggingface_hub", "zstandard", "psutil", "safetensors.torch", "stream_pretrain.model", "stream_pretrain.data.lanes"}
sys.exit(",".join(heavy & set(sys.modules)) or 0)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith("0.1.0\nusage: stream-pretrain ")
    assert all(f"\n{group}: " in finished.stdout for group in [*GROUPS, *COMMAND_GROUPS])


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
