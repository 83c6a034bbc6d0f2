"""Every token is placed once, rows are full, and nothing depends on documents that are not needed."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stream_pretrain.data.rows.packing import SMALLEST_FRAGMENT, Packing, Rows, assemble, gather, place
from tests.corpora import documents, write_shard
from tests.data.plans import lane, plan_for, row_of, texts_of

PACKINGS: list[Packing] = ["best_fit", "concat", "none"]
CLS, SEP, PAD = 2, 3, 0


def test_best_fit_places_the_largest_first_and_fills_the_gaps_with_what_follows() -> None:
    placements, left = place([30, 60, 40, 50, 80, 90], 0, rows=2, capacity=100, framing=2, packing="best_fit")
    assert sorted(map(tuple, placements.tolist())) == [(0, 0, 0, 30), (0, 1, 0, 60), (1, 2, 0, 40), (1, 3, 0, 50)]
    assert left == (4, 0)
    placements, left = place([30, 50, 40, 50, 80, 90], 0, rows=2, capacity=110, framing=2, packing="best_fit")
    assert sorted(map(tuple, placements.tolist())) == [
        (0, 1, 0, 50),
        (0, 3, 0, 50),
        (1, 0, 0, 30),
        (1, 2, 0, 40),
        (1, 4, 0, 34),
    ]
    assert left == (4, 34)


def test_the_tokens_that_were_placed_before_take_no_room() -> None:
    placements, left = place([1000, 40, 90, 60, 200], 970, rows=2, capacity=100, framing=2, packing="best_fit")
    assert sorted(map(tuple, placements.tolist())) == [(0, 2, 0, 90), (1, 0, 970, 1000), (1, 1, 0, 40), (1, 3, 0, 24)]
    assert left == (3, 24)


def test_a_document_that_no_row_takes_is_split_so_that_the_gap_it_leaves_can_be_filled() -> None:
    placements, left = place([520, 400, 700], 0, rows=2, capacity=512, framing=2, packing="best_fit")
    assert sorted(map(tuple, placements.tolist())) == [
        (0, 0, 492, 520),
        (0, 1, 0, 400),
        (0, 2, 0, 78),
        (1, 0, 0, 492),
        (1, 2, 78, 94),
    ]
    assert left == (2, 94)


def test_concat_takes_documents_in_their_order() -> None:
    placements, left = place([30, 60, 40, 50], 10, rows=2, capacity=64, framing=2, packing="concat")
    assert placements.tolist() == [[0, 0, 10, 30], [0, 1, 0, 40], [1, 1, 40, 60], [1, 2, 0, 40]]
    assert left == (3, 0)


def test_none_gives_every_document_a_row_or_several() -> None:
    placements, left = place([5, 70, 8, 9], 0, rows=4, capacity=64, framing=2, packing="none")
    assert placements.tolist() == [[0, 0, 0, 5], [1, 1, 0, 54], [2, 1, 54, 70], [3, 2, 0, 8]]
    assert left == (3, 0)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_fragment_leaves_a_fragment(packing: Packing) -> None:
    placements, left = place([65], 0, rows=2, capacity=64, framing=2, packing=packing)
    assert placements[0].tolist() == [0, 0, 0, 49]
    assert left == ((0, 49) if packing == "best_fit" else (1, 0)), "best fit begins no row that it cannot fill"


def test_where_the_documents_end_only_rows_that_they_fill_are_begun() -> None:
    placements, left = place([300] * 7, 0, rows=16, capacity=512, framing=2, packing="best_fit")
    assert sorted(map(tuple, placements.tolist())) == [
        *[(0, 0, 0, 300), (0, 4, 208, 300), (0, 5, 208, 300), (0, 6, 208, 228)],
        *[(1, 1, 0, 300), (1, 6, 0, 208)],
        *[(2, 2, 0, 300), (2, 5, 0, 208)],
        *[(3, 3, 0, 300), (3, 4, 0, 208)],
    ]
    assert left == (6, 228)
    placements, left = place([300], 228, rows=16, capacity=512, framing=2, packing="best_fit")
    assert (placements.tolist(), left) == ([[0, 0, 228, 300]], (1, 0))


@settings(max_examples=400)
@given(
    lengths=st.lists(
        st.one_of(st.integers(1, 20), st.integers(1, 200), st.integers(1, 1500)),
        min_size=1,
        max_size=40,
    ),
    rows=st.integers(1, 16),
    capacity=st.sampled_from([8, 32, 100, 128]),
    framing=st.integers(0, 3),
    packing=st.sampled_from(PACKINGS),
    offset=st.floats(0, 1),
)
def test_every_token_is_placed_once_and_only_the_last_document_is_left_unfinished(
    lengths: list[int], rows: int, capacity: int, framing: int, packing: Packing, offset: float
) -> None:
    fragment = min(SMALLEST_FRAGMENT, (capacity - framing) // 2)
    first_token = int(offset * (lengths[0] - fragment)) if lengths[0] >= 2 * fragment else 0
    first_token = first_token if first_token >= fragment else 0
    check_placements(lengths, first_token, rows, capacity, framing, packing)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("capacity", [128, 512])
@pytest.mark.parametrize(("shortest", "longest"), [(10, 20), (1, 3), (50, 130), (1, 4000)])
def test_this_holds_for_large_groups_of_documents_of_all_lengths(
    shortest: int, longest: int, capacity: int, packing: Packing
) -> None:
    lengths = np.random.default_rng(3).integers(shortest, longest + 1, 6000)
    check_placements(lengths.tolist(), 0, 128, capacity, 2, packing)


def check_placements(lengths: list[int], first_token: int, rows: int, capacity: int, framing: int, packing: Packing) -> None:
    fragment = min(SMALLEST_FRAGMENT, (capacity - framing) // 2)
    placements, (document, token) = place(lengths, first_token, rows, capacity, framing, packing)
    assert len(placements)

    used = defaultdict(int)
    placed: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row, of, start, stop in placements.tolist():
        used[row] += stop - start + framing
        placed[of].append((start, stop))
        whole = stop - start == lengths[of]
        assert stop - start >= fragment or whole, "no small fragment"
    assert all(0 <= row < rows and positions <= capacity for row, positions in used.items())
    for of, length in enumerate(lengths):
        pieces = sorted(placed[of])
        starts = [first_token if of == 0 else 0, *(stop for _, stop in pieces)]
        assert [start for start, _ in pieces] == starts[:-1], "no gap and no overlap"
        assert starts[-1] == (length if of < document else token if of == document else 0)
    if document < len(lengths):
        assert token in (0, first_token) or fragment <= token <= lengths[document] - fragment


@settings(max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=30, max_size=60),
    more=st.lists(st.integers(1, 300), max_size=20),
    longer=st.integers(0, 5000),
    packing=st.sampled_from(PACKINGS),
)
def test_placements_do_not_depend_on_documents_beyond_what_is_needed(
    lengths: list[int], more: list[int], longer: int, packing: Packing
) -> None:
    rows, capacity, framing = 4, 100, 2
    needed, enough = rows * capacity + SMALLEST_FRAGMENT + 1, 0
    assume(sum(lengths) + framing * len(lengths) >= needed)
    if packing == "none":
        enough = rows + 1
    else:
        while sum(lengths[:enough]) + framing * enough < needed:
            enough += 1
    just_enough = lengths[:enough]
    placements, left = place(just_enough, 0, rows, capacity, framing, packing)
    expected = placements.tolist(), left
    placements, left = place(lengths + more, 0, rows, capacity, framing, packing)
    assert (placements.tolist(), left) == expected
    if packing != "none":  # nor on how far the last one was tokenized
        just_enough[-1] += longer
        placements, left = place(just_enough, 0, rows, capacity, framing, packing)
        assert (placements.tolist(), left) == expected


def share(lengths: list[int], capacity: int, packing: Packing, group: int = 16) -> float:
    """Share of the positions of a window's rows that are not padding, packed in groups of rows."""
    document, token, real, rows = 0, 0, 0, 0
    while document < len(lengths):
        placements, (passed, token) = place(lengths[document:], token, group, capacity, 2, packing)
        document += passed
        real += int((placements[:, 3] - placements[:, 2] + 2).sum())
        rows += len(set(placements[:, 0].tolist()))
    return real / (rows * capacity)


