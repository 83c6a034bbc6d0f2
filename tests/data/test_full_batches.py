"""Every step but the last of a run is full, whichever lanes end when, whoever reads them, and wherever the run is resumed."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_pretrain.config import Config, DataConfig, SourceConfig, TrainConfig, WeightChange
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.lanes.cursor_checks import refuse_impossible
from stream_pretrain.data.lanes.rows_per_lane import ENDLESS, LaneRows
from stream_pretrain.data.lanes.run_progress import counts_of, progress
from stream_pretrain.data.lanes.source_lane import SourceLane
from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.data.lanes.stream import Deal, Failure, RowStream, StepStream
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors, first_cursors
from stream_pretrain.data.rows.tokenizers_engine import TokenizersEngine
from stream_pretrain.errors import CheckpointError, ContentError
from tests.corpora import documents, write_shard
from tests.data.plans import TOKENIZER, cursors_of, next_step, plan_for, texts_of, unmasked


def lane_rows(given: list[int], left: list[int | None]) -> LaneRows:
    ends = [ENDLESS if rows is None else rows for rows in left]
    return LaneRows(0, np.array(given, dtype=np.int64), np.array(ends, dtype=np.int64))


def test_a_lane_that_ends_gives_what_it_has_and_the_others_the_rest() -> None:
    first = lane_rows([0, 0], [None, None])
    assert first.requested(4).tolist() == [2, 2]
    second = first.after(first.requested(4))
    assert second.requested(4).tolist() == [2, 2]
    second = second.knowing(np.array([1, 2]), 4)  # lane 0 turns out to have one row
    assert second.requested(4).tolist() == [1, 3]
    third = second.after(second.requested(4))
    assert (third.step, third.given.tolist(), third.requested(4).tolist()) == (2, [3, 5], [0, 4])
    last = third.knowing(np.array([0, 3]), 4)
    assert last.requested(4).tolist() == [0, 3]
    assert last.after(last.requested(4)).requested(4).tolist() == [0, 0]


@given(
    st.lists(st.tuples(st.integers(0, 12), st.one_of(st.none(), st.integers(0, 9))), min_size=1, max_size=12),
    st.integers(1, 40),
)
@settings(max_examples=150)
def test_rows_come_one_at_a_time_from_the_lane_that_has_given_the_fewest(
    lanes: list[tuple[int, int | None]], batch: int
) -> None:
    rows = [0] * len(lanes)
    for _ in range(batch):
        able = [n for n, (_, left) in enumerate(lanes) if left is None or rows[n] < left]
        if not able:
            break
        rows[min(able, key=lambda n: (lanes[n][0] + rows[n], n))] += 1
    assert lane_rows([given for given, _ in lanes], [left for _, left in lanes]).requested(batch).tolist() == rows


def steps_of(
    plan: StreamPlan, world: int, workers: int, cursors: list[LaneCursors], step: int, most: int = 999
) -> list[StepRows]:
    """The steps of a run from cursors on, of all ranks together, to its end."""
    steps = []
    with ExitStack() as stack:
        streams = [
            stack.enter_context(StepStream(plan, cursors, step=step, rank=rank, world=world, workers=workers))
            for rank in range(world)
        ]
        while len(steps) < most and len((rows := next_step(streams)).row_lane):
            steps.append(rows)
    return steps


def test_steps_that_are_prepared_ahead_are_those_that_are_read_where_lanes_end_too(uneven: StreamPlan) -> None:
    start, steps, ahead = first_cursors(5), list[StepRows](), 0
    with StepStream(uneven, start, workers=2) as stream:
        while len((rows := next(stream)).row_lane):
            steps.append(rows)
            for _ in range(3_000):
                stream.prepare()
                if stream._merged is not None:
                    ahead += 1
                    break
                time.sleep(0.01)
    assert list(map(plain, steps)) == list(map(plain, steps_of(uneven, 1, 0, start, 0)))
    assert ahead == len(steps), "that which says that all have ended, too"


def plain(step: StepRows) -> list[list[int]]:
    return [value.tolist() for value in (step.row_lane, step.trained.buffer, step.origins, step.cursors)]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> StreamPlan:
    """Five lanes of very different length, one of them without any row; seven rows a step."""
    folder = tmp_path_factory.mktemp("uneven")
    for number, (style, count) in enumerate([("plain", 150), ("zst", 20), ("gz", 60), ("parquet", 5)]):
        write_shard(folder / f"s{number}", documents(count, seed=number, longest=90), style)
    return plan_for(folder, lanes=5, global_batch_size=7, max_epochs=1, max_steps=None, window_bytes=60_000)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> StreamPlan:
    """Sources that end at different times, one after a change of shares, over three lanes."""
    folder = tmp_path_factory.mktemp("mixture")
    for number, (name, count) in enumerate({"a": 60, "b": 25, "c": 8}.items()):
        (folder / name).mkdir()
        write_shard(folder / name / "s", documents(count, seed=number, longest=90), "plain")
    sources = (SourceConfig("a", str(folder / "a"), 2), SourceConfig("b", str(folder / "b"), 3))
    options = DataConfig(
        sources=(*sources, SourceConfig("c", str(folder / "c"), 1, max_epochs=2)),
        weight_schedule=(WeightChange(3, {"c": 4.0}), WeightChange(9, {"b": 1.0})),
        sequence_length=64,
        lanes=3,
        window_bytes=3_000,
    )
    return stream_plan(Config(data=options, train=TrainConfig(max_epochs=1, global_batch_size=8)), TOKENIZER)


@pytest.fixture(scope="module", params=["uneven", "mixture"])
def run(request: pytest.FixtureRequest) -> tuple[StreamPlan, list[StepRows]]:
    """A plan and its undisturbed steps."""
    plan: StreamPlan = request.getfixturevalue(request.param)
    return plan, steps_of(plan, 1, 0, first_cursors(plan.layout.lanes, len(plan.sources)), 0)


def test_every_step_but_the_last_is_full(run: tuple[StreamPlan, list[StepRows]]) -> None:
    plan, steps = run
    counts = [len(step.row_lane) for step in steps]
    batch = plan.layout.global_batch_size
    assert counts[:-1] == [batch] * (len(steps) - 1)
    assert 0 < counts[-1] <= batch
    assert len({int(rows) for rows in steps[-1].cursors[:, :, 9].sum(axis=1)}) > 1, "lanes have ended at different times"


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 4, pytest.param(7, marks=pytest.mark.long)])
def test_the_steps_are_the_same_for_any_number_of_ranks_and_workers(
    run: tuple[StreamPlan, list[StepRows]], world: int, workers: int
) -> None:
    if world > 2 and workers > 1:
        pytest.skip("more processes than this shows anything by")
    plan, expected = run
    found = steps_of(plan, world, workers, first_cursors(plan.layout.lanes, len(plan.sources)), 0)
    assert list(map(plain, found)) == list(map(plain, expected))
    named = [sorted(skip for step in steps for skip in map(str, step.skipped)) for steps in (found, expected)]
    assert named[0] == named[1]


def test_a_run_is_resumed_at_every_step_as_if_it_had_never_stopped(run: tuple[StreamPlan, list[StepRows]]) -> None:
    plan, expected = run
    for done in range(1, len(expected)):
        world = 1 + done % 3
        found = steps_of(plan, world, 0, cursors_of(expected[done - 1]), done, most=4)
        assert list(map(plain, found)) == list(map(plain, expected[done : done + 4])), f"after step {done}"


def test_an_epoch_sees_every_document_once_though_its_lanes_end_at_different_times(uneven: StreamPlan) -> None:
    steps = steps_of(uneven, 2, 1, first_cursors(5), 0)
    seen = Counter(number for step in steps for row in unmasked(step.trained) for number in texts_of(row))
    assert seen == Counter(shard * 1000 + n for shard, count in enumerate((150, 20, 60, 5)) for n in range(count))


def test_what_is_skipped_behind_the_last_row_of_a_lane_is_named_once_though_its_step_is_dealt_again(tmp_path: Path) -> None:
    for number, count in enumerate((40, 10)):
        texts: list[str | None] = [*documents(count, seed=number, longest=60), *[None] * 30]
        write_shard(tmp_path / f"s{number}", texts, "plain")  # type: ignore[arg-type]
    plan = plan_for(tmp_path, lanes=2, global_batch_size=6, max_epochs=1, max_steps=None, window_bytes=600)
    for workers in (0, 2):
        steps = steps_of(plan, 1, workers, first_cursors(2), 0)
        with StepStream(plan, cursors_of(steps[-1]), step=len(steps)) as stream:
            behind = next(stream).skipped
        named = Counter((skip.shard, skip.offset) for step in steps for skip in step.skipped)
        named.update((skip.shard, skip.offset) for skip in behind)
        assert set(named.values()) == {1}
        total = sum(skip.documents or 0 for step in steps for skip in step.skipped) + sum(s.documents or 0 for s in behind)
        assert total == 60


def test_a_step_that_is_dealt_again_is_not_tokenized_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(16):
        write_shard(tmp_path / f"s{number}", documents(5 + 3 * number, seed=number, longest=60), "plain")
    plan = plan_for(tmp_path, lanes=16, global_batch_size=16, max_epochs=1, max_steps=None, window_bytes=1 << 20)
    encoded: Counter[str] = Counter()
    encode = TokenizersEngine.encode

    def counted(self: TokenizersEngine, texts: list[str], continued: list[bool]) -> object:
        encoded.update(texts)
        return encode(self, texts, continued)

    monkeypatch.setattr(TokenizersEngine, "encode", counted)
    steps = steps_of(plan, 1, 0, first_cursors(16), 0)
    assert sum(len(step.row_lane) for step in steps[:-1]) == 16 * (len(steps) - 1)
    assert set(encoded.values()) == {1}


def test_a_worker_that_fails_goes_on_telling_so_and_gives_the_rows_before_that_when_it_is_dealt_a_step_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "s", documents(120, longest=90), "plain")
    plan = plan_for(tmp_path, lanes=2, global_batch_size=4, max_epochs=1, max_steps=None, window_bytes=3_000)
    next_group, failures = SourceLane.next_group, []

    def failing(self: SourceLane) -> object:
        if self.cursor.rows == 11:
            failures.append(ContentError("damaged"))
            raise failures[-1]
        return next_group(self)

    monkeypatch.setattr(SourceLane, "next_group", failing)
    receiving, sending = multiprocessing.Pipe(duplex=False)
    with receiving, sending:
        items = iter(RowStream(plan, first_cursors(2), LaneRows.before(0, first_cursors(2)), [1], receiving, 10))
        given = [item.given.tolist() for item in (next(items) for _ in range(5)) if isinstance(item, StepRows)]
        assert given == [[2], [2], [2], [2], [2]]
        for _ in range(3):
            failure = next(items)
            assert isinstance(failure, Failure)
            assert failure.generation == 0
        sending.send(Deal(1, 2, np.array([0], dtype=np.int32), np.array([1], dtype=np.int32)))  # lane 0 has one more
        for step, rows in ((2, [3]), (3, [4])):
            again = next(items)
            assert isinstance(again, StepRows)
            assert (again.step, again.generation, again.given.tolist()) == (step, 1, rows)
        for _ in range(3):
            assert next(items) == Failure(1, failure.error)
    assert len(failures) == 1, "not read again"


def test_thousands_of_lanes_are_dealt_again_without_waiting_for_a_worker(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(20, longest=20), "plain")
    plan = plan_for(tmp_path, lanes=6_000, global_batch_size=4, max_epochs=1, max_steps=None)
    with StepStream(plan, first_cursors(6_000)) as stream:
        assert not stream.settle(np.zeros(6_000, dtype=np.int64))  # nobody takes it yet


def test_a_run_that_is_given_more_epochs_whenever_it_has_ended_stands_where_it_can(tmp_path: Path) -> None:
    for number, count in enumerate((40, 10)):
        write_shard(tmp_path / f"s{number}", documents(count, seed=number, longest=60), "plain")
    cursors, done, missing = first_cursors(2), 0, 0
    for epochs in (1, 2, 3):
        plan = plan_for(tmp_path, lanes=2, global_batch_size=6, max_epochs=epochs, max_steps=None, window_bytes=600)
        for step in steps_of(plan, 1, 0, cursors, done):
            cursors, done, missing = cursors_of(step), done + 1, missing + 6 - len(step.row_lane)
            refuse_impossible(cursors, plan, done, "stream.json")
    assert missing
    with pytest.raises(CheckpointError, match="the lanes have given"):
        refuse_impossible(cursors, plan, done + 3, "stream.json")


@pytest.mark.parametrize("name", ["uneven", "mixture"])
def test_progress_follows_the_rows_that_were_read(name: str, request: pytest.FixtureRequest) -> None:
    plan: StreamPlan = request.getfixturevalue(name)
    steps = steps_of(plan, 1, 0, first_cursors(plan.layout.lanes, len(plan.sources)), 0)
    counts = [counts_of(plan, dict(enumerate(cursors_of(step)))) for step in steps]
    found = [progress(plan, of_step, done) for done, of_step in enumerate(counts, start=1)]
    rows = np.cumsum([len(step.row_lane) for step in steps])
    assert np.abs(np.maximum.accumulate(found) - rows / rows[-1]).max() < 0.1  # of few steps
    assert found[-1] == 1
