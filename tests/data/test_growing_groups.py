"""Groups grow at the start of a lane; rows and cursors are the same wherever inside of them a run goes on."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stream_pretrain.config import Config, DataConfig, ObjectiveConfig, SourceConfig, TrainConfig, WeightChange
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus
from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.cursor_checks import fault_of
from stream_pretrain.data.lanes.group_sizes import GroupSizes, full_group_rows
from stream_pretrain.data.lanes.lane import Lane
from stream_pretrain.data.lanes.pinning import pin
from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors, first_cursors
from stream_pretrain.errors import CheckpointError
from tests.corpora import documents, write_shard
from tests.data.plans import TOKENIZER, cursors_of, lane, next_step, plan_for, row_of, rows_of


def sizes_of(sizes: GroupSizes, number: int, count: int) -> list[int]:
    """Rows of the first groups of a lane."""
    found: list[int] = []
    for _ in range(count):
        found.append(sizes.after(sum(found), number))
    return found


def test_groups_of_a_lane_grow_and_the_first_full_one_ends_in_a_step_of_its_own() -> None:
    sizes = GroupSizes(full=128, first_step=32, lanes=8)
    assert sizes_of(sizes, 0, 7) == [16, 16, 32, 64, 128, 128, 128]
    assert sizes_of(sizes, 3, 7) == [16, 16, 32, 64, 48, 128, 128]
    assert sizes_of(sizes, 7, 7) == [16, 16, 32, 64, 112, 128, 128]
    ends = sorted(sum(sizes_of(sizes, number, 7)) % 128 for number in range(8))
    assert ends == [0, 16, 32, 48, 64, 80, 96, 112], "refills are spread evenly over the rows of a group"
    assert sizes_of(GroupSizes(full=16, first_step=4, lanes=64), 31, 4) == [4, 8, 16, 16]
    assert sizes_of(GroupSizes(full=128, first_step=512, lanes=8), 1, 8) == [16, 32, 64, 128, 128, 128, 16, 32]
    assert [GroupSizes(128, 0, 1).after(rows, 0) for rows in (0, 15, 16, 47, 48, 111, 112, 240, 1000)] == [
        *(16, 16, 32, 32, 64, 64),
        *(128, 128, 128),
    ]


def test_a_full_group_has_65536_positions_times_the_share_within_what_all_lanes_may_have() -> None:
    for length, rows in {128: [128, 128, 128], 512: [128, 128, 32], 8192: [16, 16, 16]}.items():
        assert [full_group_rows(length, lanes, 1.0) for lanes in (8, 16, 64)] == rows
    assert [full_group_rows(512, 8, share) for share in (0.5, 0.2, 0.01)] == [64, 25, 16]


def test_the_rows_of_a_full_group_are_pinned(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "s", documents(30), "plain")
    sources = (SourceConfig("a", str(tmp_path / "a"), 3), SourceConfig("b", str(tmp_path / "b"), 1))
    change = (WeightChange(5, {"a": 1.0}),)
    config = Config(DataConfig(sources=sources, weight_schedule=change, lanes=8), train=TrainConfig(max_steps=9))
    pinned = pin(config, 1)
    stored = json.loads(pinned.encoded)
    assert stored["version"] == 3
    assert [source["group_rows"] for source in stored["sources"]] == [96, 64], "by the largest share in the schedule"
    stored["sources"][0]["group_rows"] = 40
    plan = stream_plan(config, TOKENIZER, PinnedCorpus.from_json(stored))
    assert [source.group_sizes for source in plan.sources] == [GroupSizes(40, 24, 8), GroupSizes(64, 8, 8)]
    stored["sources"][0]["group_rows"] = 0
    with pytest.raises(CheckpointError, match=r"corpus\.json: .* use another checkpoint"):
        PinnedCorpus.from_json(stored)


@pytest.mark.parametrize("packing", ["best_fit", "concat", "none"])
def test_a_lane_goes_on_from_every_row_of_its_growing_groups(tmp_path: Path, packing: str) -> None:
    write_shard(tmp_path / "s", documents(300, longest=30), "zst")
    options = {"lanes": 3, "global_batch_size": 12, "sequence_length": 24, "window_bytes": 20_000}
    plan = plan_for(tmp_path, packing=packing, **options)
    reading = lane(plan, 1)
    sizes, rows, states = [], [], []
    while len(states) <= 340:
        states.append(json.loads(json.dumps(reading.cursors)))
        row = row_of(reading)
        assert row is not None
        if states[-1][0][8] == 0:  # taken
            sizes.append(len(row.group))
        rows.append(row.group.rows.input_ids[row.row].tolist())
    assert sizes[:4] == [4, 16, 32, 64], "the first step has 4 rows of the lane"
    assert max(sizes) > 64
    assert max(state[0][0] for state in states) >= 1, "the rows reach into the second epoch"
    for k in range(0, 320, 1 if packing == "best_fit" else 5):
        resumed = lane(plan, 1, (Cursor(*states[k][0]),))
        assert fault_of(plan.sources[0], 1, Cursor(*states[k][0])) is None
        assert rows_of(resumed, 20) == rows[k : k + 20], f"after row {k}"
        assert json.loads(json.dumps(resumed.cursors)) == states[k + 20], f"after row {k}"


def test_a_group_of_which_more_rows_are_taken_than_it_has_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(400, longest=30), "plain")
    [source] = plan_for(tmp_path, lanes=2, global_batch_size=8).sources
    assert fault_of(source, 0, Cursor(taken=15, rows=19, compressed=0)) is None
    assert fault_of(source, 0, Cursor(taken=17, rows=21)) == "taken is 17 of 21 rows"


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> StreamPlan:
    """Three sources whose groups grow to 20, 40 and 30 rows, over three lanes; weights and the mask rate change."""
    folder = tmp_path_factory.mktemp("mixture")
    for number, (name, count) in enumerate({"a": 260, "b": 160, "c": 40}.items()):
        (folder / name).mkdir()
        style = ["plain", "zst", "parquet"][number]
        write_shard(folder / name / "s", documents(count, seed=number, longest=40), style)
    sources = (SourceConfig("a", str(folder / "a"), 2), SourceConfig("b", str(folder / "b"), 3, max_epochs=1))
    options = DataConfig(
        sources=(*sources, SourceConfig("c", str(folder / "c"), 1, max_epochs=2)),
        weight_schedule=(WeightChange(6, {"c": 4.0}), WeightChange(14, {"b": 1.0})),
        sequence_length=32,
        lanes=3,
        window_bytes=40_000,
    )
    train = TrainConfig(max_epochs=1, max_steps=90, global_batch_size=14)
    plan = stream_plan(Config(options, objective=ObjectiveConfig(mask_rate=0.4, final_mask_rate=0.1), train=train), TOKENIZER)
    rows = (20, 40, 30)
    return replace(plan, sources=tuple(replace(of, group_rows=n) for of, n in zip(plan.sources, rows, strict=True)))


def steps_of(plan: StreamPlan, cursors: list[LaneCursors], step: int, world: int, workers: int) -> Iterator[StepRows]:
    """The steps of a run from cursors on, of all ranks together, to its end."""
    with ExitStack() as stack:
        streams = [
            stack.enter_context(StepStream(plan, cursors, step=step, rank=rank, world=world, workers=workers))
            for rank in range(world)
        ]
        while len((rows := next_step(streams)).row_lane):
            yield rows


def plain(step: StepRows) -> list[list[int]]:
    values = [step.row_lane, step.origins, step.cursors, step.trained.buffer]
    return [np.asarray(value).tolist() for value in values]


@pytest.fixture(scope="module")
def undisturbed(mixture: StreamPlan) -> list[StepRows]:
    return list(steps_of(mixture, first_cursors(3, 3), 0, 1, 0))


def test_a_mixture_with_schedules_goes_on_at_every_step_inside_of_its_groups(
    mixture: StreamPlan, undisturbed: list[StepRows]
) -> None:
    taken = {(source, cursor[8]) for step in undisturbed for of in step.cursors.tolist() for source, cursor in enumerate(of)}
    assert {source for source, rows in taken if rows >= 16} == {0, 1, 2}, "groups have grown in every source"
    assert len({mixture.objective.rate(step) for step in range(len(undisturbed))}) > 30
    for done in range(1, len(undisturbed)):
        steps = steps_of(mixture, cursors_of(undisturbed[done - 1]), done, 1 + done % 3, 0)
        found = [plain(step) for step, _ in zip(steps, range(2), strict=False)]
        assert found == list(map(plain, undisturbed[done : done + 2])), f"after step {done}"


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 1), (3, 0)])
def test_a_mixture_with_schedules_is_the_same_for_any_number_of_ranks_and_workers(
    mixture: StreamPlan, undisturbed: list[StepRows], world: int, workers: int
) -> None:
    found = steps_of(mixture, first_cursors(3, 3), 0, world, workers)
    assert list(map(plain, found)) == list(map(plain, undisturbed))


def taken_in(reading: Lane, count: int) -> list[tuple[int, list[int]]]:
    """Source and tokens of the next rows, taken at once."""
    return [
        (run.source, ids)
        for run in reading.take(count)
        for ids in run.group.rows.input_ids[slice(run.which.start, run.which.stop)].tolist()
    ]


def test_however_many_rows_are_taken_at_once_they_are_the_same_with_the_same_cursors_behind_them(mixture: StreamPlan) -> None:
    one_by_one, at_once = lane(mixture, 0), lane(mixture, 0)
    for count in (1, 7, 40, 3, 100, 2):
        rows = [row for _ in range(count) for row in taken_in(one_by_one, 1)]
        assert taken_in(at_once, count) == rows
        assert at_once.cursors == one_by_one.cursors


def test_a_lane_returns_into_the_middle_of_what_it_took_at_once(mixture: StreamPlan) -> None:
    reading = lane(mixture, 2)
    taken_in(reading, 11)
    places, rows = [], []
    for count in (9, 30, 17):
        places.append((reading.place, reading.cursors))
        rows += taken_in(reading, count)
    behind = reading.cursors
    for place, first in zip([place for place, _ in places], (0, 9, 39), strict=True):
        reading.return_to(place)
        assert reading.cursors == dict(zip((0, 9, 39), [cursors for _, cursors in places], strict=True))[first]
        assert taken_in(reading, 5) + taken_in(reading, 51 - first) == rows[first:]
        assert reading.cursors == behind
    reading.forget(places[1][0])
    reading.return_to(places[2][0])
    assert taken_in(reading, 17) == rows[39:]
    reading.return_to(places[1][0])
    assert taken_in(reading, 47) == rows[9:]


def test_lanes_that_cannot_end_hold_no_group_behind_its_last_row(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(300, longest=30), "plain")
    for epochs, held in ((None, False), (2, True)):
        plan = plan_for(tmp_path, lanes=1, global_batch_size=8, sequence_length=24, window_bytes=60_000, max_epochs=epochs)
        assert plan.can_end is held
        reading = lane(plan, 0)
        [run] = reading.take(8)
        group = weakref.ref(run.group)
        del run
        assert (group() is not None) is held
        reading.forget(reading.place)
        assert group() is None
