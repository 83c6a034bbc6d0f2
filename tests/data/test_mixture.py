"""Rows come from the sources of a mixture by their weights, at every row, whatever happens to the run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_pretrain.config import Config, DataConfig, SourceConfig, TrainConfig, WeightChange
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.mixture import PARTS, choose, parts_of, phases_of
from stream_pretrain.data.lanes.run_progress import counts_of, progress
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import cursors_from, first_cursors, stream_state
from tests.corpora import documents, write_shard
from tests.data.plans import TOKENIZER, cursors_of, lane, ledger, next_row


def plan_for(folder: Path, sources: dict[str, dict], lanes: int = 4, batch: int = 8, **options: object) -> StreamPlan:
    in_train = {name: value for name, value in options.items() if name in TrainConfig.__dataclass_fields__}
    in_data = {name: value for name, value in options.items() if name in DataConfig.__dataclass_fields__}
    config = Config(
        data=DataConfig(
            **{"sequence_length": 64, "lanes": lanes, "window_bytes": 40_000}
            | in_data
            | {"sources": tuple(SourceConfig(name, str(folder / name), **source) for name, source in sources.items())}
        ),
        train=TrainConfig(**{"max_steps": 1000, "global_batch_size": batch} | in_train),
    )
    return stream_plan(config, TOKENIZER)


def write_sources(folder: Path, **counts: int) -> None:
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir()
        style = ["plain", "zst", "parquet", "gz"][number % 4]
        write_shard(folder / name / "shard", documents(count, seed=number), style)


def sources_of_rows(plan: StreamPlan, number: int, count: int) -> list[int]:
    reading = lane(plan, number)
    rows = [next_row(reading) for _ in range(count)]
    return [row[0] for row in rows if row is not None]


def chosen_by(weights: list[float], rows: int, number: int = 0, lanes: int = 64) -> list[int]:
    """Sources of the first rows of a lane."""
    parts = parts_of(weights)
    credits, phases, chosen = (0,) * len(parts), phases_of(7, number, lanes, len(parts)), []
    for _ in range(rows):
        source, credits = choose(credits, parts, phases)
        chosen.append(source)
    return chosen


def most_off(chosen: list[int], weights: list[float]) -> float:
    """How many rows any source is behind or ahead of its share, at the most, over all prefixes; weights are rounded to 1e-9."""
    given = np.cumsum(np.array(chosen)[:, None] == np.arange(len(weights)), axis=0)
    shares = np.arange(1, len(chosen) + 1)[:, None] * (np.array(weights) / sum(weights))
    return float((abs(given - shares) - 1e-9 * len(chosen)).max())


def test_three_sources_take_turns_as_their_weights_say() -> None:
    credits, chosen = (0, 0, 0), []
    for _ in range(10):
        source, credits = choose(credits, (5, 3, 2), (PARTS, PARTS, PARTS))
        chosen.append(source)
    assert chosen == [0, 1, 0, 2, 0, 1, 0, 1, 0, 2]
    assert credits == (0, 0, 0)


def test_a_lane_gives_a_source_when_it_is_as_far_behind_as_its_phase_says() -> None:
    for phase, place in ((PARTS // 10, 0), (PARTS // 2, 4), (PARTS, 9)):
        credits, chosen = (0, 0), []
        for _ in range(30):
            source, credits = choose(credits, (9, 1), (PARTS, phase))
            chosen.append(source)
        assert [row for row, source in enumerate(chosen) if source == 1] == [place, place + 10, place + 20]


@settings(max_examples=60)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12), st.integers(0, 63))
def test_no_source_is_ever_a_whole_row_behind_or_ahead_of_its_share(weights: list[float], number: int) -> None:
    parts = parts_of(weights)
    total, counts = sum(parts), Counter[int]()
    credits, phases = (0,) * len(parts), phases_of(7, number, 64, len(parts))
    for row in range(1, 400):
        source, credits = choose(credits, parts, phases)
        counts[source] += 1
        assert credits == tuple(row * part - counts[i] * total for i, part in enumerate(parts))
        assert all(abs(credit) < total for credit in credits)


@pytest.mark.parametrize(
    "weights",
    [
        [0.5, 0.2, 0.15, 0.1, 0.05],
        [9, 1],
        [3, 1],
        [1] * 20,
        [0.6, 0.399, 0.001],
        [1 / n for n in range(1, 13)],
        [1] + [0.0001] * 8,
    ],
)
def test_any_prefix_of_any_lane_is_within_one_row_of_each_source(weights: list[float]) -> None:
    for number in range(64):
        assert most_off(chosen_by(weights, 200, number), weights) < 1
    assert most_off(chosen_by(weights, 5000, 17), weights) < 1


def test_a_source_without_weight_gives_no_row() -> None:
    assert parts_of([0.5, 0, 1.5]) == (250_000_000, 0, 750_000_000)
    assert Counter(chosen_by([0.5, 0, 1.5], 20)) == {0: 5, 2: 15}


def test_any_prefix_of_a_lane_has_the_mixture(tmp_path: Path) -> None:
    write_sources(tmp_path, a=400, b=400, c=400)
    plan = plan_for(tmp_path, {"a": {"weight": 6}, "b": {"weight": 3}, "c": {"weight": 1}})
    for number in range(4):
        assert most_off(sources_of_rows(plan, number, 150), [6, 3, 1]) < 1


def test_rows_have_the_mixture_from_a_change_of_weights_and_from_where_a_source_leaves(tmp_path: Path) -> None:
    write_sources(tmp_path, a=300, b=300, c=300, short=24)
    sources = {"a": {"weight": 5}, "b": {"weight": 2}, "c": {"weight": 1}, "short": {"weight": 2, "max_epochs": 1}}
    change = (WeightChange(100, {"a": 1, "b": 4, "c": 3}),)  # two rows of a lane a step
    plan = plan_for(tmp_path, sources, weight_schedule=change)
    before = []
    for number in range(4):
        reading = lane(plan, number)
        chosen, ended = [], []
        for _ in range(330):
            row = next_row(reading)
            assert row is not None
            chosen.append(row[0])
            ended.append(reading.sources[3].ended)
        left = ended.index(True)
        before += chosen[:left]
        assert left < 150
        assert most_off(chosen[:left], [5, 2, 1, 2]) < 1
        assert most_off(chosen[left:200], [5, 2, 1]) < 1
        assert most_off(chosen[200:], [1, 4, 3]) < 1
    assert before.count(3) > 6


@pytest.mark.parametrize(("weights", "rare"), [([9, 1], 1), ([1 / n for n in range(1, 13)], 11), ([1] * 20, 3)])
def test_lanes_ask_for_a_rare_source_in_steps_of_their_own(weights: list[float], rare: int) -> None:
    period = round(sum(weights) / weights[rare])
    chosen = np.array([chosen_by(weights, 6 * period, number) for number in range(64)]) == rare
    first = chosen.argmax(axis=1)
    assert np.percentile(first, [25, 50, 75]) == pytest.approx([period / 4, period / 2, period * 3 / 4], abs=period / 8)
    assert chosen.sum(axis=0).max() <= 64 / period + 8, "of 64 lanes, in any step, not only in the first"


def test_lanes_do_not_ask_for_a_rare_source_in_the_same_step(tmp_path: Path) -> None:
    write_sources(tmp_path, a=300, b=300)
    plan = plan_for(tmp_path, {"a": {"weight": 9}, "b": {"weight": 1}}, lanes=8)
    rare = [sources_of_rows(plan, number, 40) for number in range(8)]
    for row in range(0, 40, 10):
        assert len({chosen[row : row + 10].index(1) for chosen in rare}) >= 6


def test_a_mixture_goes_on_from_every_position_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    write_sources(tmp_path, a=100, b=60, c=40)
    sources = {"a": {"weight": 2}, "b": {"weight": 1, "max_epochs": 1}, "c": {"weight": 1}}
    plan = plan_for(tmp_path, sources, lanes=2, weight_schedule=(WeightChange(20, {"c": 3}), WeightChange(35, {"a": 0.5})))
    reading = lane(plan, 1)
    rows, states = [], []
    for _ in range(200):
        states.append(json.loads(json.dumps(reading.cursors)))
        row = next_row(reading)
        assert row is not None
        rows.append((row[0], row[1].rows.input_ids[row[2]].tolist()))
    assert states[-1][1][Cursor._fields.index("epoch")] == 1, "source b has ended on the way"
    for k in range(0, 180, 3):
        resumed = lane(plan, 1, tuple(Cursor(*cursor) for cursor in states[k]))
        again = [next_row(resumed) for _ in range(20)]
        assert [(row[0], row[1].rows.input_ids[row[2]].tolist()) for row in again if row] == rows[k : k + 20], f"after row {k}"
        assert json.loads(json.dumps(resumed.cursors)) == states[k + 20], f"after row {k}"
        assert all(len(json.dumps(cursor)) <= 256 for cursor in states[k])


def test_the_rows_of_a_mixture_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    write_sources(tmp_path, a=200, b=200, c=3)
    sources = {"a": {"weight": 5}, "b": {"weight": 3, "max_epochs": 1}, "c": {"weight": 2}}
    plan = plan_for(tmp_path, sources, weight_schedule=(WeightChange(10, {"a": 1}),))
    expected, _ = ledger(plan, 30, workers=0)
    for workers in (1, 2, 3):
        assert ledger(plan, 30, workers)[0] == expected
    seen, cursors = [], first_cursors(4, 3)
    for steps, workers in ((9, 2), (1, 3), (12, 0), (8, 1)):
        state = json.loads(json.dumps(stream_state(len(seen), cursors)))
        part, cursors = ledger(plan, steps, workers, cursors_from(state, len(seen), 4, "the state"), len(seen))
        seen += part
    assert seen == expected


def test_weights_change_at_their_step_not_before(tmp_path: Path) -> None:
    write_sources(tmp_path, a=300, b=300)
    plan = plan_for(tmp_path, {"a": {"weight": 1}, "b": {"weight": 0}}, weight_schedule=(WeightChange(6, {"a": 1, "b": 3}),))
    chosen = sources_of_rows(plan, 0, 2 * 26)  # two rows of a lane a step
    assert chosen[:12] == [0] * 12
    assert Counter(chosen[12:]) == {0: 10, 1: 30}


def test_a_source_leaves_after_its_epochs_and_the_others_share_its_part(tmp_path: Path) -> None:
    write_sources(tmp_path, a=300, b=300, short=30)
    sources = {"a": {"weight": 1}, "b": {"weight": 3}, "short": {"weight": 4, "max_epochs": 2}}
    plan = plan_for(tmp_path, sources, lanes=2, batch=2)
    for number in range(2):
        chosen = sources_of_rows(plan, number, 180)
        last = max(row for row, source in enumerate(chosen) if source == 2)
        assert last < 100
        rest = Counter(chosen[last + 1 :])
        assert rest[1] / rest[0] == pytest.approx(3, rel=0.15)
    reading = [lane(plan, number) for number in range(2)]
    seen: Counter[tuple[int, int]] = Counter()
    shard = plan.sources[2].first_shard
    for each in reading:
        for _ in range(120):
            row = next_row(each)
            assert row is not None
            segments = row[1].rows.segments_of(range(row[2], row[2] + 1))
            first = row[1].rows.segment_token[segments] == 0
            seen.update((s, o) for _, s, o in row[1].origins[segments][first].tolist() if s == shard)
    assert set(seen.values()) == {2}
    assert len(seen) == 30


def test_a_source_too_small_for_every_lane_is_read_whole_by_each_in_its_own_order(tmp_path: Path) -> None:
    write_sources(tmp_path, a=300, tiny=12)
    plan = plan_for(tmp_path, {"a": {"weight": 1}, "tiny": {"weight": 1}}, lanes=4)
    assert [source.undealt for source in plan.sources] == [False, True]
    orders = []
    for number in range(4):
        reading, order = lane(plan, number), []
        while len(order) < 12:
            row = next_row(reading)
            assert row is not None
            if row[0] == 1:
                segments = row[1].rows.segments_of(range(row[2], row[2] + 1))
                order += row[1].origins[segments][row[1].rows.segment_token[segments] == 0, 2].tolist()
        assert len(set(order[:12])) == 12
        orders.append(tuple(order[:12]))
    assert len(set(orders)) == 4


def test_the_windows_of_a_mixture_are_together_as_large_as_that_of_one_source(tmp_path: Path) -> None:
    names = [f"s{i}" for i in range(20)]
    write_sources(tmp_path, **dict.fromkeys(names, 3))
    plan = plan_for(tmp_path, {name: {"weight": 1} for name in names}, window_bytes=4_000_000)
    windows = [source.read.window_bytes for source in plan.sources]
    assert windows == [200_000] * 20
    uneven = plan_for(tmp_path, {"s0": {"weight": 3}, "s1": {"weight": 1}}, window_bytes=4_000_000)
    assert [source.read.window_bytes for source in uneven.sources] == [3_000_000, 1_000_000]


def test_the_requests_of_a_mixture_are_together_about_as_large_as_that_of_one_source(tmp_path: Path) -> None:
    names = [f"s{i}" for i in range(20)]
    write_sources(tmp_path, **dict.fromkeys(names, 3))
    even = plan_for(tmp_path, {name: {"weight": 1} for name in names})
    assert [source.read.transport.block_bytes for source in even.sources] == [512 * 1024] * 20
    uneven = plan_for(tmp_path, {"s0": {"weight": 3}, "s1": {"weight": 1}})
    assert [source.read.transport.block_bytes for source in uneven.sources] == [6 * 2**20, 2 * 2**20]


def test_a_lane_without_a_source_that_has_a_weight_goes_on_by_the_next_weights_that_give_one(tmp_path: Path) -> None:
    write_sources(tmp_path, a=30, b=300, c=300)
    sources = {"a": {"weight": 1, "max_epochs": 1}, "b": {"weight": 0}, "c": {"weight": 0}}
    changes = (WeightChange(100, {"c": 0}), WeightChange(200, {"a": 1, "b": 3, "c": 1}))
    plan = plan_for(tmp_path, sources, weight_schedule=changes, window_bytes=2_000)
    for number in range(4):
        reading = lane(plan, number)
        rows, states = [], []
        for _ in range(500):  # two rows of a lane a step
            states.append(reading.cursors)
            row = next_row(reading)
            assert row is not None, "the lanes stay together"
            rows.append((row[0], row[1].rows.input_ids[row[2]].tolist()))
        chosen = [source for source, _ in rows]
        left = chosen.index(1) if chosen.index(1) < chosen.index(2) else chosen.index(2)
        assert set(chosen[:left]) == {0}
        assert left < 150
        for phase in (chosen[left:200], chosen[200:400], chosen[400:]):
            assert most_off(phase, [0, 3, 1]) < 1
        for k in range(left - 1, 480, 31):
            resumed = lane(plan, number, tuple(states[k]))
            again = [next_row(resumed) for _ in range(20)]
            assert [(row[0], row[1].rows.input_ids[row[2]].tolist()) for row in again if row] == rows[k : k + 20]


def test_an_epoch_of_all_sources_sees_every_document_once_and_ends(tmp_path: Path) -> None:
    write_sources(tmp_path, a=90, b=31, c=7)
    plan = plan_for(tmp_path, {"a": {"weight": 1}, "b": {"weight": 5}, "c": {"weight": 1}}, max_epochs=1, max_steps=None)
    assert [source.undealt for source in plan.sources] == [False, False, False]
    seen: Counter[tuple[int, int]] = Counter()
    for number in range(4):
        reading = lane(plan, number)
        while (row := next_row(reading)) is not None:
            segments = row[1].rows.segments_of(range(row[2], row[2] + 1))
            first = row[1].rows.segment_token[segments] == 0
            seen.update((shard, offset) for _, shard, offset in row[1].origins[segments][first].tolist())
    assert set(seen.values()) == {1}
    assert len(seen) == 128


def test_the_epochs_of_a_source_whose_weight_has_gone_are_not_waited_for(tmp_path: Path) -> None:
    write_sources(tmp_path, a=600, b=900, never=90)
    sources = {"a": {"weight": 1}, "b": {"weight": 1}, "never": {"weight": 0}}
    change = (WeightChange(60, {"b": 0}),)  # two rows of a lane a step
    plan = plan_for(tmp_path, sources, max_epochs=1, max_steps=None, weight_schedule=change, window_bytes=4_000)
    with StepStream(plan, first_cursors(4, 3)) as stream:
        for done, step in enumerate(stream, start=1):
            counts = counts_of(plan, dict(enumerate(cursors_of(step))))
            found = progress(plan, counts, done)
            if not len(step.row_lane):
                break
            assert 0 < found <= 1
            assert done >= 60 or found < 0.5
    assert found == 1
    assert 0 < counts[1, 1].sum() < plan.sources[1].bytes_of_epoch


def test_sources_are_dealt_and_shuffled_each_in_its_own_way(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for shard in range(6):
            write_shard(tmp_path / name / f"s{shard}", documents(40, seed=shard), "plain")
    plan = plan_for(tmp_path, {"a": {}, "b": {}})
    dealt = [[source.stripes(epoch, 0) for epoch in range(4)] for source in plan.sources]
    assert dealt[0] != dealt[1]


def test_held_out_documents_of_a_source_never_train(tmp_path: Path) -> None:
    from stream_pretrain.data.documents.filters import is_heldout

    write_sources(tmp_path, a=200, b=200)
    plan = plan_for(tmp_path, {"a": {"heldout_fraction": 0.3}, "b": {}}, max_epochs=1)
    kept = sum(not is_heldout(text, 0.3) for text in documents(200, seed=0))
    assert 100 < kept < 180
    began = Counter[int]()
    for number in range(4):
        reading = lane(plan, number)
        while next_row(reading) is not None:
            pass
        for source, cursor in enumerate(reading.cursors):
            began[source] += cursor.documents
    assert began == {0: kept, 1: 200}


def test_a_larger_share_in_a_later_phase_decides_the_window(tmp_path: Path) -> None:
    write_sources(tmp_path, a=3, b=3)
    change = (WeightChange(5, {"a": 1, "b": 3}),)
    plan = plan_for(tmp_path, {"a": {"weight": 3}, "b": {"weight": 1}}, window_bytes=4_000_000, weight_schedule=change)
    assert [source.read.window_bytes for source in plan.sources] == [3_000_000, 3_000_000]


def test_one_dataset_is_a_mixture_of_one(tmp_path: Path) -> None:
    write_sources(tmp_path, a=50)
    named = plan_for(tmp_path, {"a": {"weight": 0.3}})
    alone = plan_for(tmp_path, {}, dataset=str(tmp_path / "a"))
    assert replace(named.sources[0], name="") == alone.sources[0]
    assert ledger(named, 5, workers=0)[0] == ledger(alone, 5, workers=0)[0]


def test_the_steps_of_a_phase_follow_each_other(tmp_path: Path) -> None:
    write_sources(tmp_path, a=50, b=50)
    changes = (WeightChange(3, {"a": 2}), WeightChange(8, {"b": 4}))
    plan = plan_for(tmp_path, {"a": {"weight": 1}, "b": {"weight": 1}}, weight_schedule=changes)
    assert [weights.from_step for weights in plan.schedule] == [0, 3, 8]
    assert all(np.subtract(b.parts, a.parts).any() for a, b in pairwise(plan.schedule))
    assert [plan.shares_at(step).from_step for step in (0, 2, 3, 7, 8, 999)] == [0, 0, 3, 3, 8, 8]
