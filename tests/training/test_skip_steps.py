"""`--train.skip-steps` passes over rows: read, recorded, and not trained on; later steps have the rows that they had."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from stream_pretrain import cli
from stream_pretrain.data.lanes.step_rows import StepRows
from tests.integration.jobs import lines, tiny_options
from tests.training.runs import run_here, run_to_end

Rows = dict[int, tuple[str, list[tuple[int, int]]]]
"""By step: a digest of ids and labels, and the documents (epoch, offset)."""


@pytest.fixture(scope="module")
def arguments(small_corpus: Path, model: Path) -> list[str]:
    return tiny_options(small_corpus, model, None, "--max-steps=6", "--micro-batch-size=4")


def watched(patch: pytest.MonkeyPatch, *, killed_in: int | None = None) -> Rows:
    """What the loop reads from now on, until a step in which it is killed."""
    rows: Rows = {}
    advance = StepRows.advance

    def recorded(read: StepRows, cursors: Any) -> None:
        if read.step + 1 == killed_in:
            raise ConnectionError("as if killed")
        advance(read, cursors)
        digest = hashlib.sha256(read.trained.input_ids.tobytes() + read.trained.labels.tobytes()).hexdigest()
        rows[read.step + 1] = digest, sorted({(one.epoch, one.offset) for one in read.segments()})

    patch.setattr(StepRows, "advance", recorded)
    return rows


@pytest.fixture(scope="module")
def undisturbed(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        rows = watched(patch)
        run_to_end([*arguments, f"--output-dir={out}", "--save-every=2", "--keep-last=9"])
    return out, rows


@pytest.fixture(scope="module")
def skipping(
    arguments: list[str], undisturbed: tuple[Path, Rows], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Rows, str]:
    out = tmp_path_factory.mktemp("skipping")
    with pytest.MonkeyPatch.context() as patch:
        rows = watched(patch)
        done = run_here([*arguments, *begin(undisturbed[0]), f"--output-dir={out}", "--save-every=1", "--keep-last=9"])
    assert done.returncode == 0, done.stderr
    return out, rows, done.stderr


def begin(whole: Path) -> list[str]:
    return [f"--resume={whole / 'checkpoints/step-00000002'}", "--train.skip-steps=3:4"]


def trainer(out: Path, step: int) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / f"checkpoints/step-{step:08}/trainer.json").read_text())
    return content


def weights(out: Path, step: int) -> bytes:
    return (out / f"checkpoints/step-{step:08}/model.safetensors").read_bytes()


def test_the_steps_behind_have_the_rows_and_learning_rates_of_the_undisturbed_run(
    undisturbed: tuple[Path, Rows], skipping: tuple[Path, Rows, str]
) -> None:
    (whole, expected), (out, rows, said) = undisturbed, skipping
    assert rows == {step: expected[step] for step in (3, 4, 5, 6)}
    for step in (4, 6):
        streams = [(run / f"checkpoints/step-{step:08}/stream.json").read_bytes() for run in (whole, out)]
        assert streams[0] == streams[1], step
    before, after = ({line["step"]: line for line in lines(run / "metrics.jsonl")} for run in (whole, out))
    assert [after[step]["train/lr"] for step in (5, 6)] == [before[step]["train/lr"] for step in (5, 6)]
    assert sorted(after) == [5, 6], "nothing was trained in steps 3 and 4"
    assert after[6]["train/documents"] == before[6]["train/documents"]
    assert weights(out, 4) == weights(out, 3) == weights(whole, 2)
    assert weights(out, 5) != weights(out, 4)
    assert after[5]["train/tokens"] < before[5]["train/tokens"], "tokens are those trained on"
    assert "step 3: passed over, for --train.skip-steps" in said


def test_the_documents_stand_in_a_record_and_the_gap_in_the_checkpoint(skipping: tuple[Path, Rows, str]) -> None:
    out, rows, _ = skipping
    recorded = {
        line["step"]: [(one["epoch"], one["offset"]) for one in line["documents"]] for line in lines(out / "passed_over.jsonl")
    }
    assert recorded == {step: rows[step][1] for step in (3, 4)}
    assert trainer(out, 6)["skip_steps"] == ["3:4"]
    assert trainer(out, 3)["totals"]["passed_over"] == len(rows[3][1])
    assert trainer(out, 6)["totals"]["passed_over"] == len(rows[3][1]) + len(rows[4][1])


@pytest.mark.parametrize(("killed_in", "save_every"), [(4, 1), (3, 100), (6, 100)])
def test_a_later_start_keeps_the_gap_without_the_option(
    arguments: list[str],
    undisturbed: tuple[Path, Rows],
    skipping: tuple[Path, Rows, str],
    tmp_path: Path,
    killed_in: int,
    save_every: int,
) -> None:
    command = [*arguments, f"--output-dir={tmp_path}", f"--save-every={save_every}"]
    with pytest.MonkeyPatch.context() as patch:
        watched(patch, killed_in=killed_in)
        assert run_here([*command, *begin(undisturbed[0])]).returncode == 1
    run_to_end(command)
    assert weights(tmp_path, 6) == weights(skipping[0], 6)
    assert (tmp_path / "passed_over.jsonl").read_bytes() == (skipping[0] / "passed_over.jsonl").read_bytes()
    again = run_here([*command, *begin(undisturbed[0])])
    assert (again.returncode, "already finished at step 6" in again.stderr) == (0, True)
    assert "skip-steps" not in (tmp_path / "config.yaml").read_text()


def test_where_the_run_has_trained_on_them_the_command_for_a_new_run_is_told(
    arguments: list[str], undisturbed: tuple[Path, Rows], skipping: tuple[Path, Rows, str]
) -> None:
    out = undisturbed[0]
    refused = run_here([*arguments, f"--output-dir={out}", "--train.skip-steps=3:4"])
    assert refused.returncode == 1
    [error] = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    said, _, command = error.partition("; begin a new run before it: ")
    assert said == "error: --train.skip-steps 3:4: the run is at step 6, and has trained on step 3"
    words = shlex.split(command)
    assert words[-4:] == ["--resume", f"{out}/checkpoints/step-00000002", "--output-dir", f"{out}-2"]
    run_to_end([*words[1:], "--save-every=1"])
    assert weights(Path(f"{out}-2"), 6) == weights(skipping[0], 6)


def test_more_steps_are_passed_over_from_the_middle_of_a_gap_on(arguments: list[str], tmp_path: Path) -> None:
    command = [*arguments, f"--output-dir={tmp_path}", "--save-every=1"]
    run_to_end([*command, "--train.skip-steps=2:4", "--max-steps=3"])
    run_to_end([*command, "--train.skip-steps=3:5", "--max-steps=6"])
    assert [line["step"] for line in lines(tmp_path / "passed_over.jsonl")] == [2, 3, 4, 5]
    assert trainer(tmp_path, 6)["skip_steps"] == ["2:4", "3:5"]
    refused = run_here([*command, "--train.skip-steps=4:6", "--max-steps=6"])
    assert "--train.skip-steps 4:6: the run is at step 6, and has trained on step 6; begin" in refused.stderr


def test_a_checkpoint_behind_the_first_step_is_refused(
    arguments: list[str], undisturbed: tuple[Path, Rows], tmp_path: Path
) -> None:
    resume = f"--resume={undisturbed[0] / 'checkpoints/step-00000004'}"
    refused = run_here([*arguments, f"--output-dir={tmp_path / 'out'}", resume, "--train.skip-steps=3:4"])
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == (
        "error: --train.skip-steps 3:4: the run is at step 4, and has trained on step 3; "
        f"{tmp_path / 'out'} has no checkpoint before it: give --resume one that is, and another --output-dir"
    )


def test_the_command_for_a_run_on_other_rows_does_not_skip_them(arguments: list[str], undisturbed: tuple[Path, Rows]) -> None:
    refused = run_here([*arguments, f"--output-dir={undisturbed[0]}", "--seed=1", "--train.skip-steps=7:8"])
    command = refused.stderr.splitlines()[-1]
    assert "--init-from" in command
    assert "skip-steps" not in command


@pytest.mark.parametrize("words", ["3", "4:3", "0:3", "a:b", "3-4"])
def test_other_words_are_refused(arguments: list[str], tmp_path: Path, words: str) -> None:
    refused = run_here([*arguments, f"--output-dir={tmp_path / 'out'}", f"--train.skip-steps={words}"])
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == (f"error: --train.skip-steps {words}: give A:B, such as 900:1000, both included")


def test_the_ledger_says_that_a_step_was_passed_over(
    skipping: tuple[Path, Rows, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, rows, _ = skipping

    def asked(*options: str) -> Any:
        assert cli.main(["ledger", str(out), *options, "--workers=0", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    for step in (3, 4, 5):
        told = asked(f"--step={step}")
        assert [(one["epoch"], one["offset"]) for one in told["documents"]] == rows[step][1]
        assert told.get("passed_over", False) is (step != 5)
    first = asked("--step=3")["documents"][0]
    told = asked(f"--ledger.document={first['shard']}:{first['offset']}", "--ledger.steps=3:3")
    assert [(one["step"], one["passed_over"]) for one in told["seen"]] == [(3, True)]
    assert cli.main(["ledger", str(out), "--step=4", "--workers=0"]) == 0
    assert ", passed over for --train.skip-steps: the run did not train on them" in capsys.readouterr().out
    exported = asked(f"--ledger.export={tmp_path / 'all.parquet'}")
    trained = asked(f"--ledger.export={tmp_path / 'part.parquet'}", "--ledger.steps=5:6")
    assert exported["records"] == trained["records"] > 0
