"""Every figure of `inspect` beside the run that follows: they agree within the error that it prints."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard

from stream_pretrain import cli
from stream_pretrain.arguments import parse
from stream_pretrain.config import Config
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.lanes import source_lane
from stream_pretrain.data.lanes.pinning import pin
from stream_pretrain.data.lanes.row_layout import part_of
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors, first_cursors
from stream_pretrain.data.rows.train_rows import TrainRows
from stream_pretrain.inspection.extrapolation import Extrapolation
from stream_pretrain.inspection.sample import SourceSample
from stream_pretrain.model.flops import peak_bf16_flops
from stream_pretrain.model.loading import sized_model
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.steps.metrics import StepMetrics, useful_flops
from stream_pretrain.units import human_bytes, human_count, human_duration
from tests.corpora import documents, json_lines, word_tokenizer, write_shard
from tests.integration.http_server import Server, serve
from tests.training.runs import run_here, write_tiny_modernbert


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_modernbert(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six shards of 150 documents."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(6):
        write_shard(folder / f"{number}", documents(150, seed=number), "zst")
    return f"{folder}/*.zst"


@pytest.fixture(scope="module")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """450 shards of two documents, which are read and packed in bundles."""
    folder = tmp_path_factory.mktemp("bundles")
    texts = [documents(150, seed=number) for number in range(6)]
    for number in range(450):
        (folder / f"{number:03}.jsonl").write_bytes(json_lines(texts[number // 75][number % 75 * 2 :][:2]))
    return f"{folder}/*.jsonl"


def inspected(capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    assert cli.main(["inspect", *options, "--workers=0", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def read_rows(config: Config) -> Iterator[TrainRows]:
    """The rows of each step of a run, read without a model."""
    pinned = pin(config, world=1)
    plan = stream_plan(replace(config, data=replace(config.data, workers=0)), word_tokenizer(), pinned)
    with StepStream(plan, first_cursors(pinned.lanes, len(pinned.sources))) as stream:
        while len(rows := next(stream).trained):
            yield rows


@pytest.mark.parametrize(
    ("shards", "length", "packing", "most_bytes"),
    [
        ("corpus", 64, "best_fit", 10**8),
        ("corpus", 64, "best_fit", 60_000),
        ("corpus", 64, "concat", 30_000),
        ("corpus", 32, "none", 30_000),
        ("corpus", 128, "best_fit", 90_000),
        ("small_shards", 256, "best_fit", 10**8),
        ("small_shards", 64, "best_fit", 30_000),
    ],
)
def test_tokens_rows_and_steps_are_those_of_an_epoch_within_the_error_that_is_told(
    shards: str,
    length: int,
    packing: str,
    most_bytes: int,
    model: str,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [
        *(f"--dataset={request.getfixturevalue(shards)}", f"--model.tokenizer={model}", f"--sequence-length={length}"),
        *(f"--data.packing={packing}", "--global-batch-size=16", "--max-epochs=1", "--lanes=4"),
    ]
    told = inspected(capsys, *options, f"--inspect.max-read-bytes={most_bytes}")
    [source], plan = told["sources"], told["plan"]
    steps = list(read_rows(parse(options)))
    rows, tokens = sum(map(len, steps)), sum(step.tokens for step in steps)
    segments = sum(int((step.segment_tokens > 0).sum()) for step in steps)
    assert source["sample"]["is_whole"] == (most_bytes == 10**8)
    assert source["documents"] == pytest.approx(900, rel=max(1e-9, source["documents_error"]))
    assert source["tokens"] == pytest.approx(tokens, rel=max(1e-9, source["tokens_error"]))
    assert source["rows"] == pytest.approx(rows, rel=source["rows_error"])
    assert abs(plan["steps"] - len(steps)) <= 1 + plan["steps"] * plan["steps_error"]
    assert plan["steps_error"] == source["rows_error"] <= (0.04 if source["sample"]["is_whole"] else 0.25)
    assert plan["tokens_of_run"] == pytest.approx(source["tokens"])
    assert plan["epochs"] == [pytest.approx(1.0)]
    [packed] = [one for one in source["packing"] if one["sequence_length"] == length]
    assert packed["real"] == pytest.approx(tokens / (rows * length), rel=source["rows_error"])
    assert packed["segments_per_row"] == pytest.approx(segments / rows, rel=0.1)
    assert packed["segments_per_document"] == pytest.approx(segments / 900, rel=0.1)
    assert cli.main(["inspect", *options, "--workers=0", f"--inspect.max-read-bytes={most_bytes}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"~{math.ceil(plan['steps']):,} ± {plan['steps_error']:.1%} steps" in said


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_the_work_of_a_run_is_that_of_its_rows(
    objective: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mixture of short documents and some as long as several rows, with a mask rate that changes."""
    sources = []
    for name, longest, weight in (("short", 12, 1), ("mixed", 400, 3)):
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines(documents(400, seed=weight, longest=longest)))
        sources.append({"name": name, "dataset": f"{tmp_path}/{name}.jsonl", "weight": weight})
    options = [
        *(f"--data.sources={json.dumps(sources)}", f"--model.config={model}", f"--model.tokenizer={model}"),
        *("--sequence-length=256", "--global-batch-size=8", "--max-steps=24", "--lanes=2", f"--objective.name={objective}"),
        *(["--objective.mask-rate=0.5", "--objective.final-mask-rate=0.1"] if objective == "mlm" else []),
    ]
    told = inspected(capsys, *options)["plan"]
    config = parse(options)
    settings, _ = sized_model(config.model, objective == "clm")
    steps = list(itertools.islice(read_rows(config), 24))
    assert told["flops"] == pytest.approx(sum(useful_flops(settings, step) for step in steps), rel=0.03)
    peaks = {gpu: peak_bf16_flops(f"NVIDIA {gpu}") for gpu in told["gpu_hours"]}
    assert {gpu: hours * 3600 * told["mfu"] * (peaks[gpu] or 0) for gpu, hours in told["gpu_hours"].items()} == {
        gpu: pytest.approx(told["flops"]) for gpu in ("A100", "H100", "H200", "B200")
    }


