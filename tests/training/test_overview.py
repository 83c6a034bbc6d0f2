"""The block before the first step says what the run is going to do, on a terminal of 80 columns and 24 lines."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stream_pretrain.config import EvalConfig, EvalSetConfig, SourceConfig, WeightChange
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.start.setup import Setup
from stream_pretrain.training.state.totals import Totals
from stream_pretrain.training.steps import overview as module
from stream_pretrain.training.steps.corpus_estimate import CorpusEstimate
from stream_pretrain.training.steps.overview import lack_of_space, overview
from tests.corpora import documents, write_shard, write_tiny_bert
from tests.integration.jobs import tiny_options
from tests.training.runs import prepared, run_to_end, tiny_run

GB = 10**9
FASTER = ": another --micro-batch-size may be faster"
ESTIMATE = CorpusEstimate(tokens=(2e6,), steps=1000)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp("run")
    write_shard(folder / "s", documents(50), "plain")
    with prepared(tiny_run(folder, write_tiny_bert(folder / "model"), folder / "out", max_steps=1000)) as setup:
        yield setup


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9 * GB, 0, 5 * GB))  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "_checkpoint_bytes", lambda _: GB)


def changed(setup: Setup, *, world: int = 1, **options: Any) -> Setup:
    """The run with other options, of the groups train, run or eval."""
    groups = {group: replace(getattr(setup.config, group), **values) for group, values in options.items()}
    plan = setup.plan
    if batch := options.get("train", {}).get("global_batch_size"):
        plan = replace(plan, layout=replace(plan.layout, global_batch_size=batch))
    return replace(setup, config=replace(setup.config, **groups), plan=plan, ranks=Ranks(0, world))


def said(setup: Setup, label: str, estimate: CorpusEstimate = ESTIMATE) -> str:
    """What the block says under a label, as one line."""
    lines = list(overview(setup, estimate))
    assert all(len(line) <= 79 or line.split()[-1].startswith("/") for line in lines)
    [first] = [number for number, line in enumerate(lines) if line.startswith(f"{label:13}  ")]
    text = lines[first][15:]
    for line in lines[first + 1 :]:
        if not line.startswith(" " * 15):
            break
        text += line[14:]
    return text


def test_the_whole_block_stands_before_the_first_step(model: Path, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s", documents(200), "zst")
    out = tmp_path / "out"
    done = run_to_end(tiny_options(shard, model, out, "--max-steps=34", "--log-every=1"))
    lines = done.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("batch  "))
    end = next(number for number, line in enumerate(lines) if line.startswith("step 1/34"))
    labels = [line[:13].strip() for line in lines[begin:end] if line[:1] != " "]
    assert labels == ["batch", "corpus", "learning rate", "devices", "checkpoints", "evaluation", "output"]
    assert end - begin <= 16, "it leaves room on 24 lines"
    assert "resolving the corpus… 1 shard (1 JSON lines), " in done
    again = run_to_end(tiny_options(shard, model, out, "--max-steps=34"))
    assert "batch  " not in again, "a run that is at its end does nothing"


def test_the_batch_and_the_run_are_counted_in_tokens(setup: Setup) -> None:
    assert said(setup, "batch") == "8 rows of 64 = 512 tokens a step; 1,000 steps = 512k tokens"
    once = changed(setup, train={"max_steps": 1})
    assert said(once, "batch", replace(ESTIMATE, steps=1)) == "8 rows of 64 = 512 tokens a step; 1 step = 512 tokens"
    epochs = changed(setup, train={"max_steps": None, "max_epochs": 2})
    sparse = "8 rows of 64 = 512 tokens a step (40% padding); 1,000 steps = 512k tokens"
    assert said(setup, "batch", replace(ESTIMATE, fill=0.6)) == sparse
    known = CorpusEstimate((2e6,), 7812.5)
    assert said(epochs, "batch", known) == "8 rows of 64 = 512 tokens a step; ~7,812 steps = ~4.0M tokens"
    assert said(epochs, "batch", CorpusEstimate((None,), None)) == "8 rows of 64 = 512 tokens a step, 2 epochs"


def test_the_corpus_is_estimated_and_how_often_it_is_read(setup: Setup) -> None:
    assert said(setup, "corpus") == "~2.0M tokens, 0.26 epochs"
    assert said(setup, "corpus", CorpusEstimate((1000.0,), 1000)) == "~1.0k tokens, 512 epochs"
    unknown = "unknown tokens, since the store does not report the size of every shard"
    assert said(setup, "corpus", CorpusEstimate((None,), 1000)) == unknown


def test_every_source_of_a_mixture_is_read_by_its_shares_in_the_run(model: Path, tmp_path: Path) -> None:
    for name in "abcd":
        write_shard(tmp_path / name, documents(50), "plain")
    config = tiny_run(tmp_path, model, tmp_path / "out", max_steps=1000)
    weights = {"a": 3.0, "b": 1.0, "c": 0.0, "d": 0.0}
    sources = tuple(SourceConfig(name, str(tmp_path / f"{name}.jsonl"), weight) for name, weight in weights.items())
    later = (WeightChange(500, {"a": 0.0, "c": 1.0}),)
    config = replace(config, data=replace(config.data, dataset=None, sources=sources, weight_schedule=later))
    with prepared(config) as setup:
        text = said(setup, "corpus", CorpusEstimate((192e3, 64e3, 1e6, None), 1000))
    assert text == "a: ~192k tokens, 1 epoch; b: ~64k tokens, 3 epochs; c: ~1.0M tokens, 0.13 epochs; and 1 source more"


def test_what_auto_has_chosen_is_said(setup: Setup) -> None:
    with_auto = replace(setup.config, train=replace(setup.config.train, learning_rate="auto", warmup_steps="auto"))
    chosen = changed(setup, train={"learning_rate": 5e-4, "warmup_steps": 60})
    assert said(chosen, "learning rate") == "0.0005 (auto), warm-up 60 steps, wsd: last 20% decays"
    assert said(replace(chosen, config_with_auto=with_auto), "learning rate").startswith(
        "0.0005 (auto), warm-up 60 steps (auto), "
    )
    given = changed(setup, train={"learning_rate": 3e-4, "warmup_steps": 1, "schedule": "linear", "final_learning_rate": 1e-5})
    given = replace(given, config_with_auto=given.config)
    assert said(given, "learning rate") == "0.0003, warm-up 1 step, linear decay to 1e-05"
    assert said(changed(setup, train={"schedule": "constant"}), "learning rate").endswith(", then constant")


@pytest.mark.parametrize(
    ("world", "batch", "micro_batch", "expected"),
    [
        (1, 256, 32, "cpu in fp32; a step is 8 micro-batches of 32 rows, no padding"),
        (1, 8, 32, "cpu in fp32; a step is 1 micro-batch of 8 rows, no padding"),
        (2, 256, 32, "cpu in fp32; a step is 4 micro-batches of 32 rows on each, no padding"),
        (1, 24, 10, "cpu in fp32; a step is 3 micro-batches of 10 rows, 20% of it padding" + FASTER),
    ],
)
def test_micro_batches_and_their_padding_are_counted(
    setup: Setup, world: int, batch: int, micro_batch: int, expected: str
) -> None:
    train = {"global_batch_size": batch, "micro_batch_size": micro_batch}
    assert said(changed(setup, world=world, train=train), "devices") == expected


def test_checkpoints_are_set_against_the_free_disk(setup: Setup, tmp_path: Path) -> None:
    every = changed(setup, run={"save_every": 100, "keep_last": 2})
    assert said(every, "checkpoints") == "every 100 steps, 1.0 GB x 2 kept = 2.0 GB; 5.0 GB free"
    assert lack_of_space(every, ESTIMATE) is None
    once = changed(setup, run={"save_every": 1000})
    assert said(once, "checkpoints") == "every 1,000 steps, 1.0 GB x 1 kept = 1.0 GB; 5.0 GB free"
    many = changed(setup, run={"save_every": 100, "keep_last": 5, "keep_every": 500})
    assert said(many, "checkpoints") == (
        "every 100 steps, 1.0 GB x 7 kept = 7.0 GB, and every 500 steps one for good; 5.0 GB free"
    )
    assert lack_of_space(many, ESTIMATE) == (
        f"the checkpoints need 8.0 GB more, and {setup.out.path} has 5.0 GB free: "
        "free some space, lower --run.keep-last, or give another --output-dir"
    )
    assert lack_of_space(changed(many, run={"keep_last": 1, "keep_every": 100}), ESTIMATE) == (
        f"the checkpoints need 11 GB more, and {setup.out.path} has 5.0 GB free: free some space or give another --output-dir"
    )


def test_one_line_says_how_to_evaluate_where_nothing_does(setup: Setup) -> None:
    def line(of: Setup, steps: float) -> str:
        [found] = [line for line in overview(of, CorpusEstimate((1e6,), steps)) if "--eval-every" in line]
        return found

    assert line(setup, 1e6) == "evaluation     none: give --eval-every 1000 --data.heldout-fraction 0.01"
    later = replace(setup, totals=Totals(step=5))
    assert line(later, 10) == "evaluation     none: give --eval-every 1 --eval.dataset PATH"

    holding_out = replace(setup, config=replace(setup.config, data=replace(setup.config.data, heldout_fraction=0.1)))
    assert line(holding_out, 1e6) == "evaluation     none: give --eval-every 1000, for the held-out documents"

    def evaluated(**options: Any) -> str:
        return said(replace(setup, config=replace(setup.config, eval=EvalConfig(**options))), "evaluation")

    assert evaluated(every=1) == "every 1 step, on up to 500 held-out documents"
    assert evaluated(every=50, split="test") == "every 50 steps, on up to 500 documents of split test"
    secret = evaluated(every=50, documents=60, dataset="https://host/a.jsonl?signature=secret")
    assert secret == "every 50 steps, on up to 60 documents of https://host/a.jsonl"


def test_of_many_evaluation_sets_the_first_are_named(setup: Setup) -> None:
    def evaluated_on(count: int) -> str:
        sets = tuple(EvalSetConfig(name=f"set{number}", dataset="org/a") for number in range(count))
        return said(replace(setup, config=replace(setup.config, eval=EvalConfig(every=50, sets=sets))), "evaluation")

    three = "every 50 steps, on up to 500 documents of each of set0, set1, set2"
    assert [evaluated_on(count) for count in (3, 4, 30)] == [three, f"{three} and 1 more", f"{three} and 27 more"]


def test_the_best_evaluation_is_part_of_what_the_disk_must_hold(setup: Setup) -> None:
    best = changed(setup, run={"save_every": 100, "keep_best": True}, eval={"every": 100})
    assert said(best, "checkpoints") == (
        "every 100 steps, 1.0 GB x 5 kept = 5.0 GB, 2 of them for --run.keep-best; 5.0 GB free"
    )
    assert "need 6.0 GB more" in str(lack_of_space(best, ESTIMATE))
