"""The rows, masks and labels of these corpora never change: a run that goes on with a newer version sees the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from stream_pretrain.config import Config, DataConfig, ObjectiveConfig, SourceConfig, TrainConfig, WeightChange
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import first_cursors
from stream_pretrain.data.rows import native
from tests.corpora import documents, word_tokenizer, write_shard
from tests.data.plans import cursors_of, next_step

STEPS = 12
RECORDED = {
    "token": "bb6dfbd3f6c6a76c",
    "whole_word": "d2aa4fc81c28d7b2",
    "span": "56a10d9082d65e49",
    "clm": "fb4ed5241e4adcb2",
    "concat": "026bca3115571236",
    "none": "f8ea4de657619c00",
    "parquet": "9bc5d21567cb5853",
    "mixture": "8d313411d1fb220c",
    "schedule": "a8d12516b40b684a",
}
"""First 16 digits of the SHA-256 of the rows of the first steps, by the name of the run: those of cursors of version 5."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain shards and a Parquet shard: what a library compresses differs from version to version, and sizes decide dealing."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, counts in {"lines": (300, 40, 1), "table": (200,), "other": (150,)}.items():
        (folder / name).mkdir()
        for number, count in enumerate(counts):
            style = "parquet" if name == "table" else "plain"
            write_shard(folder / name / f"s{number}", documents(count, seed=number, longest=200), style)
    return folder


def plan_of(name: str, corpus: Path) -> StreamPlan:
    """The plan of a recorded run."""
    objective, options = ObjectiveConfig(), DataConfig(dataset=str(corpus / "lines"))
    match name:
        case "whole_word" | "span":
            objective = ObjectiveConfig(selection=name)
        case "clm":
            objective = ObjectiveConfig(name="clm")
        case "concat" | "none":
            options = DataConfig(dataset=str(corpus / "lines"), packing=name)
        case "parquet":
            options = DataConfig(dataset=str(corpus / "table"))
        case "mixture":
            sources = (SourceConfig("lines", str(corpus / "lines"), 3), SourceConfig("table", str(corpus / "table"), 2))
            options = DataConfig(
                sources=(*sources, SourceConfig("other", str(corpus / "other"), 1, max_epochs=1)),
                weight_schedule=(WeightChange(5, {"table": 0.0}),),
            )
        case "schedule":
            objective = ObjectiveConfig(mask_rate=0.4, final_mask_rate=0.1)
    fixed = {"sequence_length": 64, "lanes": 4, "window_bytes": 9_000}
    config = Config(
        data=DataConfig(**{**vars(options), **fixed}),
        objective=objective,
        train=TrainConfig(max_steps=40, global_batch_size=16, seed=3),
    )
    return stream_plan(config, word_tokenizer())


def steps_of(plan: StreamPlan, *, world: int = 1, workers: int = 0, resumed_after: int | None = None) -> Iterator[StepRows]:
    """The first steps of a run, of all ranks together; perhaps resumed on the way."""
    cursors = first_cursors(plan.layout.lanes, len(plan.sources))
    done, stops = 0, [STEPS] if resumed_after is None else [resumed_after, STEPS - resumed_after]
    for steps in stops:
        with ExitStack() as stack:
            streams = [
                stack.enter_context(StepStream(plan, cursors, step=done, rank=rank, world=world, workers=workers))
                for rank in range(world)
            ]
            for _ in range(steps):
                step = next_step(streams)
                yield step
        cursors, done = cursors_of(step), done + steps


def hash_of(steps: Iterator[StepRows]) -> str:
    """Of all that a model and a record see of the rows."""
    digest = hashlib.sha256()
    for step in steps:
        rows = step.trained
        values = [step.row_lane, rows.source, step.origins, rows.input_ids, rows.label_positions, rows.labels, rows.segments]
        for value in values:
            digest.update(np.asarray(value).astype("<i8").tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("name", RECORDED)
def test_the_rows_are_those_that_were_recorded(corpus: Path, name: str) -> None:
    assert hash_of(steps_of(plan_of(name, corpus))) == RECORDED[name]


@pytest.mark.parametrize("name", ["token", "concat", "none", "schedule"])
def test_they_are_the_same_without_a_c_compiler(corpus: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "compiled", None)
    assert hash_of(steps_of(plan_of(name, corpus))) == RECORDED[name]


@pytest.mark.parametrize("name", ["span", "mixture", "schedule"])
def test_they_are_the_same_on_two_ranks_with_two_workers_and_after_a_resume(corpus: Path, name: str) -> None:
    assert hash_of(steps_of(plan_of(name, corpus), world=2, workers=2, resumed_after=5)) == RECORDED[name]
