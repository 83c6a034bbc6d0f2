"""Any number of processes: the same rows, the same losses, one checkpoint; real gloo processes under torchrun."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.corpora import documents, write_shard, write_tiny_bert
from tests.integration.jobs import START_SECONDS, checkpoints, started
from tests.integration.runs_on_ranks import launch, losses, metrics, options, same_rows, train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for i, (style, count) in enumerate([("plain", 150), ("zst", 40), ("zst-multi", 90), ("gz", 1), ("parquet", 120)]):
        write_shard(folder / f"s{i}", documents(count, seed=i), style)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("model"), dropout=0.0)


def test_a_run_over_1_2_4_3_and_1_processes_killed_at_each_change_is_the_run_on_one(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    reached = 0
    for world, workers in ((1, 0), (2, 1), (4, 2), (3, 0)):
        arguments = options(corpus, model, out, "--max-steps=100000", "--save-every=1", f"--workers={workers}")
        with started(launch(world, arguments), out.with_suffix(f".{world}"), forked=True) as running:
            running.until(lambda reached=reached: checkpoints(out)[-1:] > [reached + 1])
            # The end of the block is the kill.
        reached = checkpoints(out)[-1]
    for folder in (out, alone):
        train(1, options(corpus, model, folder, f"--max-steps={reached + 2}"), folder)
    assert same_rows(metrics(out)) == same_rows(metrics(alone))
    assert [line["step"] for line in metrics(out)] == list(range(1, reached + 3))
    assert losses(out) == pytest.approx(losses(alone), rel=1e-4)


@pytest.mark.long
def test_the_loss_does_not_depend_on_the_number_of_processes(corpus: Path, model: Path, tmp_path: Path) -> None:
    alone = tmp_path / "out1"
    for world in (1, 2, 3):
        out = tmp_path / f"out{world}"
        train(world, options(corpus, model, out, "--max-steps=15", f"--micro-batch-size={6 - world}"), out)
        assert same_rows(metrics(out)) == same_rows(metrics(alone))
        assert losses(out) == pytest.approx(losses(alone), rel=1e-4)


@pytest.mark.parametrize(
    ("world", "shards"),
    [
        pytest.param(2, {"zst": 40, "plain": 150, "gz": 1, "parquet": 120}, marks=pytest.mark.long, id="uneven shards"),
        pytest.param(4, {"zst": 60, "zst-multi": 0, "plain": 33}, id="more ranks than shards, one of them empty"),
        pytest.param(4, {"zst": 500}, marks=pytest.mark.long, id="one file"),
        pytest.param(3, {"zst": 0, "plain": 0, "gz": 2}, marks=pytest.mark.long, id="fewer documents than ranks"),
    ],
)
def test_one_epoch_ends_on_every_rank_having_seen_all_documents(
    model: Path, tmp_path: Path, world: int, shards: dict[str, int]
) -> None:
    folder, out = tmp_path / "corpus", tmp_path / "out"
    folder.mkdir()
    for i, (style, count) in enumerate(shards.items()):
        write_shard(folder / f"s{i}", documents(count, seed=i), style)
    train(world, options(folder, model, out, "--max-epochs=1", "--log-every=5"), out)
    stream = json.loads(max((out / "checkpoints").glob("step-*")).joinpath("stream.json").read_text())
    at = stream["fields"].index("documents")
    assert sum(lane["sources"][0][at] for lane in stream["lanes"]) == sum(shards.values())
    assert json.loads((out / "run.json").read_text())["state"] == "finished"


@pytest.mark.long
def test_the_schedule_of_an_epoch_is_the_same_for_a_run_that_is_killed_on_the_way_and_goes_on_with_other_ranks(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    schedule = ("--max-epochs=1", "--save-every=1", "--train.schedule=cosine", "--train.warmup-steps=2", "--run.keep-every=1")
    reached = 0
    for world, workers in ((1, 1), (2, 0)):
        arguments = options(corpus, model, out, *schedule, f"--workers={workers}")
        with started(launch(world, arguments), out.with_suffix(f".{world}"), forked=True) as running:
            running.until(lambda reached=reached: checkpoints(out)[-1:] > [reached + 3])
        reached = checkpoints(out)[-1]
    for folder in (out, alone):
        train(1, options(corpus, model, folder, *schedule), folder)
    assert reached < len(metrics(alone)), "it was killed before its end"
    assert same_rows(metrics(out)) == same_rows(metrics(alone))
    rates, expected = ([line["train/lr"] for line in metrics(folder)] for folder in (out, alone))
    assert rates == expected
    assert rates[2:] == sorted(rates[2:], reverse=True), "it never goes back"
    for step in range(1, len(rates) + 1):
        totals = [json.loads((folder / f"checkpoints/step-{step:08d}/trainer.json").read_text()) for folder in (out, alone)]
        shares = [of_run["totals"]["progress"] for of_run in totals]
        assert shares[0] == shares[1]
        assert 0 <= shares[0] <= 1


def test_more_ranks_than_lanes_train_as_one_does(model: Path, tmp_path: Path) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    corpus = write_shard(tmp_path / "s", documents(100), "zst")
    for world, folder in ((3, out), (1, alone)):
        train(world, options(corpus, model, folder, "--max-epochs=1", "--lanes=2", "--global-batch-size=7"), folder)
    assert same_rows(metrics(out)) == same_rows(metrics(alone))
    assert losses(out) == pytest.approx(losses(alone), rel=1e-4)


def test_more_ranks_than_rows_of_a_step_are_refused_by_one_line(corpus: Path, model: Path, tmp_path: Path) -> None:
    arguments = options(corpus, model, tmp_path / "out", "--max-steps=5", "--global-batch-size=2")
    with started(launch(3, arguments), tmp_path / "log", forked=True) as running:
        assert running.wait(START_SECONDS) != 0
    [line] = running.errors()
    assert "--global-batch-size 2 does not give each of 3 ranks a row: give more, or fewer ranks" in line


def test_a_second_run_on_the_same_folder_is_refused(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = options(corpus, model, out, "--max-steps=100000")
    with started(launch(1, arguments), tmp_path / "first", forked=True) as first:
        first.until((out / "metrics.jsonl").exists)
        with started(launch(2, arguments), tmp_path / "second", forked=True) as second:
            assert second.wait(START_SECONDS) != 0
        [line] = second.errors()
        assert f"is in use by process {first.process.pid}" in line
        assert first.process.poll() is None
