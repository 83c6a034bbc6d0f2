"""The rows of a step are the same for any number of ranks, of workers of a rank, and of rows in a micro-batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from stream_pretrain.data.lanes.cursor import Skipped
from stream_pretrain.data.lanes.row_layout import part_of
from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors, first_cursors
from stream_pretrain.data.rows.batches import Batch, micro_batches
from tests.corpora import WORDS, documents, write_shard
from tests.data.plans import cursors_of, next_step, plan_for

STEPS = 12
Row = tuple[list[int], list[int], list[int]]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> StreamPlan:
    folder = tmp_path_factory.mktemp("corpus")
    for i, (style, count) in enumerate([("plain", 200), ("zst", 30), ("zst-multi", 150), ("gz", 1), ("parquet", 90)]):
        write_shard(folder / f"s{i}", ["", *documents(count, seed=i), " "], style)
    for i in range(5, 10):
        write_shard(folder / f"s{i}", documents(2, seed=i), ["plain", "gz"][i % 2])
    plan = plan_for(folder, lanes=12, global_batch_size=24)
    assert plan.sources[0].bundles == ((5, 10),)
    return plan


@pytest.fixture(scope="module")
def alone(plan: StreamPlan) -> list[StepRows]:
    return steps_over(plan, world=1, workers=0)


def steps_over(plan: StreamPlan, world: int, workers: int) -> list[StepRows]:
    """The steps of all ranks together."""
    with ExitStack() as stack:
        streams = [
            stack.enter_context(StepStream(plan, first_cursors(plan.layout.lanes), rank=rank, world=world, workers=workers))
            for rank in range(world)
        ]
        return [next_step(streams) for _ in range(STEPS)]


def plain(step: StepRows) -> list[list[int] | tuple[Skipped, ...]]:
    arrays = (step.lanes, step.cursors, step.row_lane, step.trained.buffer, step.origins)
    return [*(value.tolist() for value in arrays), step.skipped]


USUAL = [(1, 2), (2, 0), (2, 3), (3, 1), (4, 2)]
TOPOLOGIES = [
    pytest.param(*each, marks=[] if each in USUAL else [pytest.mark.long]) for each in itertools.product((1, 2, 3, 4), range(4))
]


@pytest.mark.parametrize(("world", "workers"), TOPOLOGIES)
def test_the_rows_of_every_step_are_the_same(plan: StreamPlan, alone: list[StepRows], world: int, workers: int) -> None:
    assert [len(step.row_lane) for step in alone] == [24] * STEPS
    assert max(len(step.skipped) for step in alone) > 2
    assert list(map(plain, steps_over(plan, world, workers))) == list(map(plain, alone))


def test_the_mask_rate_follows_the_step_also_after_a_resume(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", [" ".join(WORDS * 400)], "plain")
    plan = plan_for(tmp_path, lanes=1, global_batch_size=2, max_steps=5, packing="concat", mask_rate=0.5, final_mask_rate=0.1)

    def labels_from(step: int, cursors: Sequence[LaneCursors], steps: int) -> tuple[list[list[int]], list[LaneCursors]]:
        """Labels of each row of each step, and the cursors behind the last step."""
        with StepStream(plan, cursors, step=step) as stream:
            read = [next(stream) for _ in range(steps)]
        behind = cursors_of(read[-1])
        return [(step.trained.labels >= 0).sum(axis=1).tolist() for step in read], behind

    assert labels_from(0, first_cursors(1), 5)[0] == [[31, 31], [25, 25], [19, 19], [12, 12], [6, 6]]
    _, behind_two_steps = labels_from(0, first_cursors(1), 2)
    assert labels_from(2, behind_two_steps, 3)[0] == [[19, 19], [12, 12], [6, 6]]


def rows_in(batches: Sequence[Batch]) -> list[Row]:
    """Tokens, positions and labels of the rows that have labels, in their order."""
    found = []
    for batch in batches:
        size = len(batch.input_ids)
        for row, (ids, positions, labels) in enumerate(
            zip(batch.input_ids.tolist(), batch.position_ids.tolist(), batch.labels.reshape(size, -1).tolist(), strict=True)
        ):
            if max(labels) >= 0:
                slots = batch.label_positions.reshape(size, -1)[row] - row * len(ids)
                labelled = [-100] * len(ids)
                for slot, label in zip(slots.tolist(), labels, strict=True):
                    if label >= 0:
                        labelled[slot] = label
                found.append((ids, positions, labelled))
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 24])
@pytest.mark.parametrize("world", [1, 3, 4, 5])
def test_the_micro_batches_of_a_step_hold_the_same_rows_in_the_same_shapes(plan: StreamPlan, world: int, size: int) -> None:
    expected: list[Row] = []
    found: list[Row] = []
    shapes = set()
    most = -(-24 // world)  # rows of a rank; some may have one less
    count = -(-most // size)
    with StepStream(plan, first_cursors(12)) as stream:
        step = next(stream)
    for rank in range(world):
        own = step.trained.cut(part_of(range(24), rank, world))
        whole, parts = (
            list(micro_batches(own, rows, batches, plan.encoder.pad, torch.device("cpu")))
            for rows, batches in ((most, 1), (size, count))
        )
        expected += rows_in(whole)
        found += rows_in(parts)
        shapes |= {(len(parts), *batch.input_ids.shape) for batch in parts}
    assert len(expected) == 24
    assert found == expected
    assert shapes == {(count, size, 64)}
