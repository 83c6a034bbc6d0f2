"""`--run.keep-best` keeps the checkpoint of the best evaluation, which no resume prefers and every resume keeps true."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stream_pretrain.training.evaluation import evaluation
from stream_pretrain.training.report.tracking import Tracker
from stream_pretrain.training.state import checkpoint
from stream_pretrain.training.state.background_writer import BackgroundWriter
from stream_pretrain.training.state.checkpoint import Snapshot
from tests.integration.jobs import tiny_options
from tests.training.runs import run_here, run_to_end


@pytest.fixture(scope="module")
def arguments(small_corpus: Path, model: Path) -> list[str]:
    more = ("--data.heldout-fraction=0.2", "--eval.documents=6", "--micro-batch-size=4", "--run.keep-best")
    return tiny_options(small_corpus, model, None, *more)


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the next evaluations find these losses."""

    def find(*losses: float) -> None:
        left: Iterator[float] = iter(losses)
        monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: {"eval/loss": next(left), "eval/accuracy": 0.5})

    return find


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kept(out: Path) -> dict[str, float]:
    """The loss of each checkpoint in OUT/best."""
    return {path.name: trainer(path)["best"]["loss"] for path in sorted((out / "best").iterdir())}


def trainer(checkpoint: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((checkpoint / "trainer.json").read_text())
    return content


def test_the_best_evaluation_has_a_checkpoint_that_an_undisturbed_run_has_at_that_step(
    arguments: list[str], tmp_path: Path, find: Callable[..., None]
) -> None:
    command = [*arguments, "--max-steps=6", "--eval-every=2"]
    find(5.0, 3.0, 2.0, 4.0)
    run_to_end([*command, f"--output-dir={tmp_path / 'every'}", "--save-every=1", "--run.keep-last=9"])
    find(5.0, 3.0, 2.0, 4.0)
    done = run_to_end([*command, f"--output-dir={tmp_path / 'out'}", "--save-every=3", "--run.keep-last=1"])
    assert names(tmp_path / "out" / "checkpoints") == ["step-00000006"]
    assert kept(tmp_path / "out") == {"step-00000004": 2.0}
    saved = [line for line in done.splitlines() if "saved" in line]
    assert [line.partition("step ")[2] for line in saved] == [
        "0: saved best/step-00000000",
        "2: saved best/step-00000002",
        "3: saved checkpoints/step-00000003",
        "4: saved best/step-00000004",
        "6: saved checkpoints/step-00000006",
    ]
    for name in ("model.safetensors", "optimizer.safetensors", "stream.json"):
        [one, other] = [tmp_path / path / "step-00000004" / name for path in ("out/best", "every/checkpoints")]
        assert one.read_bytes() == other.read_bytes(), name
    find(1.0, 1.5)
    begun = run_to_end(
        [*command, "--max-steps=5", f"--resume={tmp_path / 'out/best/step-00000004'}", f"--output-dir={tmp_path / 'new'}"]
    )
    assert "resuming after step 4" in begun


def test_a_resume_forgets_a_better_one_behind_it_and_goes_on_with_the_best_before(
    arguments: list[str], tmp_path: Path, find: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*arguments, f"--output-dir={tmp_path}", "--max-steps=6", "--eval-every=1", "--save-every=4"]
    submit = BackgroundWriter.submit

    def killed(writer: BackgroundWriter, snapshot: Callable[[], Snapshot]) -> None:
        if names(tmp_path)[0] == "best" and "step-00000005" in names(tmp_path / "best"):
            raise ConnectionError("as if killed before the checkpoint of step 6")
        submit(writer, snapshot)
        writer.wait()

    find(5.0, 4.0, 3.0, 6.0, 3.5, 2.5, 9.0)
    with monkeypatch.context() as patched:
        patched.setattr(BackgroundWriter, "submit", killed)
        assert run_here(command).returncode == 1
    assert names(tmp_path / "checkpoints") == ["step-00000004"]
    assert kept(tmp_path) == {"step-00000002": 3.0, "step-00000005": 2.5}
    find(2.9, 3.5)
    resumed = run_to_end(command)
    assert "resuming after step 4" in resumed, "not from the best one, which is newer"
    assert "best/step-00000005 is deleted: the run resumes after step 4, before it" in resumed
    assert kept(tmp_path) == {"step-00000005": 2.9}, "better than 3.0, that of step 2"
    find(2.95, 2.8)
    run_to_end([*command, "--max-steps=8"])
    assert kept(tmp_path) == {"step-00000008": 2.8}, "2.95 is not better than what the starts before found"


def test_another_evaluation_set_begins_it_anew(arguments: list[str], tmp_path: Path, find: Callable[..., None]) -> None:
    command = [*arguments, f"--output-dir={tmp_path}", "--eval-every=2"]
    find(2.0, 3.0)
    run_to_end([*command, "--max-steps=2"])
    (tmp_path / "evaluation.jsonl").unlink()
    find(4.0)
    other = run_to_end([*command, "--max-steps=4", "--eval.documents=5"])
    said = [line.partition("warning: ")[2] for line in other.splitlines() if "keep-best" in line and "warning" in line]
    assert said == ["--run.keep-best starts over on another evaluation set: the next evaluation replaces best/step-00000000"]
    assert kept(tmp_path) == {"step-00000004": 4.0}


def test_where_a_start_would_not_evaluate_again_the_checkpoint_is_there_before_the_record_is(
    arguments: list[str], tmp_path: Path, find: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*arguments, f"--output-dir={tmp_path}", "--save-every=2"]
    assert run_here([*command, "--max-steps=2", "--eval-every=100"]).returncode == 0  # evaluates steps 0 and 2
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    last = {name: value for name, value in json.loads(lines[-1]).items() if not name.startswith("eval/")}
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    find(0.5)
    with monkeypatch.context() as patched:

        def killed(*_: object, **__: object) -> None:
            raise ConnectionError("as if killed before the evaluation of step 2 is in the record")

        patched.setattr(Tracker, "log", killed)
        assert run_here([*command, "--max-steps=4", "--eval-every=2"]).returncode == 1
    assert kept(tmp_path)["step-00000002"] == 0.5
    find(0.5, 0.7)
    run_to_end([*command, "--max-steps=4", "--eval-every=2"])
    assert kept(tmp_path) == {"step-00000002": 0.5}


def test_a_damaged_one_is_named_and_no_reason_to_stop(arguments: list[str], tmp_path: Path, find: Callable[..., None]) -> None:
    command = [*arguments, f"--output-dir={tmp_path}", "--eval-every=2"]
    find(3.0, 2.0)
    run_to_end([*command, "--max-steps=2"])
    weights = tmp_path / "best" / "step-00000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    find(2.5)
    resumed = run_to_end([*command, "--max-steps=4"])
    assert "best/step-00000002/model.safetensors" in resumed
    assert "--run.keep-best continues without it" in resumed
    assert kept(tmp_path) == {"step-00000004": 2.5}


def test_it_needs_evaluations(arguments: list[str], tmp_path: Path) -> None:
    refused = run_here([*arguments, f"--output-dir={tmp_path}", "--max-steps=2", "--eval-every=0"])
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "error: --run.keep-best keeps the checkpoint of the best evaluation and needs --eval-every"
    ]


