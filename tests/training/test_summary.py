"""The lines about evaluations, and the summary at the end of a run."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import pytest

from stream_pretrain.arguments import parse
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.lanes.pinning import pin
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_state import first_cursors
from stream_pretrain.training.files.records import append, best_evaluation
from stream_pretrain.training.report.summary import HeldOut, held_out_in_words, summary
from stream_pretrain.training.state.totals import Totals
from stream_pretrain.units import human_count
from tests.command_lines import with_last
from tests.corpora import documents, json_lines, word_tokenizer
from tests.integration.jobs import tiny_options
from tests.training.runs import run_to_end


def test_a_held_out_loss_comes_with_its_perplexity_and_the_best_one() -> None:
    found = HeldOut(2.2, 500)
    assert held_out_in_words(found, None) == "held-out loss 2.2000, perplexity 9.03"
    assert held_out_in_words(found, found) == "held-out loss 2.2000, perplexity 9.03, the best so far"
    assert held_out_in_words(found, HeldOut(2.1, 1400)) == "held-out loss 2.2000, perplexity 9.03, best 2.1000 at step 1,400"


def test_a_perplexity_is_readable_whatever_it_is() -> None:
    losses = (0.0, 4.6, 4.7, 10.3, 40.0, 900.0, math.inf, math.nan)
    shown = [held_out_in_words(HeldOut(loss, 1), None).split("perplexity ")[1] for loss in losses]
    assert shown == ["1.00", "99.48", "110", "30k", "2e+17", "inf", "inf", "nan"]


def test_the_best_evaluation_of_a_record_is_that_of_all_starts(tmp_path: Path) -> None:
    record = tmp_path / "metrics.jsonl"
    assert best_evaluation(record) is None
    append(record, [{"step": 0, "eval/loss": None}, {"step": 1, "train/loss": 1.0}])
    assert best_evaluation(record) is None
    append(record, [{"step": 2, "eval/loss": 2.5}, {"step": 3, "eval/loss": 2.25}, {"step": 4, "eval/loss": 2.25}])
    append(record, [{"step": 5, "train/loss": 1.0, "eval/loss": 2.75}])
    assert best_evaluation(record) == (2.25, 3)


def test_a_summary_tells_this_start_from_the_run() -> None:
    before = Totals(step=9500, tokens=2_400_000_000)
    totals = Totals(step=10_000, tokens=2_600_000_000, documents=1_230_000, skipped=3, empty=0, filtered=4567)
    best = HeldOut(2.1, 9600)
    assert list(summary(totals, before, 870.0, 2.34567, HeldOut(2.2, 10_000), best)) == [
        "steps 9,501-10,000 in 14m30s (230k tok/s); 2.6G tokens, 1.2M documents in all",
        "loss 2.3457, held-out loss 2.2000, perplexity 9.03, best 2.1000 at step 9,600",
        "documents not trained on: 3 skipped, 4,567 filtered",
    ]


def test_the_figures_of_a_run_before_and_behind_it_are_those_of_its_rows(model: Path, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(json_lines([*documents(120), "", "x"]) + b"no JSON\n")
    arguments = tiny_options(
        tmp_path / "s.jsonl", model, tmp_path / "out", "--max-epochs=1", "--save-every=8", "--data.max-bad-fraction=1",
        "--data.min-characters=2", "--global-batch-size=8",
    )  # fmt: skip
    lines = run_to_end(arguments)
    config = parse(with_last([*arguments, "--workers=0"]))
    pinned = pin(config, world=1)
    with StepStream(stream_plan(config, word_tokenizer(), pinned), first_cursors(pinned.lanes, 1)) as stream:
        steps = list(itertools.takewhile(lambda step: len(step.trained), stream))
    tokens = sum(step.trained.tokens for step in steps)
    read = {tuple(origin) for step in steps for origin in step.origins.tolist()}
    assert f"\nsteps 1-{len(steps)} in " in lines
    assert f" tok/s); {human_count(tokens)} tokens, {len(read)} documents in all\n" in lines
    assert "\ndocuments not trained on: 1 skipped, 2 filtered\n" in lines
    last = json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[-1])
    assert f"\nloss {last['train/loss']:.4f}\n" in lines
    [about] = re.findall(r"\ncorpus +~([0-9.]+)k tokens, 1 epoch\n", lines)
    assert float(about) * 1000 == pytest.approx(tokens, rel=0.1)
    [told, kept, all_of_them] = re.findall(r"([0-9]+) kB x ([0-9]) kept = ([0-9]+) kB", lines)[0]
    checkpoints = list((tmp_path / "out/checkpoints").glob("step-*"))
    assert (len(checkpoints), int(all_of_them)) == (int(kept), pytest.approx(int(kept) * int(told), abs=2))
    files = [path for folder in checkpoints for path in folder.iterdir() if path.name != "stream.json"]
    assert 1000 * int(all_of_them) == pytest.approx(sum(path.stat().st_size for path in files), rel=0.1)


def test_a_summary_says_no_more_than_there_was() -> None:
    totals = Totals(step=40, tokens=20_000, documents=90)
    assert list(summary(totals, Totals(), 20.0, 2.5, None, None)) == [
        "steps 1-40 in 20 s (1.0k tok/s); 20k tokens, 90 documents in all",
        "loss 2.5000",
    ]
    assert next(summary(totals, Totals(step=39), 20.0, 2.5, None, None)).startswith("step 40 in 20 s ")
    assert list(summary(totals, Totals(step=20), 20.0, 2.5, None, HeldOut(2.25, 10)))[1] == (
        "loss 2.5000, best held-out loss 2.2500 at step 10"
    )