@pytest.mark.parametrize("packing", ["best_fit", "concat"])
@pytest.mark.parametrize("capacity", [128, 512, 2048, 8192])
def test_99_of_100_positions_hold_real_tokens(capacity: int, packing: Packing) -> None:
    drawn = np.random.default_rng(7).lognormal(5.5, 1.2, 30_000).astype(int) + 1
    lengths = drawn[: int(np.searchsorted(np.cumsum(drawn), 200 * capacity))].tolist()
    assert share(lengths, capacity, packing) >= 0.99


@pytest.mark.parametrize(("capacity", "least"), [(128, 0.96), (512, 0.985), (2048, 0.99), (8192, 0.99)])
def test_documents_too_short_to_be_split_leave_little_room(capacity: int, least: float) -> None:
    lengths = np.random.default_rng(5).integers(10, 21, 9 * capacity).tolist()
    assert share(lengths, capacity, "best_fit", group=min(128, 65_536 // capacity)) >= least


@pytest.mark.parametrize(("length", "least"), [(300, 0.99), (257, 0.98), (511, 0.98), (1000, 0.99)])
def test_documents_of_one_length_leave_rows_no_emptier(length: int, least: float) -> None:
    assert share([length] * (200 * 512 // length), 512, "best_fit") >= least


def rows_of(placements: list[tuple[int, int, int, int]], lengths: list[int], capacity: int) -> Rows:
    """Assembled from documents whose tokens are 100, 101... in the first, 200, 201... in the second."""
    ids = np.concatenate([100 * (d + 1) + np.arange(n, dtype=np.int32) for d, n in enumerate(lengths)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return assemble(np.array(placements), ids.astype(np.int32), offsets, capacity, [CLS], [SEP], PAD)


def test_rows_are_assembled_with_the_special_tokens_of_every_segment() -> None:
    placements = [(1, 1, 2, 5), (0, 0, 0, 3), (1, 2, 0, 1), (3, 1, 0, 2)]
    rows = rows_of(placements, [3, 5, 1], capacity=9)
    assert rows.input_ids.tolist() == [
        [CLS, 100, 101, 102, SEP, PAD, PAD, PAD, PAD],
        [CLS, 202, 203, 204, SEP, CLS, 300, SEP, PAD],
        [CLS, 200, 201, SEP, PAD, PAD, PAD, PAD, PAD],
    ], "a row that nothing was placed in does not exist"
    assert rows.segment_row.tolist() == [0, 1, 1, 2]
    assert rows.segment_start.tolist() == [0, 0, 5, 0]
    assert rows.segment_length.tolist() == [5, 5, 3, 4]
    assert rows.segment_document.tolist() == [0, 1, 2, 1]
    assert rows.segment_token.tolist() == [0, 2, 0, 0]
    assert {array.dtype for array in vars(rows).values()} == {np.dtype(np.int32)}


def test_the_segments_of_a_row_stand_in_the_order_they_were_placed_in() -> None:
    rows = rows_of([(0, 1, 0, 2), (0, 0, 0, 1)], [1, 2], capacity=8)
    assert rows.input_ids.tolist() == [[CLS, 200, 201, SEP, CLS, 100, SEP, PAD]]
    assert rows.segment_document.tolist() == [1, 0]


def test_rows_without_special_tokens_are_the_tokens_alone() -> None:
    ids = np.arange(10, dtype=np.int32)
    rows = assemble(np.array([(0, 0, 2, 6)]), ids, np.array([0, 10]), 5, [], [], 9)
    assert rows.input_ids.tolist() == [[2, 3, 4, 5, 9]]


def test_where_nothing_was_placed_there_are_no_rows() -> None:
    rows = assemble(np.empty((0, 4), dtype=np.int64), np.arange(10, dtype=np.int32), np.array([0, 10]), 5, [CLS], [SEP], PAD)
    assert rows.input_ids.shape == (0, 5)
    assert rows.segment_start.tolist() == []
    assert {array.dtype for array in vars(rows).values()} == {np.dtype(np.int32)}


def test_gathered_rows_keep_their_segments() -> None:
    rows = rows_of([(0, 0, 0, 1), (0, 1, 0, 1), (1, 2, 0, 2)], [1, 1, 2], capacity=6)
    gathered = gather([(rows, range(1, 2)), (rows, range(2))], 6)
    assert gathered.input_ids.tolist() == [
        [CLS, 300, 301, SEP, PAD, PAD],
        [CLS, 100, SEP, CLS, 200, SEP],
        [CLS, 300, 301, SEP, PAD, PAD],
    ]
    assert gathered.segment_row.tolist() == [0, 1, 1, 2]
    assert gathered.segment_start.tolist() == [0, 0, 3, 0]
    assert gathered.segment_document.tolist() == [2, 0, 1, 2]
    assert gathered.segments_of(range(1, 3)) == slice(1, 4)
    nothing = gather([], 6)
    assert nothing.input_ids.shape == (0, 6)
    assert nothing.segment_row.tolist() == []


@pytest.mark.parametrize("packing", PACKINGS)
def test_documents_without_tokens_do_not_count_towards_the_rows_of_a_group(tmp_path: Path, packing: Packing) -> None:
    texts = ["\u200b"] * 3000 + documents(5)
    write_shard(tmp_path / "s", texts, "plain")
    plan = plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1, packing=packing, window_bytes=1_000_000)
    reading, seen, empty = lane(plan, 0), [], 0
    while (row := row_of(reading)) is not None:
        _, group, index, passed_over = row
        seen += texts_of(group.rows.input_ids[index].tolist())
        empty += sum(skip.documents or 0 for skip in passed_over)
    assert (sorted(seen), empty) == ([0, 1, 2, 3, 4], 3000)