def test_an_equal_loss_and_one_that_is_no_number_replace_nothing(
    arguments: list[str], tmp_path: Path, find: Callable[..., None]
) -> None:
    find(math.nan, math.inf, 2.0, 2.0, math.nan, -math.inf)
    run_to_end([*arguments, f"--output-dir={tmp_path}", "--max-steps=5", "--eval-every=1"])
    assert kept(tmp_path) == {"step-00000002": 2.0}


def test_a_disk_that_is_full_when_it_is_saved_leaves_the_one_before_and_the_run_goes_on(
    arguments: list[str], tmp_path: Path, find: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*arguments, f"--output-dir={tmp_path}", "--max-steps=4", "--eval-every=1", "--save-every=2"]
    write_tensors = checkpoint._write_tensors

    def full(path: Path, tensors: Any) -> None:
        write_tensors(path, tensors)
        if path.parent.parent.name == "best" and path.parent.name.endswith("step-00000003"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    find(5.0, 4.0, 4.5, 3.0, 3.5)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_write_tensors", full)
        stopped = run_here(command)
    assert stopped.returncode == 75
    [error] = [line for line in stopped.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(
        f"error: {tmp_path}/best/step-00000003 cannot be written (No space left on device): free some space"
    )
    assert kept(tmp_path) == {"step-00000001": 4.0}
    find(3.0, 3.5)
    assert "resuming after step 2" in run_to_end(command)
    assert kept(tmp_path) == {"step-00000003": 3.0}
    assert names(tmp_path / "best") == ["step-00000003"], "nothing is left of what was half written"


def test_a_kill_in_the_middle_of_it_leaves_the_one_before(
    arguments: list[str], tmp_path: Path, find: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*arguments, f"--output-dir={tmp_path}", "--max-steps=3", "--eval-every=1", "--save-every=1"]
    put = checkpoint.put_in_place

    class Killed(BaseException):
        pass

    def killed(final: Path, fill: Callable[[Path], None]) -> None:
        if final.parent.name != "best" or final.name != "step-00000002":
            return put(final, fill)
        (unfinished := final.with_name(f".tmp-{final.name}")).mkdir()
        fill(unfinished)
        raise Killed

    find(5.0, 4.0, 3.0, 3.5)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "put_in_place", killed)
        with pytest.raises(Killed):
            run_here(command)
    assert names(tmp_path / "best") == [".tmp-step-00000002", "step-00000001"]
    find(3.0, 3.5)
    run_to_end(command)
    assert kept(tmp_path) == {"step-00000002": 3.0}
    assert names(tmp_path / "best") == ["step-00000002"]


def test_other_sets_and_weights_begin_it_anew_and_the_same_ones_do_not(
    arguments: list[str], tmp_path: Path, small_corpus: Path, find: Callable[..., None]
) -> None:
    def sets(weight: float) -> str:
        of = [{"name": name, "dataset": str(small_corpus), "weight": share} for name, share in (("a", 1.0), ("b", weight))]
        return f"--eval.sets={json.dumps(of)}"

    command = [*arguments, f"--output-dir={tmp_path}", "--eval-every=2"]
    find(2.0, 2.0, 3.0, 3.0)
    run_to_end([*command, "--max-steps=2", sets(1.0)])
    find(2.5, 2.5)
    same = run_to_end([*command, "--max-steps=4", sets(1.0)])
    assert (kept(tmp_path), "starts over" in same) == ({"step-00000000": 2.0}, False)
    find(2.6, 2.6)
    other = run_to_end([*command, "--max-steps=6", sets(3.0)])
    assert "--run.keep-best starts over on another evaluation set" in other
    assert kept(tmp_path) == {"step-00000006": 2.6}
