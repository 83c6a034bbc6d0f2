"""A run that has finished, started again, trains nothing and writes nothing but what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stream_pretrain.config import RunConfig
from stream_pretrain.training.report import tracking
from stream_pretrain.training.report.tracking import Tracker
from tests.command_lines import with_last
from tests.corpora import documents, write_shard
from tests.integration.jobs import lines, recorded, tiny_options
from tests.training.runs import run_here, run_to_end


@pytest.fixture(scope="module")
def arguments(small_corpus: Path, model: Path) -> list[str]:
    more = ("--max-steps=4", "--save-every=2", "--eval-every=4", "--data.heldout-fraction=0.2", "--eval.documents=6")
    return tiny_options(small_corpus, model, None, *more)


@pytest.fixture(scope="module")
def undisturbed(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    run_to_end([*arguments, f"--output-dir={out}"])
    return out


@pytest.fixture
def out(undisturbed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "out"))


def files(out: Path) -> dict[str, tuple[bytes, int, int]]:
    """Content, inode and time of all files but the lock, which names the process that has it."""
    found = (path for path in out.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(out)): (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def written(before: dict[str, tuple[bytes, int, int]], out: Path) -> set[str]:
    after = files(out)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def again(arguments: Sequence[str], out: Path, *more: str) -> str:
    """The last line that the same command says."""
    return run_to_end([*arguments, f"--output-dir={out}", *more]).splitlines()[-1]


def without(arguments: Sequence[str], *names: str) -> list[str]:
    return [option for option in arguments if option.partition("=")[0] not in names]


def test_it_says_so_and_neither_loads_nor_writes_anything(
    arguments: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_pretrain.commands.train.set_up", None)
    before = files(out)
    said = f"already finished at step 4; the model is in {out / 'model'}"
    assert again(arguments, out) == said
    assert again(without(arguments, "--max-steps"), out, "--max-steps=3") == said
    assert written(before, out) == set()


def test_a_run_that_epochs_have_ended_does_not_read_on(arguments: list[str], tmp_path: Path) -> None:
    batch = ("--global-batch-size=32", "--micro-batch-size=32", "--sequence-length=64")
    epochs = [*without(arguments, "--max-steps", *(option.partition("=")[0] for option in batch)), *batch, "--max-epochs=1"]
    again(epochs, tmp_path)
    before, step = files(tmp_path), recorded(tmp_path)["step"]
    assert again(epochs, tmp_path) == f"already finished at step {step}; the model is in {tmp_path / 'model'}"
    assert written(before, tmp_path) == set()
    assert "already" not in again([*without(epochs, "--max-epochs"), "--max-epochs=2"], tmp_path)
    assert recorded(tmp_path)["step"] > step


def test_a_model_that_is_gone_is_there_again(arguments: list[str], out: Path) -> None:
    before = files(out)
    shutil.rmtree(out / "model")
    assert again(arguments, out).startswith("already finished at step 4;")
    assert {name: content for name, (content, *_) in files(out).items()} == {
        name: content for name, (content, *_) in before.items()
    }
    assert all(name.startswith("model/") for name in written(before, out))


def test_a_model_without_its_weights_is_warned_of_and_stays(arguments: list[str], out: Path) -> None:
    (out / "model" / "model.safetensors").unlink()
    before = files(out)
    said = run_to_end([*arguments, f"--output-dir={out}"])
    lacks = f"warning: {out}/model lacks model.safetensors: delete it, and the same command writes it again\n"
    assert said.endswith(f"{lacks}already finished at step 4; the model is in {out}/model\n")
    assert written(before, out) == set()


def test_neither_the_corpus_nor_the_model_has_to_be_there_still(small_corpus: Path, model: Path, tmp_path: Path) -> None:
    inputs = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in (small_corpus, model)]
    out = tmp_path / "out"
    more = ("--eval-every=1", f"--eval.dataset={inputs[0]}", "--eval.documents=2")
    command = with_last(tiny_options(*inputs, out, *more, "--max-steps=1"))
    run_to_end(command)
    for folder in inputs:
        shutil.rmtree(folder)
    said = run_to_end(command)
    assert said.endswith(f"already finished at step 1; the model is in {out}/model\n")
    more_steps = run_here(with_last([*command, "--max-steps=2"]))
    assert (more_steps.returncode, more_steps.stderr.splitlines()[1:]) == (
        1,
        [f"error: {inputs[0]}: there is no such file or folder"],
    )


def test_an_evaluation_that_is_missing_is_made_up(arguments: list[str], out: Path, undisturbed: Path) -> None:
    metrics = lines(out / "metrics.jsonl")
    last = {name: value for name, value in metrics.pop().items() if not name.startswith("eval/")}
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*metrics, last]))
    before = files(out)
    done = run_to_end([*arguments, f"--output-dir={out}"])
    assert f"already finished at step 4, from {out}/checkpoints/step-00000004" in done
    assert lines(out / "metrics.jsonl") == lines(undisturbed / "metrics.jsonl")
    assert not [name for name in written(before, out) if name.startswith(("model/", "checkpoints/"))]
    assert recorded(out)["state"] == "finished"


def test_more_steps_are_trained(arguments: list[str], out: Path) -> None:
    assert "already" not in again(without(arguments, "--max-steps"), out, "--max-steps=6")
    assert [line["step"] for line in lines(out / "metrics.jsonl")] == [0, 1, 2, 3, 4, 5, 6]


def test_an_option_that_must_not_change_is_refused_all_the_same(arguments: list[str], out: Path) -> None:
    before = files(out)
    done = run_here([*arguments, f"--output-dir={out}", "--objective.mask-rate=0.2"])
    assert done.returncode == 1
    assert "  --objective.mask-rate: was 0.3, is 0.2" in done.stderr
    assert "start a new run from its weights with another seed, since the same one repeats documents and masks: " in done.stderr
    assert done.stderr.endswith(f"--init-from {out}/checkpoints/step-00000004 --output-dir {out}-2 --seed 1\n")
    assert written(before, out) == set()


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ("--lanes=2", 2, "--lanes is 2, but the run began with 4 and cannot change it: leave the option out"),
        ("--data.window-bytes=4096", 2, "--data.window-bytes is 4096, but the run began with 9000 and cannot change it"),
        ("--dataset=other", 1, "other is not the corpus this run began with: s.jsonl is missing, t.jsonl is new"),
    ],
)
def test_what_contradicts_the_pinned_corpus_is_refused_as_before_the_end(
    arguments: list[str], out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    write_shard(tmp_path / "other" / "t", documents(40, longest=40), "plain")
    before = files(out)
    done = run_here([*without(arguments, given.partition("=")[0]), f"--output-dir={out}", given])
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert written(before, out) == set()


def test_a_finished_run_whose_corpus_has_moved_is_still_finished(arguments: list[str], out: Path, tmp_path: Path) -> None:
    [place] = [option.partition("=")[2] for option in arguments if option.startswith("--dataset=")]
    moved = shutil.copytree(place, tmp_path / "moved")
    assert again(without(arguments, "--dataset"), out, f"--dataset={moved}").startswith("already finished at step 4;")


@pytest.mark.parametrize(
    ("mode", "sent", "held", "asked"),
    [
        ("online", "4", set(), False),
        ("online", "3", set(), True),
        ("online", None, {1, 2, 3, 4}, True),
        ("offline", None, {1, 2, 3, 4}, False),
        ("offline", None, {1, 2, 4}, True),
        ("offline", "2", {3, 4}, False),
        ("disabled", None, set(), False),
    ],
)
def test_weights_and_biases_is_asked_where_it_lacks_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, sent: str | None, held: set[int], asked: bool
) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3, 4)))
    (tmp_path / "wandb-id").write_text("abc\n")
    if sent is not None:
        (tmp_path / "wandb-sent-step").write_text(f"{sent}\n")
    opened: list[Any] = []
    monkeypatch.setattr(tracking, "_choose_mode", lambda *_: (mode, None))
    monkeypatch.setattr(tracking, "steps_held", lambda *_: held)
    monkeypatch.setattr(tracking.WandbView, "open", lambda *arguments: opened.append(arguments))
    Tracker.open(RunConfig(), tmp_path, config={}, resumed_step=4, report=print, only_missed=True)
    assert bool(opened) == asked
