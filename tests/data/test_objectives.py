"""Labels and masks: literal small rows, exact counts, and the statistics of many draws under fixed keys."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stream_pretrain.config import Config, ObjectiveConfig, TrainConfig
from stream_pretrain.data.randomness import EVAL_MASK, MASK, Hashed, Numbers, keyed_generator, uniform_uint32
from stream_pretrain.data.rows.clm import Clm
from stream_pretrain.data.rows.labels import IGNORED, Labelled
from stream_pretrain.data.rows.masking import Masks, label_slots
from stream_pretrain.data.rows.mlm import Mlm
from stream_pretrain.data.rows.objective import objective_of
from stream_pretrain.data.rows.packing import Rows
from stream_pretrain.data.rows.vocabulary import Vocabulary
from stream_pretrain.errors import ModelError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
PAD, CLS, SEP, MASK_ID, UNKNOWN = 0, 1, 2, 3, 4
WORDS = ["the", "cat", "sat", "on", "a", "mat", "un", "##believ", "##able", "##s", ".", ","]
THE, CAT, SAT, ON, A, MAT, UN, BELIEV, ABLE, S, STOP, COMMA = range(5, 17)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *WORDS])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return wrap(backend)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    return Vocabulary.of(tokenizer, "span")


def wrap(backend: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **(special | options))


def rows_of(*rows: list[list[int]], length: int) -> Rows:
    """Rows from lists of segments."""
    ids = np.full((len(rows), length), PAD, dtype=np.int32)
    row_index, starts, lengths = [], [], []
    for row, segments in enumerate(rows):
        position = 0
        for segment in segments:
            ids[row, position : position + len(segment)] = segment
            row_index.append(row)
            starts.append(position)
            lengths.append(len(segment))
            position += len(segment)
    origin = np.zeros(len(starts), dtype=np.int32)
    return Rows(ids, np.array(row_index, np.int32), np.array(starts, np.int32), np.array(lengths, np.int32), origin, origin)


def labelled_positions(labelled: Labelled) -> list[list[int]]:
    return [
        [int(position) for position, label in zip(positions, labels, strict=True) if label != IGNORED]
        for positions, labels in zip(labelled.label_positions, labelled.labels, strict=True)
    ]


def plain(ids: NDArray[np.int32], special: list[int] | None = None, vocabulary_size: int = 1000) -> tuple[Rows, Vocabulary]:
    """Rows of one segment without special tokens, every token a word."""
    is_special = np.zeros(vocabulary_size, dtype=np.bool_)
    is_special[special or [PAD, MASK_ID]] = True
    begins = np.ones(vocabulary_size, dtype=np.uint8)
    rows = rows_of(*[[list(map(int, row))] for row in ids], length=ids.shape[1])
    return rows, Vocabulary(MASK_ID, is_special, np.flatnonzero(~is_special).astype(np.int32), begins, begins)


def hashed(*key: int) -> Hashed:
    return Hashed(key)


def mask(
    rows: Rows, vocabulary: Vocabulary, objective: ObjectiveConfig, rates: NDArray[np.float64], numbers: Numbers
) -> Labelled:
    """Rows with labels; those of neighbours with one rate at once."""
    masks = Masks.of(rows, vocabulary, objective, numbers)
    edges = np.flatnonzero(np.diff(rates, prepend=-1, append=-1)).tolist()
    parts = [masks.label(range(first, stop), float(rates[first])) for first, stop in itertools.pairwise(edges)]
    return Labelled(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def chi_square(observed: NDArray[Any], expected: NDArray[Any] | float) -> float:
    """The statistic in standard deviations above what chance gives."""
    statistic = float((((observed - expected) ** 2) / expected).sum())
    degrees = observed.size - 1
    return (statistic - degrees) / math.sqrt(2 * degrees)


# --- Next tokens ---


def test_next_tokens_are_shifted_inside_segments_and_the_last_of_a_segment_has_none() -> None:
    rows = rows_of([[10, 11, 12], [20, 21]], [[30], [40, 41, 42]], length=6)
    labelled = Clm().draw(rows, ()).label(range(2), 1.0)
    assert labelled.label_positions.tolist() == [[0, 1, 3, 0, 0, 0], [1, 2, 0, 0, 0, 0]]
    assert labelled.labels.tolist() == [[11, 12, 21, -100, -100, -100], [41, 42, -100, -100, -100, -100]]
    assert labelled.input_ids.tolist() == [[10, 11, 12, 20, 21, 0], [30, 40, 41, 42, 0, 0]]


def test_the_last_row_position_has_no_next_token_even_when_the_row_is_full() -> None:
    labelled = Clm().draw(rows_of([[10, 11]], [[20, 21]], length=2), ()).label(range(2), 1.0)
    assert labelled.labels.tolist() == [[11, -100], [21, -100]]


# --- Slots and rates ---


@pytest.mark.parametrize(
    ("options", "slots"),
    [
        ({"mask_rate": 0.3}, 154),
        ({"mask_rate": 0.3, "final_mask_rate": 0.15}, 154),
        ({"mask_rate": 0.15, "final_mask_rate": 0.3}, 154),
        ({"mask_rate": 0.25}, 128),
    ],
)
def test_a_row_has_slots_for_the_highest_rate_of_the_schedule(
    options: dict[str, Any], slots: int, vocabulary: Vocabulary
) -> None:
    assert Mlm(ObjectiveConfig(**options), vocabulary).label_slots(512) == slots


def test_a_row_has_a_slot_for_every_next_token() -> None:
    assert Clm().label_slots(512) == 512


def test_the_objective_of_a_run_is_the_one_it_names(tokenizer: PreTrainedTokenizerFast) -> None:
    assert objective_of(Config(objective=ObjectiveConfig("clm")), tokenizer) == Clm()
    masked = objective_of(Config(objective=ObjectiveConfig("mlm"), train=TrainConfig(max_steps=3)), tokenizer)
    assert isinstance(masked, Mlm)
    assert (masked.max_steps, masked.causal, Clm.causal) == (3, False, True)


def test_the_mask_rate_is_constant_or_linear_to_the_last_step(vocabulary: Vocabulary) -> None:
    steps = [0, 1, 2, 3, 4, 9]
    assert list(map(Mlm(ObjectiveConfig(mask_rate=0.2), vocabulary).rate, steps)) == [0.2] * 6
    falling = Mlm(ObjectiveConfig(mask_rate=0.5, final_mask_rate=0.25), vocabulary, 5)
    assert list(map(falling.rate, steps)) == [0.5, 0.4375, 0.375, 0.3125, 0.25, 0.25]


@settings(max_examples=60)
@given(
    st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.integers(1, 50), st.integers(1, 200), st.sampled_from(["token", "span"])
)
def test_no_step_of_a_schedule_needs_more_slots_than_a_row_has(
    first: float, last: float, max_steps: int, length: int, selection: Any
) -> None:
    objective = ObjectiveConfig(mask_rate=first, final_mask_rate=last, selection=selection)
    rows, vocabulary = plain(np.full((max_steps, length), 7, dtype=np.int32))
    rates = np.array([Mlm(objective, vocabulary, max_steps).rate(step) for step in range(max_steps)])
    labelled = mask(rows, vocabulary, objective, rates, hashed(1))
    assert labelled.labels.shape == (max_steps, label_slots(objective, length))
    counts = (labelled.labels != IGNORED).sum(axis=1)
    if selection == "token":
        assert counts.tolist() == np.rint(rates * length).tolist()
    else:
        assert (counts <= np.rint(rates * length)).all()


# --- Which positions ---


def test_every_maskable_position_and_no_other_is_labelled_at_the_full_rate(vocabulary: Vocabulary) -> None:
    rows = rows_of([[CLS, THE, CAT, SEP], [CLS, UNKNOWN, MAT, SEP]], [[CLS, ON, SEP]], length=10)
    objective = ObjectiveConfig(mask_rate=0.999, mask_share=1, random_share=0)
    labelled = mask(rows, vocabulary, objective, np.array([0.999, 0.999]), hashed(0))
    assert labelled_positions(labelled) == [[1, 2, 6], [1]]
    assert labelled.labels[:, :4].tolist() == [[THE, CAT, MAT, -100], [ON, -100, -100, -100]]
    assert labelled.input_ids.tolist() == [
        [CLS, MASK_ID, MASK_ID, SEP, CLS, UNKNOWN, MASK_ID, SEP, PAD, PAD],
        [CLS, MASK_ID, SEP, PAD, PAD, PAD, PAD, PAD, PAD, PAD],
    ]


def test_padding_is_not_maskable_even_where_the_pad_id_is_an_ordinary_token() -> None:
    rows = rows_of([[7, 7]], [[7, 7, 7, 7]], length=4)
    _, vocabulary = plain(np.full((1, 1), 7, dtype=np.int32), special=[MASK_ID])
    labelled = mask(rows, vocabulary, ObjectiveConfig(mask_rate=0.5), np.array([0.5, 0.5]), hashed(0))
    assert [len(positions) for positions in labelled_positions(labelled)] == [1, 2]
    assert max(labelled_positions(labelled)[0]) < 2


def test_the_number_of_labels_is_the_rounded_share_of_the_maskable_positions_of_each_row() -> None:
    rows, vocabulary = plain(np.full((4, 10), 7, dtype=np.int32))
    objective = ObjectiveConfig(mask_rate=0.9)
    labelled = mask(rows, vocabulary, objective, np.array([0.04, 0.1, 0.36, 0.9]), hashed(3))
    assert [len(positions) for positions in labelled_positions(labelled)] == [0, 1, 4, 9]


def test_a_rate_above_the_schedule_fills_the_slots_and_no_more() -> None:
    rows, vocabulary = plain(np.full((1, 10), 7, dtype=np.int32))
    labelled = mask(rows, vocabulary, ObjectiveConfig(mask_rate=0.4), np.array([0.7]), hashed(3))
    assert (labelled.labels != IGNORED).tolist() == [[True] * 4]


def test_the_number_is_exact_in_rows_so_long_that_random_keys_collide() -> None:
    rows, vocabulary = plain(np.full((16, 1 << 15), 7, dtype=np.int32))
    labelled = mask(rows, vocabulary, ObjectiveConfig(mask_rate=0.25), np.full(16, 0.25), hashed(3))
    assert (labelled.labels != IGNORED).sum(axis=1).tolist() == [1 << 13] * 16


def test_rows_without_anything_to_mask_have_no_labels(vocabulary: Vocabulary) -> None:
    rows = rows_of([[CLS, SEP]], [[CLS, UNKNOWN, SEP]], length=4)
    for selection in ("token", "whole_word", "span"):
        labelled = mask(rows, vocabulary, ObjectiveConfig(selection=selection), np.full(2, 0.3), hashed(0))
        assert labelled_positions(labelled) == [[], []]
        assert labelled.input_ids.tolist() == rows.input_ids.tolist()


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([CLS, THE, UN, BELIEV, ABLE, CAT, S, STOP, COMMA, SEP], [[1], [2, 3, 4], [5, 6], [7], [8]]),
        ([BELIEV, ABLE, CAT, UN, S], [[0, 1], [2], [3, 4]]),
    ],
)
def test_whole_words_are_labelled_whole(vocabulary: Vocabulary, ids: list[int], words: list[list[int]]) -> None:
    rows = rows_of([ids], length=10)
    seen: set[tuple[int, ...]] = set()
    for draw in range(100):
        objective = ObjectiveConfig(selection="whole_word", mask_rate=0.5)
        positions = labelled_positions(mask(rows, vocabulary, objective, np.array([0.5]), hashed(draw)))[0]
        chosen = [word for word in words if set(word) <= set(positions)]
        assert positions == sorted(itertools.chain(*chosen))
        seen.update(map(tuple, chosen))
    assert seen == set(map(tuple, words))


def test_a_word_does_not_reach_into_the_next_segment_or_row(vocabulary: Vocabulary) -> None:
    rows = rows_of([[CAT], [BELIEV]], [[ABLE, THE]], length=2)
    objective = ObjectiveConfig(selection="whole_word", mask_rate=0.5)
    seen = set()
    for draw in range(60):
        labelled = mask(rows, vocabulary, objective, np.array([0.5, 0.5]), hashed(draw))
        seen.add(tuple(map(tuple, labelled_positions(labelled))))
    assert seen == {((a,), (b,)) for a in (0, 1) for b in (0, 1)}


def test_a_word_beyond_the_budget_takes_no_part_so_a_fitting_one_is_always_found(vocabulary: Vocabulary) -> None:
    rows = rows_of([[UN, BELIEV, ABLE, S, THE]], length=5)
    for selection in ("whole_word", "span"):
        for draw in range(40):
            objective = ObjectiveConfig(selection=selection, mask_rate=0.4)
            labelled = mask(rows, vocabulary, objective, np.array([0.4]), hashed(draw))
            assert labelled_positions(labelled) == [[4]]


def test_spans_have_the_lengths_of_spanbert_geometric_and_truncated_at_ten_words() -> None:
    length = 4000
    rows, vocabulary = plain(np.full((40, length), 7, dtype=np.int32))
    objective = ObjectiveConfig(selection="span", mask_rate=0.02)
    runs = [
        len(run)
        for positions in labelled_positions(mask(rows, vocabulary, objective, np.full(40, 0.02), hashed(6)))
        for run in np.split(np.array(positions), np.flatnonzero(np.diff(positions) != 1) + 1)
    ]
    shares = np.bincount(runs, minlength=12)[1:] / len(runs)
    # 0.2 x 0.8^(n-1) / (1 - 0.8^10); two spans that touch make a longer run now and then.
    expected = [0.224, 0.179, 0.143, 0.115, 0.092, 0.073, 0.059, 0.047, 0.038, 0.030]
    assert abs(shares[:10] - expected).max() < 0.03
    assert shares[10:].sum() < 0.05
    assert 3.6 < np.mean(runs) < 4.3


def test_spans_are_those_of_the_definition_by_chi_square() -> None:
    """Geometric lengths truncated at ten words, taken in random order until the next would exceed the budget."""
    rows, vocabulary = plain(np.full((64, 4000), 7, dtype=np.int32))
    observed = np.zeros(11, dtype=np.int64)
    for key in range(16):
        objective = ObjectiveConfig(selection="span", mask_rate=0.01)
        labelled = mask(rows, vocabulary, objective, np.full(64, 0.01), hashed(key))
        flat = (np.arange(64)[:, None] * 5000 + labelled.label_positions)[labelled.labels != IGNORED]
        runs = np.diff(np.flatnonzero(np.diff(flat, prepend=-9, append=-9) != 1))
        observed += np.bincount(runs[runs <= 10], minlength=11)  # two may touch: one in a hundred
    geometric = 0.2 * 0.8 ** np.arange(10) / (1 - 0.8**10)
    lengths = np.random.default_rng(0).choice(np.arange(1, 11), size=(100_000, 40), p=geometric)
    taken = np.bincount(lengths[lengths.cumsum(axis=1) <= 40], minlength=11)
    assert observed.sum() > 9000
    assert abs(chi_square(observed[1:], taken[1:] * observed.sum() / taken.sum())) < 3
    assert abs(chi_square(observed[1:], geometric * observed.sum())) > 3, "the budget cuts some long ones off"


def test_words_are_chosen_alike_often_and_fill_the_budget(vocabulary: Vocabulary) -> None:
    rows = rows_of(*[[[UN, BELIEV, ABLE] * 10, [MAT, S, S] * 10]] * 2000, length=60)
    objective = ObjectiveConfig(selection="whole_word", mask_rate=0.3)
    labelled = mask(rows, vocabulary, objective, np.full(2000, 0.3), hashed(12))
    positions = labelled.label_positions[labelled.labels != IGNORED].reshape(2000, 18)  # six words of three in every row
    assert (positions % 3 == [0, 1, 2] * 6).all()
    of_word = np.bincount(positions[:, ::3].ravel() // 3, minlength=20)
    # Six of twenty without replacement: the variance of a count is 14/20 of that of free draws.
    assert abs(chi_square(of_word, 600.0) / 0.7) < 3 * 1.43


def test_a_span_does_not_reach_into_the_next_segment(vocabulary: Vocabulary) -> None:
    # One span is one draw of what it is replaced by: both segments alike in every draw would mean a shared span.
    rows = rows_of([[CAT], [MAT]], length=2)
    objective = ObjectiveConfig(selection="span", mask_rate=0.99, mask_share=0.5, random_share=0.0)
    seen = {
        tuple(mask(rows, vocabulary, objective, np.array([0.99]), hashed(draw)).input_ids[0].tolist()) for draw in range(60)
    }
    assert seen == {(CAT, MAT), (MASK_ID, MAT), (CAT, MASK_ID), (MASK_ID, MASK_ID)}


# --- What replaces them ---


def test_shares_of_mask_random_and_kept_are_as_configured() -> None:
    ids = np.full((64, 1000), 7, dtype=np.int32)
    rows, vocabulary = plain(ids)
    for selection in ("token", "whole_word"):
        objective = ObjectiveConfig(selection=selection, mask_rate=0.3, mask_share=0.7, random_share=0.2)
        labelled = mask(rows, vocabulary, objective, np.full(64, 0.3), hashed(11))
        assert (labelled.labels == 7).sum() == (labelled.labels != IGNORED).sum() == 64 * 300
        replaced = labelled.input_ids[np.arange(64)[:, None], labelled.label_positions]
        masked, kept = (replaced == MASK_ID).sum(), (replaced == 7).sum()
        counts = np.array([masked, replaced.size - masked - kept, kept])
        assert abs(chi_square(counts, replaced.size * np.array([0.7, 0.2, 0.1]))) < 3


@pytest.mark.parametrize(("selection", "draws"), [("token", 60_000), ("whole_word", 60_000), ("span", 5_000)])
def test_labels_become_80_10_10_mask_random_and_kept_under_every_selection(selection: Any, draws: int) -> None:
    word, continued = 7, 8
    rows, vocabulary = plain(np.tile(np.array([word, continued, continued], dtype=np.int32), (500, 400)))
    opens = vocabulary.opens.copy()
    opens[continued] = 0
    drawable = vocabulary.drawable[vocabulary.drawable > continued]
    vocabulary = replace(vocabulary, opens=opens, drawable=drawable)
    labelled = mask(rows, vocabulary, ObjectiveConfig(selection=selection), np.full(500, 0.1), hashed(5))
    counts = np.zeros(3, dtype=np.int64)
    for shown, positions in zip(labelled.input_ids, labelled_positions(labelled), strict=True):
        if selection == "span":  # the tokens of a span share a draw: the first one of each run of labels
            positions = [position for position in positions if position - 1 not in positions]
        kinds = np.where(shown[positions] == MASK_ID, 0, np.where(shown[positions] > continued, 1, 2))
        counts += np.bincount(kinds, minlength=3)
    assert counts.sum() == pytest.approx(draws, rel=0.05)
    assert abs(chi_square(counts, counts.sum() * np.array([0.8, 0.1, 0.1]))) < 3


def test_shares_of_one_and_none_are_exact() -> None:
    rows, vocabulary = plain(np.full((4, 1000), 7, dtype=np.int32))
    rates = np.full(4, 0.5)
    all_masked = mask(rows, vocabulary, ObjectiveConfig(mask_rate=0.5, mask_share=1, random_share=0), rates, hashed(0))
    assert ((all_masked.input_ids == MASK_ID).sum(axis=1) == 500).all()
    all_kept = mask(rows, vocabulary, ObjectiveConfig(mask_rate=0.5, mask_share=0, random_share=0), rates, hashed(0))
    assert (all_kept.input_ids == 7).all()


def test_random_replacements_are_uniform_over_the_ids_that_are_not_special() -> None:
    rows, vocabulary = plain(np.full((100, 1000), 7, dtype=np.int32), special=[0, 3, 50, 99], vocabulary_size=100)
    objective = ObjectiveConfig(mask_rate=0.5, mask_share=0, random_share=1)
    labelled = mask(rows, vocabulary, objective, np.full(100, 0.5), hashed(2))
    drawn = np.bincount(labelled.input_ids[np.arange(100)[:, None], labelled.label_positions].ravel(), minlength=100)
    assert drawn[[0, 3, 50, 99]].sum() == 0
    assert abs(chi_square(np.delete(drawn, [0, 3, 50, 99]), 50_000 / 96)) < 3


def test_a_span_is_masked_or_kept_as_one() -> None:
    rows, vocabulary = plain(np.full((50, 2000), 7, dtype=np.int32))
    objective = ObjectiveConfig(selection="span", mask_rate=0.02, mask_share=0.5, random_share=0.0)
    labelled = mask(rows, vocabulary, objective, np.full(50, 0.02), hashed(4))
    equal_neighbours, neighbours = 0, 0
    for row, positions in enumerate(labelled_positions(labelled)):
        touching = [(a, b) for a, b in itertools.pairwise(positions) if b == a + 1]
        neighbours += len(touching)
        equal_neighbours += sum(labelled.input_ids[row, a] == labelled.input_ids[row, b] for a, b in touching)
    assert equal_neighbours / neighbours > 0.96  # not all: two spans can touch
    masked = (labelled.input_ids == MASK_ID).sum() / (labelled.labels != IGNORED).sum()
    assert 0.42 < masked < 0.58


@pytest.mark.parametrize("selection", ["token", "whole_word", "span"])
def test_every_position_is_labelled_alike_often(selection: Any) -> None:
    rows, vocabulary = plain(np.full((3000, 40), 7, dtype=np.int32))
    objective = ObjectiveConfig(selection=selection, mask_rate=0.3)
    labelled = mask(rows, vocabulary, objective, np.full(3000, 0.3), hashed(9))
    counts = np.bincount(labelled.label_positions[labelled.labels != IGNORED], minlength=40)
    if selection == "span":  # rows of 40 words: their ends hold spans that were cut, which fit the budget more easily
        assert (abs(counts / counts.mean() - 1) < 0.15).all()
    else:
        assert abs(chi_square(counts, counts.mean())) < 3


def test_tokens_are_chosen_independently_of_their_neighbours() -> None:
    rows, vocabulary = plain(np.full((2000, 64), 7, dtype=np.int32))
    labelled = mask(rows, vocabulary, ObjectiveConfig(mask_rate=0.25), np.full(2000, 0.25), hashed(8))
    chosen = np.zeros((2000, 64), dtype=np.bool_)
    chosen[np.arange(2000)[:, None], labelled.label_positions] = True
    both = (chosen[:, 1:] & chosen[:, :-1]).mean()
    assert abs(both - 0.25 * 15 / 63) < 0.002


# --- Keys ---


@pytest.mark.parametrize("selection", ["token", "whole_word", "span"])
def test_the_same_key_gives_the_same_masks_and_another_key_others(selection: Any) -> None:
    rows, vocabulary = plain(np.arange(4, 4 + 128 * 4, dtype=np.int32).reshape(4, 128))
    objective, rates = ObjectiveConfig(selection=selection), np.full(4, 0.3)
    first, again, other, evaluation = (
        mask(rows, vocabulary, objective, rates, hashed(*key)).input_ids.tolist()
        for key in [(0, MASK, 1), (0, MASK, 1), (0, MASK, 2), (0, EVAL_MASK, 1)]
    )
    assert first == again
    assert first != other
    assert first != evaluation


def test_the_draws_of_a_key_never_change() -> None:
    assert uniform_uint32(keyed_generator(0, MASK, 1, 2, 3), 4).tolist() == [3700707318, 1048545199, 674497610, 696939251]


@pytest.mark.parametrize(
    ("selection", "trained", "evaluated"),
    [
        ("token", [100, 101, 3, 3, 104, 105, 106, 3, 108, 109, 3, 111], [100, 101, 102, 103, 104, 3, 106, 3, 3, 109, 3, 111]),
        (
            "whole_word",
            [100, 101, 102, 3, 3, 105, 106, 107, 3, 109, 110, 111],
            [100, 101, 3, 3, 104, 105, 106, 107, 108, 3, 110, 3],
        ),
        (
            "span",
            [100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 3],
            [100, 101, 381, 103, 104, 3, 3, 3, 108, 109, 110, 111],
        ),
    ],
)
def test_the_masks_of_a_key_never_change(selection: Any, trained: list[int], evaluated: list[int]) -> None:
    rows, vocabulary = plain(np.arange(100, 112, dtype=np.int32).reshape(1, 12))
    masked = Mlm(ObjectiveConfig(selection=selection), vocabulary)
    assert masked.draw(rows, (0, MASK)).label(range(1), 0.3).input_ids.tolist() == [trained]
    assert masked.label_evaluation(rows, (0, MASK)).input_ids.tolist() == [evaluated]


def test_distinct_keys_are_distinct_streams_whatever_the_size_of_their_integers() -> None:
    keys = [(1, 23), (12, 3), (123,), (0, 0), (0,), (), (2**80,), (2**80 + 1,), (-1,), (0, 2**64), (0, 1)]
    assert len({int(keyed_generator(*key).bit_generator.random_raw()) for key in keys}) == len(keys)


# --- Invariants ---


@settings(max_examples=80)
@given(
    st.lists(st.lists(st.lists(st.integers(1, 16), min_size=1, max_size=12), max_size=3), min_size=1, max_size=4),
    st.sampled_from(["token", "whole_word", "span"]),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32),
)
def test_labels_are_the_originals_and_nothing_else_changes(
    vocabulary: Vocabulary, segments: list[list[list[int]]], selection: Any, rate: float, key: int
) -> None:
    rows = rows_of(*segments, length=max(1, *(sum(map(len, row)) for row in segments), 1))
    objective = ObjectiveConfig(selection=selection, mask_rate=rate)
    before = rows.input_ids.copy()
    labelled = mask(rows, vocabulary, objective, np.full(len(segments), rate), hashed(key))
    assert (rows.input_ids == before).all()
    unchanged = np.ones_like(before, dtype=np.bool_)
    for row, positions in enumerate(labelled_positions(labelled)):
        assert positions == sorted(set(positions))
        assert labelled.labels[row, : len(positions)].tolist() == before[row, positions].tolist()
        assert (labelled.labels[row, len(positions) :] == IGNORED).all()
        assert (labelled.label_positions[row, len(positions) :] == 0).all()
        assert (before[row, positions] > UNKNOWN).all()
        maskable = int((before[row] > UNKNOWN).sum())
        assert len(positions) <= round(rate * maskable)
        if selection == "token":
            assert len(positions) == round(rate * maskable)
        unchanged[row, positions] = False
    assert (labelled.input_ids[unchanged] == before[unchanged]).all()
    assert np.isin(labelled.input_ids[~unchanged], [MASK_ID, *range(5, 17)]).all()


# --- Vocabularies ---


def begins(vocabulary: Vocabulary, ids: list[int]) -> list[bool]:
    return list(vocabulary.begins_word(np.array(ids, dtype=np.int32)).tolist())


def test_special_ids_and_those_that_may_be_drawn_are_told_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = Vocabulary.of(tokenizer)
    assert np.flatnonzero(vocabulary.special).tolist() == [PAD, CLS, SEP, MASK_ID, UNKNOWN]
    assert vocabulary.drawable.tolist() == list(range(5, 17))
    assert vocabulary.mask_id == MASK_ID


def test_a_token_that_is_made_special_later_is_not_masked(tokenizer: PreTrainedTokenizerFast) -> None:
    named = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, mask_token="[MASK]")
    named.eos_token = "the"
    assert THE not in Vocabulary.of(named).drawable


def test_a_tokenizer_without_mask_token_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, unk_token="[UNK]")
    with pytest.raises(ModelError, match="no mask token"):
        Vocabulary.of(bare)


def test_a_tokenizer_whose_words_cannot_be_told_is_refused_for_words_only() -> None:
    backend = Tokenizer(models.BPE({"[MASK]": 0, "[UNK]": 1, "a</w>": 2, "a": 3}, [], end_of_word_suffix="</w>"))
    closed_by_suffix = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", unk_token="[UNK]")
    assert Vocabulary.of(closed_by_suffix).drawable.tolist() == [2, 3]
    with pytest.raises(ModelError, match="selection token"):
        Vocabulary.of(closed_by_suffix, "whole_word")


def byte_level(*words: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on nothing but `words`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return wrap(backend)


def sentence_piece(texts: list[str]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="[UNK]", show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return wrap(backend)


def byte_level_of(*tokens: str) -> Vocabulary:
    """A byte-level vocabulary of these tokens; their ids count from 1."""
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(["[MASK]", *tokens])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    return Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]"), "whole_word")


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ("ab Ġx y Ġcd", ["ab", "Ġxy", "Ġcd"]),
        ("ab 1 2 ( ) xy", ["ab", "12", "()", "xy"]),
        ("Ġ cd Ġ( 1", ["Ġcd", "Ġ(", "1"]),
        ("ab Ċ xy ĊĊ Ġ Ġ Ġcd", ["ab", "Ċ", "xy", "ĊĊĠĠ", "Ġcd"]),
        ("Ã © Ã ©a b", ["Ã©Ã©ab"]),  # letters cut into bytes: é é a b
        ("Ã ©. ab", ["Ã©.", "ab"]),  # a token that begins inside a letter continues its word
        ("ä¸Ń æĸĩ ä¸ Ń æ ĸĩ a", ["ä¸Ń", "æĸĩ", "ä¸Ń", "æĸĩa"]),  # Chinese, the last two characters cut into bytes
    ],
)
def test_words_of_byte_level_tokens_are_runs_of_letters_digits_or_signs(tokens: str, words: list[str]) -> None:
    listed = tokens.split()
    unique = sorted(set(listed))
    found = np.flatnonzero(begins(byte_level_of(*unique), [unique.index(token) + 1 for token in listed]))
    assert ["".join(listed[a:b]) for a, b in itertools.pairwise([*found, len(listed)])] == words


def test_words_of_sentence_piece_tokens_with_bytes_and_scripts_without_spaces() -> None:
    tokens = ["▁", "▁the", "s", "▁中", "文", "字", ".", "<0xC3>", "<0xA9>", "▁ไทย", "ไทย"]
    backend = Tokenizer(models.Unigram([("[MASK]", 0.0), *((token, -1.0) for token in tokens)], 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    vocabulary = Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]"), "whole_word")
    #             ▁     ▁the  s      ▁中   文    字    .     é (two bytes)  ▁ไทย ไทย
    assert begins(vocabulary, list(range(1, 12))) == [True, True, False, True, True, True, True, True, False, True, True]


TEXTS = [
    "The quick brown fox jumps over the lazy dog. It wasn't unbelievable, was it? 1,234.5 (see Table 2)!",
    "Pharmacokinetics of acetylsalicylic-acid: half-life 15-20 minutes; dose=300mg/day.\nNew  line   here.",
    "def function_name(argument):\n    return argument ** 2  # comment\n",
] * 20


def own_boundaries(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[list[int], list[bool]]:
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    words = encoding.word_ids
    return encoding.ids, [True, *(b != a for a, b in itertools.pairwise(words))]


def test_word_piece_words_equal_those_of_the_tokenizer() -> None:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    tokenizer = wrap(backend)
    vocabulary = Vocabulary.of(tokenizer, "whole_word")
    for text in TEXTS[:3]:
        ids, own = own_boundaries(tokenizer, text)
        assert UNKNOWN not in ids
        assert not all(own)
        assert begins(vocabulary, ids) == own


def test_byte_level_words_equal_those_of_the_tokenizer() -> None:
    tokenizer = byte_level(*TEXTS)
    vocabulary = Vocabulary.of(tokenizer, "whole_word")
    ids, own = own_boundaries(tokenizer, "The quicker foxes jumped over 1,234.56 (see Tables 2!) half-lives: 27-31 ms.")
    assert own.count(False) > 10
    assert begins(vocabulary, ids) == own


def test_sentence_piece_words_are_those_of_the_tokenizer_without_their_punctuation() -> None:
    tokenizer = sentence_piece(TEXTS)
    ids, own = own_boundaries(tokenizer, "The quickest fox jumped, unbelievable (half-life).")
    tokens = tokenizer.convert_ids_to_tokens(ids)
    found = np.flatnonzero(begins(Vocabulary.of(tokenizer, "whole_word"), ids))
    words = ["".join(tokens[a:b]) for a, b in itertools.pairwise([*found, len(tokens)])]
    assert words == ["▁The", "▁quickest", "▁fox", "▁jumped", ",", "▁unbelievable", "▁(", "half", "-", "life", ")."]
    assert len(words) < len(ids)
    assert set(np.flatnonzero(own)) < set(found)


def test_sentence_piece_words_of_letters_and_spaces_equal_those_of_the_tokenizer() -> None:
    sample = SHARED / "general" / "formats" / "sample.jsonl"
    if not sample.exists():
        pytest.skip(f"{SHARED} has no general sample")
    documents = [json.loads(line)["text"][:20_000] for line in sample.read_text(encoding="utf-8").splitlines()]
    texts = [" ".join(re.findall("[A-Za-z]+", document)) for document in documents]
    tokenizer = sentence_piece(texts)
    vocabulary = Vocabulary.of(tokenizer, "whole_word")
    for text in texts[:20]:
        ids, own = own_boundaries(tokenizer, text)
        assert begins(vocabulary, ids) == own
    assert own.count(False) > 100


# --- Real tokenizers and text, where present ---


@pytest.mark.parametrize(
    ("folder", "tolerance"), [("models/bert-tiny-mlm", 0.0), ("models/tokenizers/gpt2-bpe", 0.003)], ids=["wordpiece", "gpt2"]
)
@pytest.mark.parametrize("corpus", ["general", "biomed", "code"])
def test_words_of_real_text_are_those_of_the_tokenizer(folder: str, tolerance: float, corpus: str) -> None:
    sample = SHARED / corpus / "formats" / "sample.jsonl"
    if not sample.exists() or not (SHARED / folder).exists():
        pytest.skip(f"{SHARED} has no {corpus} sample or {folder}")
    tokenizer = AutoTokenizer.from_pretrained(SHARED / folder)
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    vocabulary = Vocabulary.of(tokenizer, "whole_word")
    texts = [json.loads(line)["text"][:20_000] for line in sample.read_text(encoding="utf-8").splitlines()[:20]]
    different = total = 0
    for text in texts:
        ids, own = own_boundaries(tokenizer, text)
        different += sum(a != b for a, b in zip(begins(vocabulary, ids), own, strict=True))
        total += len(ids)
    assert different <= tolerance * total