@pytest.mark.parametrize(
    ("gpu", "flops_of_an_hour"), [("A100", 4.4928e17), ("H100", 1.42416e18), ("H200", 1.42416e18), ("B200", 3.24e18)]
)
def test_a_run_that_takes_the_hours_that_are_told_logs_the_mfu_that_is_told(
    gpu: str,
    flops_of_an_hour: float,
    model: str,
    corpus: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = [f"--dataset={corpus}", f"--model.config={model}", f"--model.tokenizer={model}", "--max-steps=10"]
    told = inspected(capsys, *options, "--sequence-length=64")["plan"]
    hours = told["gpu_hours"][gpu]
    assert hours == pytest.approx(told["flops"] / flops_of_an_hour)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: f"NVIDIA {gpu} 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 0)
    metrics = StepMetrics(None, None, torch.device("cuda"), Ranks())  # type: ignore[arg-type]
    assert metrics._hardware(told["flops"], seconds=3600 * hours)["train/mfu"] == pytest.approx(told["mfu"]) == 0.4


def test_the_best_checkpoint_is_part_of_what_the_output_takes(
    corpus: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--dataset={corpus}", f"--model.config={model}", f"--model.tokenizer={model}", "--sequence-length=64"]
    options += ["--max-steps=10", "--lanes=4"]
    without = inspected(capsys, *options)["plan"]
    keeps = ["--run.keep-best", "--eval-every=5", "--data.heldout-fraction=0.0001"]
    best = inspected(capsys, *options, *keeps)["plan"]
    assert best["output_bytes_at_most"] - without["output_bytes_at_most"] == 2 * (without["checkpoint_bytes"] + 200 * 4)


def test_a_source_that_ends_leaves_its_share_of_the_plan_to_the_others(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = []
    for name, count, more in (("few", 40, {"weight": 3, "max_epochs": 2}), ("many", 400, {"weight": 1})):
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines(documents(count, seed=count)))
        sources.append({"name": name, "dataset": f"{tmp_path}/{name}.jsonl", **more})
    options = [
        *(f"--data.sources={json.dumps(sources)}", f"--model.tokenizer={model}", "--sequence-length=64", "--max-steps=60"),
        *("--global-batch-size=8", "--lanes=2"),
    ]
    told = inspected(capsys, *options)
    rows, plan = [source["rows"] for source in told["sources"]], told["plan"]
    steps = list(itertools.islice(read_rows(parse(options)), 60))
    given = Counter(number for step in steps for number in step.source.tolist())
    assert plan["steps"] == len(steps) == 60
    assert plan["epochs"] == [2, pytest.approx(given[1] / rows[1], rel=0.05)]
    assert given[0] == pytest.approx(2 * rows[0], rel=0.05)
    assert plan["tokens_of_run"] == pytest.approx(sum(step.tokens for step in steps), rel=0.03)


def test_a_run_counts_and_keeps_what_was_told(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [*documents(200, seed=1), "", " ", *["bara bast"] * 10, "x"]
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts) + b'{"text": 3}\nno json\n')
    # Of one bundle: copies are found across its shards.
    (tmp_path / "b.jsonl").write_bytes(json_lines(["bara bast"] * 5))
    (tmp_path / "c.jsonl").write_bytes(json_lines([*["bara bast"] * 5, "\u200b\u200b", *documents(3, seed=2)]))
    options = [
        *(f"--dataset={tmp_path}/*.jsonl", f"--model.config={model}", f"--model.tokenizer={model}", "--sequence-length=64"),
        *("--global-batch-size=8", "--max-epochs=1", "--lanes=2", "--data.min-characters=2", "--data.drop-duplicates=true"),
        *("--save-every=2", "--run.keep-last=2", "--run.keep-every=4", "--log-every=1", f"--output-dir={tmp_path}/out"),
        *("--data.max-bad-fraction=0.5", "--wandb=disabled", "--data.heldout-fraction=0.2"),
    ]  # fmt: skip
    told = inspected(capsys, *options)
    [source], plan = told["sources"], told["plan"]
    sample = source["sample"]
    finished = run_here(options)
    assert finished.returncode == 0, finished.stderr
    out = tmp_path / "out"
    metrics = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    checkpoint = max((out / "checkpoints").glob("step-*"))
    totals = json.loads((checkpoint / "trainer.json").read_text())["totals"]
    kinds = ("read", "skipped", "empty", "filtered", "documents")
    assert {kind: sample[kind] for kind in kinds} == {kind: totals[kind] for kind in kinds}
    assert sample["held_out"] == 205 - totals["documents"] > 20
    # Repeated ones are filtered by the run in each unit: one is met twice.
    assert (sample["filtered"], sample["duplicates"], sample["skipped"], sample["empty"]) == (21, 1, 2, 1)
    assert source["tokens"] == pytest.approx(totals["tokens"], rel=source["tokens_error"])
    assert plan["steps"] == pytest.approx(metrics["step"], abs=1)
    kept = sorted(size_of(folder) for folder in (out / "checkpoints").glob("step-*"))
    assert 0 <= plan["checkpoint_bytes"] - kept[-1] < 70_000
    assert len(kept) > 2, "those of --run.keep-every are kept too"
    most = plan["output_bytes_at_most"]
    assert most - plan["checkpoint_bytes"] - 170_000 * (1 + len(kept)) < size_of(out) <= most


def numbers_in(value: Any) -> Iterator[float]:
    """All numbers of a JSON value."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def test_every_number_that_is_printed_is_in_the_json(corpus: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--dataset={corpus}", f"--model.config={model}", f"--model.tokenizer={model}", "--sequence-length=64"]
    options += ["--max-epochs=3", "--global-batch-size=16", "--inspect.max-read-bytes=60000"]
    assert cli.main(["inspect", *options, "--workers=0"]) == 0
    said = re.sub(r"\n\s+", " ", capsys.readouterr().out.partition("warning:")[0])
    told = inspected(capsys, *options)
    counts = told["sources"][0]["histogram_of_tokens"]["counts"]
    known = [*numbers_in(told), sum(told["plan"]["windows"]), *(count / sum(counts) for count in counts)]
    shown = {show(number) for number in known for show in SHOWN}
    printed = re.findall(r"(?<![\w./])[0-9][0-9,.]*[0-9](?:e[+-][0-9]+)?(?:%|[kMGT]\b| [kMGT]?B\b)?|\b[0-9]\b", said)
    assert len(printed) > 60
    assert [number for number in printed if number not in shown] == []


SHOWN = (
    *(lambda number, form=form: format(number, form) for form in (",", ".2f", ".1f", ".0%", ".1%", ".2%", ".1e")),
    *(human_bytes, human_count, lambda number: f"{math.ceil(number):,}", lambda hours: human_duration(3600 * hours)[:-2]),
)
"""How numbers are printed."""


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    folder = tmp_path_factory.mktemp("web")
    body = json_lines(documents(1500, seed=1))
    (folder / "plain.jsonl").write_bytes(body)
    (folder / "one.jsonl.zst").write_bytes(zstandard.compress(body))
    (folder / "two.jsonl.gz").write_bytes(gzip.compress(body))
    lines = body.splitlines(keepends=True)
    for number in range(12):
        (folder / f"small-{number}.jsonl.zst").write_bytes(zstandard.compress(b"".join(lines[8 * number : 8 * number + 8])))
    pq.write_table(pa.table({"text": documents(1500, seed=1)}), folder / "rows.parquet", row_group_size=500)
    with serve(folder) as served:
        yield served, folder


SMALL = [f"small-{number}.jsonl.zst" for number in range(12)]


@dataclass(frozen=True)
class Reading:
    """What a server is asked for by a run on one process."""

    requests: int
    sent: int
    """Bytes."""
    windows: int
    rows: Counter[int]
    """Of each lane."""
    cursors: list[LaneCursors]
    """Behind the last step."""
    steps: int


def reading(
    server: tuple[Server, Path], plan: StreamPlan, cursors: list[LaneCursors], step: int = 0, *, until: int = sys.maxsize
) -> Reading:
    """Read the steps of a run from a server."""
    served, folder = server
    served.forget()
    windows, rows, cursors = set[tuple[int, ...]](), Counter[int](), list(cursors)
    begin = source_lane.TokenizedWindow.__init__

    def opened(self: Any, documents: Any, key: Any, *others: Any) -> None:
        windows.add(tuple(key))
        begin(self, documents, key, *others)

    with pytest.MonkeyPatch.context() as patch, StepStream(plan, cursors, step=step) as stream:
        patch.setattr(source_lane.TokenizedWindow, "__init__", opened)
        for found in stream:
            if not len(found.trained):
                break
            found.advance(cursors)
            rows.update(found.row_lane.tolist())
            step += 1
            if step == until:
                break
    sent = 0
    for asked in served.log():
        first, last = (int(number) if number else None for number in asked["range"].removeprefix("bytes=").split("-"))
        size = (folder / asked["path"].lstrip("/")).stat().st_size
        sent += min(size, size if last is None else last + 1) - (first or 0)
    return Reading(len(served.log()), sent, len(windows), rows, cursors, step)


@pytest.mark.parametrize(
    ("names", "lanes", "of_start", "of_epoch"),
    [
        (["plain.jsonl"], 4, 1, 32),
        (["plain.jsonl"], 1, 1, 1),
        (["one.jsonl.zst", "two.jsonl.gz"], 4, 3, 2),
        (SMALL, 2, 12, 12),
        (["rows.parquet"], 4, 2, 4),
    ],
    ids=["lines of several lanes", "lines of one lane", "compressed", "bundles", "Parquet"],
)
def test_what_is_read_at_the_start_in_an_epoch_and_at_a_resume_is_what_a_server_counts(
    names: list[str],
    lanes: int,
    of_start: int,
    of_epoch: int,
    server: tuple[Server, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served, folder = server
    (tmp_path / "list").write_text("\n".join(map(served.url, names)))
    options = [
        *(f"--dataset=@{tmp_path}/list", "--sequence-length=64", "--global-batch-size=32", "--max-epochs=1"),
        *("--data.window-bytes=16384", f"--lanes={lanes}"),
    ]
    told = inspected(capsys, *options)["plan"]
    served.forget()
    pinned = pin(parse(options), world=1)
    assert len(served.log()) == of_start == told["requests_of_start"]
    plan, first = stream_plan(parse([*options, "--workers=0"]), word_tokenizer(), pinned), first_cursors(pinned.lanes, 1)
    epoch = reading(server, plan, first)
    assert epoch.requests == of_epoch
    least = of_epoch / 2 if told["requests_are_least"] else 0.95 * of_epoch
    assert least <= told["requests_of_epoch"] <= of_epoch
    is_parquet = names == ["rows.parquet"]
    times = epoch.sent / sum((folder / name).stat().st_size for name in names)
    assert told["amplification_is_least"] == is_parquet
    assert told["read_amplification"] <= times <= (2 if is_parquet else 1.1 * told["read_amplification"])
    assert told["windows_are_estimated"] == (is_parquet or names == ["one.jsonl.zst", "two.jsonl.gz"] or names == SMALL)
    assert sum(told["windows"]) == pytest.approx(epoch.windows, rel=0.5 if told["windows_are_estimated"] else 0)
    fullest = max(epoch.rows.values()) / (epoch.rows.total() / lanes)
    assert max(told["fullest_lane"]) == pytest.approx(fullest, rel=0.1 if told["windows_are_estimated"] else 0.01)
    half = reading(server, plan, first, until=epoch.steps // 2)
    rest = reading(server, plan, half.cursors, half.steps)
    assert half.rows + rest.rows == epoch.rows
    again = half.sent + rest.sent - epoch.sent
    if told["resume_bytes"]:
        assert again == told["resume_bytes"], "such shards are read to their ends at once"
    elif not is_parquet:  # of which row groups are read from their start
        read_ahead = half.sent - sum(cursor.finished_bytes for [cursor] in half.cursors)
        assert 0 < again <= 1.01 * read_ahead
    of_ranks = {world: {len(part_of(range(lanes), rank, world)) for rank in range(world)} for world in range(1, lanes + 1)}
    assert told["world_sizes_that_read_alike"] == [world for world, counts in of_ranks.items() if len(counts) == 1]


def test_the_error_of_a_sample_is_that_of_a_ratio_over_shards() -> None:
    sample = SourceSample(shards=3, is_complete=False, content_bytes=300)
    sample.windows = [np.array([2, 3]), np.array([5]), np.array([4, 4, 4]), np.array([9])]
    sample.window_origins = [(0, 50), (0, 50), (1, 100), (2, 100)]
    of_all = Extrapolation(sample, content_bytes=600)
    assert (of_all.scale, of_all.unread) == (2.0, 0.5)
    # Per byte 31/300 tokens; shards have 10, 12 and 9, each of 100 bytes: residuals -1/3, 5/3, -4/3.
    expected = 2 * math.sqrt(0.5 * 3 / 2 * (1 / 9 + 25 / 9 + 16 / 9)) / 31
    assert of_all.error(lambda lengths: float(lengths.sum())) == pytest.approx(expected)
    assert Extrapolation(SourceSample(shards=1, is_complete=True), 600).error(len) == 0.0
    one = SourceSample(shards=1, is_complete=False, content_bytes=50)
    one.windows, one.window_origins = [np.array([2])], [(0, 50)]
    assert Extrapolation(one, 600).error(len) is None
