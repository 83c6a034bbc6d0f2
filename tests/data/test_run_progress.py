"""Where epochs end a run, its progress follows the share of its rows, however unevenly rows are spread over the bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from stream_pretrain.config import Config, DataConfig, SourceConfig, TrainConfig
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.lanes.row_layout import part_of
from stream_pretrain.data.lanes.run_progress import counts_of, progress
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors, first_cursors
from tests.corpora import WORDS, write_shard
from tests.data.plans import TOKENIZER, cursors_of, next_step

LANES, BATCH = 8, 16


def text(rng: random.Random, size: int, *, dense: bool) -> str:
    """A document of about so many bytes; a dense one has a token in every second byte, another in every fifth."""
    return " ".join(rng.choices("0123456789", k=size // 2) if dense else rng.choices(WORDS, k=size // 5))


def texts(seed: int, count: int, *, dense: bool, size: int = 600) -> list[str]:
    rng = random.Random(seed)
    return [text(rng, size * 2 // 3 if number % 2 else size * 4 // 3, dense=dense) for number in range(count)]


def dense_lanes(folder: Path) -> None:
    for number in range(LANES):
        write_shard(folder / f"s{number}", texts(number, 150, dense=number % 2 == 0), "plain")


def dense_beginnings(folder: Path) -> None:
    for number in range(12 * LANES):
        shard = texts(number, 10, dense=True) + texts(number, 20, dense=False)
        write_shard(folder / f"s{number:02}", shard, "plain")


def compressed(folder: Path) -> None:
    """Shards of text that repeats itself, and that does not."""
    for number in range(LANES):
        shard = texts(number, 150, dense=False)
        write_shard(folder / f"s{number}", [text[:60] * 10 for text in shard] if number < 3 else shard, "zst")


def long_documents(folder: Path) -> None:
    """Of several windows each, which hold the rows of one of them."""
    for number in range(2):
        shard = [
            one
            for size in (500, 30_000, 800, 12_000)
            for one in texts(number + size, 6 if size > 999 else 99, dense=False, size=size)
        ]
        random.Random(number).shuffle(shard)
        write_shard(folder / f"s{number}", shard, "zst")


def plan_of(dataset: str, epochs: int = 1, sources: Sequence[SourceConfig] = ()) -> StreamPlan:
    data = DataConfig(
        dataset=None if sources else dataset, sources=tuple(sources), sequence_length=64, lanes=LANES, window_bytes=6_000
    )
    return stream_plan(Config(data=data, train=TrainConfig(max_epochs=epochs, global_batch_size=BATCH)), TOKENIZER)


def steps_of(plan: StreamPlan) -> tuple[list[int], list[list[LaneCursors]]]:
    """Rows of each step of a run, and where lanes are behind it."""
    rows, cursors = [], []
    with StepStream(plan, first_cursors(LANES, len(plan.sources))) as stream:
        while len((step := next_step([stream])).row_lane):
            rows.append(len(step.row_lane))
            cursors.append(cursors_of(step))
    return rows, cursors


def followed(plan: StreamPlan) -> tuple[float, float]:
    """How far progress is from the share of the rows at most, and from the end before the last step, in batches."""
    rows, cursors = steps_of(plan)
    found = [0.0]
    for step, of_lanes in enumerate(cursors, start=1):
        found.append(max(found[-1], progress(plan, counts_of(plan, dict(enumerate(of_lanes))), step)))
    share = np.cumsum([0, *rows]) / sum(rows)
    assert found[-1] == 1
    return float(np.abs(np.array(found) - share).max()), (1 - found[-2]) * sum(rows) / BATCH


@pytest.mark.parametrize(
    ("write", "epochs", "most"),
    [
        (dense_lanes, 1, 0.02),
        (dense_lanes, 2, 0.03),
        (dense_beginnings, 1, 0.02),
        (compressed, 1, 0.02),
        (long_documents, 1, 0.02),
    ],
)
def test_progress_is_the_share_of_the_rows(write: Callable[[Path], None], epochs: int, most: float, tmp_path: Path) -> None:
    write(tmp_path)
    off, before_last = followed(plan_of(str(tmp_path), epochs))
    assert off <= most
    assert 0 < before_last <= 1.5


def test_sources_of_a_mixture_count_by_the_rows_that_they_give(tmp_path: Path) -> None:
    for name, dense in (("dense", True), ("sparse", False)):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "s", texts(1, 400, dense=dense), "plain")
    sources = [
        SourceConfig("dense", str(tmp_path / "dense"), 1, max_epochs=2),
        SourceConfig("sparse", str(tmp_path / "sparse"), 3),
    ]
    off, before_last = followed(plan_of("", sources=sources))
    assert off <= 0.02
    assert 0 < before_last <= 1.5


def test_progress_is_equal_for_any_number_of_ranks(tmp_path: Path) -> None:
    dense_lanes(tmp_path)
    plan = plan_of(str(tmp_path))
    cursors = steps_of(plan)[1][60]
    alone = progress(plan, counts_of(plan, dict(enumerate(cursors))), 61)
    assert 0.1 < alone < 0.9
    for world in (2, 3, 8):
        ranks = [counts_of(plan, {lane: cursors[lane] for lane in part_of(range(LANES), rank, world)}) for rank in range(world)]
        assert progress(plan, np.sum(ranks, axis=0), 61) == alone


def test_a_run_without_epochs_has_no_progress_of_its_own(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", texts(1, 40, dense=True), "plain")
    data = DataConfig(dataset=str(tmp_path), sequence_length=64, lanes=LANES)
    plan = stream_plan(Config(data=data, train=TrainConfig(max_steps=9, global_batch_size=BATCH)), TOKENIZER)
    assert progress(plan, counts_of(plan, dict(enumerate(first_cursors(LANES)))), 3) == 0
