"""A run that is killed at any moment continues as if it had never stopped: real processes, real signals."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM, pipeline

from tests.corpora import documents, write_shard
from tests.forks import ENVIRONMENT, trainers
from tests.integration.jobs import lines
from tests.integration.runs import assert_same_run, command, kill_when, last_checkpoint, metrics, options
from tests.training.runs import run_here, run_to_end


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for i, style in enumerate(["plain", "zst", "zst-multi", "gz", "parquet"]):
        write_shard(folder / f"s{i}", documents(120, seed=i), style)
    return folder


def endless(arguments: list[str]) -> list[str]:
    """Without --max-steps: the epochs end the run."""
    return [argument for argument in arguments if not argument.startswith("--max-steps")]


def run(corpus: Path, model: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    done = trainers().run(["-m", "stream_pretrain", *options(corpus, model, out, *more)], ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(corpus, model, out)
    return out


def test_a_run_killed_twice_ends_with_the_same_losses_weights_and_documents_bit_by_bit(
    corpus: Path, model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for step in (10, 20):
        reached = out / "checkpoints" / f"step-{step:08d}"
        killed = kill_when(command(corpus, model, out), signal.SIGKILL, out, reached.exists, random.uniform(0, 0.3))
        assert killed.process.returncode == -signal.SIGKILL
        assert json.loads((out / "run.json").read_text())["state"] == "running"
    done = subprocess.run(command(corpus, model, out), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stderr
    assert_same_run(out, uninterrupted)
    assert json.loads((out / "run.json").read_text())["state"] == "finished"


def test_workers_may_change_at_a_resume_and_sigterm_saves_first(
    corpus: Path, model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    two_workers = command(corpus, model, out, "--workers=2", "--save-every=1000")
    stopped = kill_when(two_workers, signal.SIGTERM, out, lambda: len(lines(out / "metrics.jsonl")) > 4, random.uniform(0, 0.1))
    assert stopped.process.returncode == 75, stopped.stderr
    assert "stopped by SIGTERM" in stopped.stderr
    before = json.loads((out / "run.json").read_text())
    assert before["state"] == "preempted"
    assert before["step"] > 3
    run(corpus, model, out, "--workers=0")
    assert_same_run(out, uninterrupted)


def test_a_corpus_that_was_moved_is_read_where_it_lies_now(
    corpus: Path, model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out, here, there = tmp_path / "out", tmp_path / "here", tmp_path / "there"
    shutil.copytree(corpus, here)
    kill_when(command(here, model, out), signal.SIGKILL, out, (out / "checkpoints/step-00000010").exists, 0)
    here.rename(there)
    run(there, model, out)
    assert_same_run(out, uninterrupted)
    (source,) = json.loads((last_checkpoint(out) / "corpus.json").read_text())["sources"]
    assert source["dataset"] == str(there)
    assert [shard["url"] for shard in source["shards"]] == sorted(map(str, there.iterdir()))


def test_another_corpus_is_refused_by_the_names_of_its_shards(
    corpus: Path, model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_shard(other / "t0", documents(9), "plain")
    before = (uninterrupted / "run.json").read_text()
    done = run_here([*options(other, model, uninterrupted), "--max-steps=100"])  # it has reached the 80 of its own
    assert done.returncode == 1
    assert (uninterrupted / "run.json").read_text() == before
    assert done.stderr.splitlines()[-1] == (
        f"error: {other} is not the corpus this run began with: s0.jsonl is missing, s1.jsonl.zst is missing, "
        "s2.jsonl.zst is missing and 3 more; restore it or start a new run"
    )


def test_the_final_model_fills_masks(uninterrupted: Path) -> None:
    _, info = AutoModelForMaskedLM.from_pretrained(uninterrupted / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    fill = pipeline("fill-mask", model=str(uninterrupted / "model"))
    assert len(fill("doc [MASK] bara")) == 5


def test_metrics_have_the_promised_keys(uninterrupted: Path) -> None:
    lines = metrics(uninterrupted)
    assert [line["step"] for line in lines] == list(range(81))
    assert {
        "train/loss", "train/lr", "train/grad_norm", "train/tokens", "train/documents", "eval/loss"
    } <= lines[10].keys()  # fmt: skip
    assert lines[80]["eval/loss"] < lines[0]["eval/loss"]


def test_what_must_not_change_is_refused_with_the_command_for_a_new_run(corpus: Path, model: Path, uninterrupted: Path) -> None:
    done = run_here(options(corpus, model, uninterrupted, "--seed=1", "--max-steps=50"))
    assert done.returncode == 1
    assert "--train.seed: was 0, is 1" in done.stderr
    assert "--init-from" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_epoch_ends_by_itself_having_seen_every_document(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rarely = ("--log-every=1000", "--eval-every=1000", "--save-every=1000", f"--eval.dataset={corpus}")
    run_to_end(endless(options(corpus, model, out, "--max-epochs=1", "--data.heldout-fraction=0", *rarely)))
    before, first, last = metrics(out)
    assert (before["step"], first["step"]) == (0, 1)
    assert last["train/documents"] == 600
    assert last["eval/loss"] < before["eval/loss"]
    assert json.loads((out / "run.json").read_text())["state"] == "finished"


def test_a_damaged_shard_that_is_skipped_is_recorded_even_when_no_row_follows(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    good = write_shard(folder / "a", documents(60), "zst")
    (folder / "b.jsonl.zst").write_bytes(write_shard(folder / "b", documents(60, seed=1), "zst").read_bytes()[:-900])
    assert good.exists()
    skip = ("--data.on-bad-shard=skip", "--lanes=1", "--max-epochs=1", "--data.heldout-fraction=0", "--eval-every=0")
    for said in (1, 0):  # the second time there is nothing left to train, and nothing is named twice
        done = run_to_end(endless(options(folder, model, tmp_path / "out", *skip)))
        assert done.count("skipped the rest of 1 damaged stripe: OUT/quarantine.jsonl names them") == said
        records = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
        assert [record["shard"] for record in records] == ["b.jsonl.zst"]
    assert "the shard was cut short" in records[0]["why"]


@pytest.mark.parametrize("save_every", [1, 1000])
def test_what_is_skipped_behind_the_last_step_is_named_once_however_often_the_run_is_started(
    save_every: int, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in documents(4)) + 60 * " " + "\n" + 3 * "no JSON\n"
    )
    rows = ("--global-batch-size=1", "--lanes=1", "--data.window-bytes=1090", "--data.max-bad-fraction=1")
    once = (*rows, "--max-epochs=1", "--data.heldout-fraction=0", "--eval-every=0", f"--save-every={save_every}")
    for _ in range(3):
        run_to_end(endless(options(tmp_path / "corpus", model, tmp_path / "out", *once)))
        records = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
        assert [record["why"] for record in records] == ["not JSON"] * 3


def test_a_damaged_shard_that_is_skipped_gives_the_evaluation_set_what_lies_before_the_damage(
    model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    whole = write_shard(folder / "a", documents(300), "zst").read_bytes()
    (folder / "a.jsonl.zst").write_bytes(whole[:-900])
    write_shard(folder / "b", documents(300, seed=1), "zst")
    skip = ("--data.on-bad-shard=skip", "--lanes=2", "--max-steps=2", "--eval.documents=500")
    run_to_end(options(folder, model, tmp_path / "out", *skip))
    kept = (tmp_path / "out" / "evaluation.jsonl").read_text()
    assert "doc 0010" in kept, "held out of the shard behind the damaged one"
    other = run_to_end(options(folder, model, tmp_path / "out", *skip, "--eval.documents=7", "--max-steps=3"))
    assert "--eval.documents was 500, is 7" in other
    assert (tmp_path / "out" / "evaluation.jsonl").read_text() == kept


def test_weights_that_overflow_in_an_update_reach_no_checkpoint(corpus: Path, model: Path, tmp_path: Path) -> None:
    too_fast = ("--train.learning-rate=1e39", "--max-steps=1", "--train.warmup-steps=0", "--eval-every=0")
    done = run_here(options(corpus, model, tmp_path, *too_fast))
    assert done.returncode == 1
    assert "the weights are not finite after step 1: lower --train.learning-rate" in done.stderr
    assert not list((tmp_path / "checkpoints").glob("step-*"))
    assert not (tmp_path / "model").exists()


def test_raising_max_steps_says_what_the_learning_rate_becomes(corpus: Path, model: Path, tmp_path: Path) -> None:
    for done in (
        run_here(options(corpus, model, tmp_path / "out", "--max-steps=4")),
        longer := run_here(options(corpus, model, tmp_path / "out", "--max-steps=8", "--train.warmup-steps=0")),
    ):
        assert done.returncode == 0, done.stderr
    assert "--max-steps was 4, is 8: the learning rate continues at 5.00e-4, not 0\n" in longer.stderr
