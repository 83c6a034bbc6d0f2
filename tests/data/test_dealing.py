"""Every window of the corpus is dealt to one lane, and every lane has as much to read as the others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.lanes.dealing import LEVEL, deal
from stream_pretrain.data.lanes.lane_count import lane_count
from tests.corpora import documents, write_shard
from tests.data.plans import plan_for

RNG = np.random.default_rng(0)
WINDOW = 4_000_000


def windows_of(sizes: list[int]) -> list[int]:
    return [max(1, size // WINDOW) for size in sizes]


def loads_of(dealt: list[list[Stripe]], sizes: list[int], windows: list[int]) -> list[float]:
    """Bytes of each lane: a stripe has its share of the windows of its shard."""
    return [
        sum(sizes[s.unit] * len(range(s.first, windows[s.unit], s.count)) / windows[s.unit] for s in stripes)
        for stripes in dealt
    ]


def fullest(sizes: list[int], lanes: int, epoch: int = 0) -> float:
    """Load of the fullest lane over the mean."""
    windows = windows_of(sizes)
    loads = loads_of(deal(sizes, windows, lanes, 0, epoch), sizes, windows)
    assert sum(loads) == pytest.approx(sum(sizes))
    return max(loads) * lanes / sum(loads)


def test_equal_shards_go_round_and_the_rest_is_striped() -> None:
    dealt = deal([100, 100, 100], [10, 10, 10], 2, seed=1, epoch=0)
    assert sorted(stripe for stripes in dealt for stripe in [(s.first, s.count) for s in stripes]) == [
        (0, 1),
        (0, 1),
        (0, 2),
        (1, 2),
    ]
    assert [len(stripes) for stripes in dealt] == [2, 2]
    assert {stripes[0].count for stripes in dealt} == {2}, "a lane reads its stripes of shared shards first"


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 10**6)), st.integers(1, 40)), min_size=1, max_size=30),
    st.integers(1, 20),
    st.integers(0, 3),
)
def test_every_window_of_every_shard_is_in_exactly_one_lane(
    shards: list[tuple[int | None, int]], lanes: int, epoch: int
) -> None:
    sizes, windows = zip(*shards, strict=True)
    dealt = deal(sizes, windows, lanes, seed=3, epoch=epoch)
    assert len(dealt) == lanes
    seen = Counter((s.unit, w) for stripes in dealt for s in stripes for w in range(s.first, windows[s.unit], s.count))
    assert seen == Counter((shard, w) for shard, count in enumerate(windows) for w in range(count))
    assert all(s.count <= windows[s.unit] for stripes in dealt for s in stripes)


def test_a_deal_depends_on_nothing_but_its_arguments() -> None:
    sizes = RNG.integers(1, 10**9, 50).tolist()
    first = deal(sizes, windows_of(sizes), 8, seed=1, epoch=2)
    assert deal(sizes, windows_of(sizes), 8, seed=1, epoch=2) == first
    assert deal(sizes, windows_of(sizes), 8, seed=1, epoch=3) != first
    assert deal(sizes, windows_of(sizes), 8, seed=2, epoch=2) != first


def test_of_the_deals_of_earlier_epochs_none_is_kept(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(50), "plain")
    [source] = plan_for(tmp_path, lanes=2).sources
    for epoch in (0, 1, 2, 0, 3, 1, 4, 5):  # lanes of a process are in different ones
        source.stripes(epoch, 0)
    assert sorted(source._dealt) == [4, 5]


def test_a_lane_without_a_shard_gets_one_in_another_epoch() -> None:
    without = [{lane for lane, stripes in enumerate(deal([5], [1], 4, 0, epoch)) if not stripes} for epoch in range(30)]
    assert all(len(lanes) == 3 for lanes in without)
    assert set.intersection(*without) == set()


@pytest.mark.parametrize(
    ("sizes", "lanes"),
    [
        pytest.param([10**9] * 100, 64, id="equal"),
        pytest.param([10**9] * 65, 64, id="one more than lanes"),
        pytest.param([4 * 10**9] * 5, 64, id="fewer than lanes"),
        pytest.param([10**9] * 3, 7, id="fewer than few lanes"),
        pytest.param([10**10], 64, id="one"),
        pytest.param([10**10] + [10**7] * 50, 64, id="one huge"),
        pytest.param([10**9] * 1100, 1024, id="many lanes"),
        pytest.param(RNG.lognormal(20, 1, 64).astype(int).tolist(), 64, id="log-normal, as many as lanes"),
        pytest.param(RNG.lognormal(20, 1.5, 300).astype(int).tolist(), 64, id="log-normal, more than lanes"),
        pytest.param(RNG.lognormal(21, 2, 10).astype(int).tolist(), 32, id="log-normal, fewer than lanes"),
    ],
)
def test_lanes_have_as_much_to_read_as_the_others(sizes: list[int], lanes: int) -> None:
    assert fullest(sizes, lanes) <= LEVEL
    assert fullest(sizes, lanes, epoch=1) <= LEVEL


def test_as_few_lanes_as_needed_share_a_shard() -> None:
    dealt = deal([100] * 8, [50] * 8, 8, 0, 0)
    assert [len(stripes) for stripes in dealt] == [1] * 8
    assert all(stripe.count == 1 for stripes in dealt for stripe in stripes)
    dealt = deal([100] * 9, [50] * 9, 8, 0, 0)
    assert Counter(stripe.count for stripes in dealt for stripe in stripes) == {1: 8, 8: 8}


def test_a_shard_is_cut_into_no_more_stripes_than_it_has_windows() -> None:
    dealt = deal([10**9] * 2, [3, 3], 64, 0, 0)
    assert Counter(stripe.count for stripes in dealt for stripe in stripes) == {3: 6}


def test_shards_of_unknown_size_count_as_the_mean_of_the_others() -> None:
    dealt = deal([300, None, 100, None], [1] * 4, 2, 0, 0)
    assert sorted(sorted(stripe.unit for stripe in stripes) for stripes in dealt) == [[0, 2], [1, 3]]
    dealt = deal([None] * 10, [4] * 10, 5, 0, 0)
    assert [len(stripes) for stripes in dealt] == [2] * 5


def test_a_hundred_thousand_shards_are_dealt_to_a_thousand_lanes() -> None:
    sizes = np.random.default_rng(1).lognormal(18, 1, 100_000).astype(int).tolist()
    assert fullest(sizes, 1024) <= 1.001


@pytest.mark.parametrize(
    ("lanes", "windows", "units", "world", "workers"),
    [
        (8, 0, 1, 1, 1),
        (8, 71, 1000, 1, 1),
        (9, 72, 1000, 1, 1),
        (64, 10**6, 1000, 1, 1),
        (8, 10**6, 5, 1, 1),
        (16, 10**6, 5, 8, 2),
        (9, 71, 5, 9, 1),
        (128, 10**6, 1000, 128, 1),
        (48, 0, 1000, 48, 4),
        (192, 10**6, 1000, 48, 4),
    ],
)
def test_lanes_have_eight_windows_and_are_between_8_and_64_or_one_a_process(
    lanes: int, windows: int, units: int, world: int, workers: int
) -> None:
    assert lane_count(windows, units, world=world, workers=workers) == lanes


def test_a_single_shard_of_unknown_size_is_shared_by_all_lanes() -> None:
    assert deal([None], [4], 4, seed=0, epoch=0) != deal([None], [1], 4, seed=0, epoch=0)
    assert sorted(stripe.first for lane in deal([None], [4], 4, seed=0, epoch=0) for stripe in lane) == [0, 1, 2, 3]
