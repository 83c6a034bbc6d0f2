"""What needs only the options is refused before anything heavy is imported, and before any model is asked for."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from stream_pretrain import cli
from stream_pretrain.arguments import parse
from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus import missing_dataset, resolve
from stream_pretrain.data.rows import installed_engines
from stream_pretrain.errors import TransportError
from stream_pretrain.training.start import first_checks
from tests.corpora import documents, write_shard

NEEDED = ["--model=org/model", "--max-steps=3"]
SCRATCH = ["--model.config=org/model", "--max-steps=3"]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Without the account of whoever runs the tests."""
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    return write_shard(tmp_path / "corpus", documents(20), "plain")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """The exit code and the last line of a command that ends before its module is imported."""
    actual = importlib.import_module

    def but_the_command(name: str, package: str | None = None) -> object:
        assert not name.startswith("stream_pretrain.commands")
        return actual(name, package)

    with monkeypatch.context() as patched:
        patched.setattr(importlib, "import_module", but_the_command)
        code = cli.main(arguments)
    return code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--eval-every=5"], 2, "--eval-every needs documents: give --data.heldout-fraction, --eval.split or --eval.dataset"),
        (
            ["--run.wandb=online"],
            2,
            "W&B cannot be online, no API key: run `wandb login` or set ",
        ),
        (["--output-dir={corpus}/o/p"], 1, "--output-dir {corpus}/o/p: {corpus} is not a folder: give another one"),
        (["--output-dir={corpus}"], 1, "--output-dir {corpus}: {corpus} is not a folder: give another one"),
        (["--output-dir=/"], 1, "--output-dir / is the root of the file system: give one of its own"),
        (["--output-dir=~/"], 1, "--output-dir {corpus.parent}/none is your home folder: give one of its own"),
        (
            ["--dataset={corpus.parent}", "--output-dir={corpus.parent}/../{corpus.parent.name}"],
            1,
            "--output-dir {corpus.parent}/../{corpus.parent.name} is the folder of --dataset: give one of its own",
        ),
        (["--dataset=./no/such"], 1, "./no/such: there is no such file or folder"),
        (["--dataset=/no/such/*.zst"], 1, "/no/such/*.zst: no file matches; shards end in "),
        (["--dataset=@/no/list.txt"], 1, "@/no/list.txt: there is no such file"),
        (["--eval-every=5", "--eval.dataset=~/no/such/file.jsonl"], 1, "~/no/such/file.jsonl: there is no such file or folder"),
    ],
)
def test_what_cannot_run_is_refused_before_the_command_is_imported(
    options: list[str], code: int, said: str, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [] if any(option.startswith("--dataset") for option in options) else [f"--dataset={corpus}"]
    found = refused([*given, *NEEDED, *(option.format(corpus=corpus) for option in options)], capsys, monkeypatch)
    assert found[0] == code
    assert found[1].startswith(f"error: {said.format(corpus=corpus)}")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["inspect", "--dataset=/no/such"], 1, "/no/such: there is no such file or folder"),
        (
            ["inspect", "--dataset={corpus}", "--inspect.rows=1"],
            2,
            "--inspect.rows needs a tokenizer: give --model or --model.tokenizer",
        ),
        (["verify-resume", *NEEDED, "--dataset=/no/such/*.zst"], 1, "/no/such/*.zst: no file matches; shards end in "),
        (
            ["verify-resume", *NEEDED, "--dataset={corpus}", "--verify.run-steps=3"],
            2,
            "--verify.run-steps must be at least 4, not 3",
        ),
        (["evaluate", "model", "--dataset=/no/such"], 1, "/no/such: there is no such file or folder"),
        (
            ["evaluate", "--dataset={corpus}"],
            2,
            "evaluate needs models: give folders or Hub ids, such as bert-base-uncased runs/first/model",
        ),
        (["ledger", "--step=3"], 2, "ledger needs the folder of one run, such as runs/first"),
        (["ledger", "/no/such", "--step=3"], 1, "/no/such is not there: give the folder of a run"),
        (["ledger", "{corpus.parent}", "--step=3"], 1, "{corpus.parent} is no folder of a run"),
    ],
)
def test_what_the_other_commands_cannot_do_is_refused_before_they_are_imported(
    arguments: list[str],
    code: int,
    said: str,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = refused([argument.format(corpus=corpus) for argument in arguments], capsys, monkeypatch)
    assert found[0] == code
    assert found[1].startswith(f"error: {said.format(corpus=corpus)}")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model=./no/such"], "no such file or folder: ./no/such"),
        (["--model=~/no/model"], "no such file or folder: {home}/no/model"),
        ([*SCRATCH[:1], "--model.tokenizer=/no/such"], "no such file or folder: /no/such"),
        (["--model.config=/no/config.json", "--model.tokenizer=org/model"], "no such file or folder: /no/config.json"),
        ([*NEEDED[:1], "--init-from={used}/checkpoints/step-00000009"], "no such file or folder: {used}/checkpoints/step-"),
        (["--model={home}"], "{home} is no model: it has no config.json"),
        (["--model={used}"], "{used} is the folder of a run: give the model in it, {used}/checkpoints/step-00000005"),
        ([*NEEDED[:1], "--resume={used}"], "{used} is not a checkpoint: give auto, no, or a folder such as OUT/checkpoints/"),
        (
            [*NEEDED[:1], "--resume=no", "--output-dir={used}"],
            "{used} has a run: resume it with --resume auto, or give another",
        ),
    ],
)
def test_a_model_or_a_checkpoint_that_is_not_there_is_refused_before_the_command_is_imported(
    options: list[str], said: str, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"used": corpus.parent / "used", "home": corpus.parent / "none"}
    checkpoint = places["used"] / "checkpoints" / "step-00000005"
    places["home"].mkdir()
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").touch()
    (places["used"] / "run.json").touch()
    given = [option.format(**places) for option in (f"--dataset={corpus}", *NEEDED[1:], *options)]
    code, line = refused(given, capsys, monkeypatch)
    assert code == 1
    assert line.startswith(f"error: {said.format(**places)}")


def test_a_run_that_goes_on_needs_no_weights_to_begin_with(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = corpus.parent / "out"
    (out / "checkpoints").mkdir(parents=True)
    options = [f"--output-dir={out}", "--init-from=/no/weights", "--resume=/no/checkpoint", "--dataset=/no/such"]
    assert refused([*NEEDED, *options], capsys, monkeypatch) == (1, "error: /no/such: there is no such file or folder")


@pytest.mark.parametrize("recorded", [False, True])
def test_a_run_that_begins_from_a_checkpoint_needs_no_other_weights(
    recorded: bool, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, checkpoint = corpus.parent / "out", corpus.parent / "step-00000005"
    for folder in (out, checkpoint):
        folder.mkdir()
    (checkpoint / "trainer.json").touch()
    if recorded:  # by a start that was killed before its first checkpoint
        (out / "run.json").write_text(json.dumps({"parent": str(checkpoint)}))
    options = [f"--output-dir={out}", "--init-from=/no/weights", "--dataset=/no/such"]
    resume = [] if recorded else [f"--resume={checkpoint}"]
    assert refused([*NEEDED, *options, *resume], capsys, monkeypatch) == (1, "error: /no/such: there is no such file or folder")


def test_a_step_that_no_memory_holds_is_refused(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_checks, "physical_memory", lambda: 25_000_000_000)
    run = [f"--dataset={corpus}", *NEEDED, "--sequence-length=128", "--global-batch-size=100000000"]
    said = (
        "error: --global-batch-size 100,000,000: the tokens of one step take 51 GB of memory, and this machine has 25 GB: "
        "give fewer rows"
    )
    assert refused(run, capsys, monkeypatch) == (2, said)
    assert refused([*run, "--dry-run"], capsys, monkeypatch) == (2, said)
    assert refused(["verify-resume", *run], capsys, monkeypatch) == (2, said)
    assert refused(["inspect", *run, "--inspect.rows=1"], capsys, monkeypatch) == (2, said)
    monkeypatch.setenv("WORLD_SIZE", "2")  # of several machines, which share it
    assert refused([*run, "--dataset=/no/such"][1:], capsys, monkeypatch) == (
        1, "error: /no/such: there is no such file or folder",
    )  # fmt: skip


def test_a_folder_in_a_working_directory_that_was_deleted_is_refused(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpus.parent / "gone").mkdir()
    monkeypatch.chdir(corpus.parent / "gone")
    (corpus.parent / "gone").rmdir()
    assert refused([f"--dataset={corpus}", *NEEDED, "--output-dir=runs/a"], capsys, monkeypatch) == (
        1, "error: --output-dir runs/a: the working directory was deleted: start in another one",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("part-9.jsonl.zst", "part-9.jsonl.zst: there is no such file or folder"),
        ("texts/part.jsonl.zst", "texts/part.jsonl.zst: there is no such file or folder; did you mean texts/part-0.jsonl.zst?"),
        ("../no", "../no: there is no such file or folder"),
        ("./text", "./text: there is no such file or folder; did you mean texts?"),
    ],
)
def test_a_wrong_name_of_a_file_names_the_nearest_and_is_not_looked_for_on_the_hub(
    dataset: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asks(*_: object) -> None:
        raise AssertionError("the Hub is asked")

    monkeypatch.setattr(missing_dataset, "pinned_revision", asks)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    write_shard(tmp_path / "texts" / "part-0", documents(20), "zst")
    assert refused([f"--dataset={dataset}", *NEEDED], capsys, monkeypatch) == (1, f"error: {said}")


def test_a_source_of_a_mixture_that_is_not_there_is_refused_too(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = f'--data.sources=[{{"name": "a", "dataset": "{corpus}"}}, {{"name": "b", "dataset": "/no/such"}}]'
    assert refused([sources, *NEEDED], capsys, monkeypatch) == (1, "error: /no/such: there is no such file or folder")
    split = "error: --eval.split names a split of --dataset, but the corpus is a mixture: give --eval.dataset"
    assert refused([sources, *NEEDED, "--eval-every=5", "--eval.split=test"], capsys, monkeypatch) == (2, split)


def test_a_mode_that_the_environment_gives_weights_and_biases_is_checked_at_once(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for mode, said in {"online": "no API key", "on": "WANDB_MODE is 'on': set it to"}.items():
        monkeypatch.setenv("WANDB_MODE", mode)
        code, line = refused([f"--dataset={corpus}", *NEEDED], capsys, monkeypatch)
        assert (code, said in line) == (2, True)


def test_the_first_rank_looks_for_all(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")

    def reached(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(importlib, "import_module", reached)
    assert cli.main(["--dataset=/no/such", *NEEDED]) == 1


def test_nothing_heavy_is_imported_for_a_refusal(tmp_path: Path, corpus: Path) -> None:
    commands = [
        [f"--dataset={corpus}", *NEEDED, "--run.wandb=online"],
        ["--dataset=/no/such", *NEEDED],
        ["--dataset=no/such", *NEEDED],
        [f"--dataset={corpus}", "--model=/no/such", "--max-steps=3"],
    ]
    code = f"""
import sys
from stream_pretrain.cli import main
from stream_pretrain.data.corpus import missing_dataset
from stream_pretrain.errors import SourceError
def refuse(*_): raise SourceError("not there")
missing_dataset.pinned_revision = refuse
print([main(command) for command in {commands!r}])
print({{"torch", "transformers", "datasets", "accelerate"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[2, 1, 1, 1]", "set()"]


def test_a_hub_that_does_not_answer_is_left_to_the_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(missing_dataset, "pinned_revision", fails)
    missing_dataset.refuse_absent(parse(["--dataset=org/corpus"]).data)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("dat", "dat (no file or folder here; did you mean data?)"),
        ("corpus", "corpus (no file or folder here)"),
        ("a/b", "a/b"),
    ],
)
def test_a_wrong_name_of_a_folder_names_the_nearest_where_the_hub_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, near: str
) -> None:
    def fails(*_: object) -> None:
        raise ConnectionRefusedError("nobody")

    monkeypatch.setattr(resolve, "list_hub_dataset", fails)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(TransportError) as error:
        resolve.resolve(DataConfig(dataset=name))
    assert str(error.value) == (f"{near}: no server answers (ConnectionRefusedError: nobody); check the network and the name")


def test_an_engine_that_is_not_installed_is_named_with_what_pip_takes(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed_engines, "installed", lambda _: None)
    code, line = refused([f"--dataset={corpus}", *NEEDED, "--data.engine=gigatoken"], capsys, monkeypatch)
    assert code == 2
    assert line == "error: --data.engine gigatoken is not installed: pip install gigatoken, or give --data.engine auto"


def test_a_run_in_the_folder_of_its_corpus_goes_on(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpus.parent / "checkpoints").mkdir()
    options = [f"--dataset={corpus.parent}", f"--output-dir={corpus.parent}", "--eval-every=5", "--eval.dataset=/no/such"]
    assert refused([*options, *NEEDED], capsys, monkeypatch) == (1, "error: /no/such: there is no such file or folder")
