"""What is compiled gives, to the bit, what numpy gives; and refuses what it must not touch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stream_pretrain.config import ObjectiveConfig
from stream_pretrain.data.randomness import Hashed
from stream_pretrain.data.rows import native
from stream_pretrain.data.rows.batches import Batch, micro_batches
from stream_pretrain.data.rows.labels import Labelled
from stream_pretrain.data.rows.masking import CompiledMasks, Masks
from stream_pretrain.data.rows.packing import Packing, Rows, assemble, place
from stream_pretrain.data.rows.train_rows import TrainRows
from stream_pretrain.data.rows.vocabulary import Vocabulary

Arrays = Rows | Labelled

COMPILED = native.compiled
pytestmark = pytest.mark.skipif(COMPILED is None, reason="not compiled: there was no C compiler at the install")

TOKENS = 1000
SPECIAL = np.isin(np.arange(TOKENS), [0, 1, 2, 3, 500])
VOCABULARY = Vocabulary(3, SPECIAL, np.flatnonzero(~SPECIAL).astype(np.int32), np.zeros(0, np.uint8), np.zeros(0, np.uint8))


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Any]]:
    """What a call gives, compiled and with numpy."""

    def give(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
        compiled = function(*arguments)
        with monkeypatch.context() as patch:
            patch.setattr(native, "compiled", None)
            return compiled, function(*arguments)

    return give


def assert_equal(one: Arrays, other: Arrays) -> None:
    for name, ours in vars(one).items():
        theirs = getattr(other, name)
        assert ours.dtype == theirs.dtype == np.int32
        assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("packing", ["best_fit", "concat", "none"])
def test_packed_and_masked_rows_are_the_same(packing: Packing, seed: int, both: Any) -> None:
    generator = np.random.default_rng(seed)
    for longest in (2, 5, 20, 50, 600, 2000):
        prefix, suffix = [((), (1,)), ((1,), (2,)), ((1, 2), ())][generator.integers(3)]
        length, framing = int(generator.integers(5, 700)), len(prefix) + len(suffix)
        lengths = generator.integers(1, longest + 1, generator.integers(1, 200))
        ids = generator.integers(4, TOKENS, lengths.sum()).astype(np.int32)
        offsets = np.append(0, np.cumsum(lengths))
        first, rows = int(generator.integers(lengths[0])), int(generator.integers(1, 40))

        (placements, left), (expected, left_with_numpy) = both(place, lengths, first, rows, length, framing, packing)
        assert placements.tolist() == expected.tolist()
        assert left == left_with_numpy
        packed, expected = both(assemble, placements, ids, offsets, length, prefix, suffix, 0)
        assert_equal(packed, expected)

        objective = ObjectiveConfig(mask_rate=float(generator.uniform(0.01, 0.9)), mask_share=0.6, random_share=0.3)
        start, stop = sorted(generator.integers(0, len(packed.input_ids) + 1, 2).tolist())
        for rate in (objective.mask_rate, objective.mask_rate / 3, 0.001):
            labelled = CompiledMasks(packed, VOCABULARY, objective, Hashed((seed, longest))).label(range(start, stop), rate)
            masks = Masks.of(packed, VOCABULARY, objective, Hashed((seed, longest)))
            assert_equal(labelled, masks.label(range(start, stop), rate))


def test_a_row_of_special_tokens_has_no_labels_and_stays() -> None:
    ids = np.array([[1, 500, 2, 0]], dtype=np.int32)
    labelled = CompiledMasks(rows_of(ids), VOCABULARY, ObjectiveConfig(mask_rate=0.5), Hashed((0,))).label(range(1), 0.5)
    assert labelled.input_ids.tolist() == [[1, 500, 2, 0]]
    assert labelled.labels.tolist() == [[-100, -100]]
    assert labelled.label_positions.tolist() == [[0, 0]]


@pytest.mark.parametrize("strange", [-1, TOKENS])
def test_an_id_outside_of_the_vocabulary_is_refused(strange: int) -> None:
    ids = np.array([[7, 8, 9], [7, strange, 9]], dtype=np.int32)
    masks = CompiledMasks(rows_of(ids), VOCABULARY, ObjectiveConfig(), Hashed((0,)))
    with pytest.raises(IndexError, match="row 1 has an id outside of the vocabulary of 1000"):
        masks.label(range(2), 0.15)


@pytest.mark.parametrize(
    "placement",
    [
        [0, 0, 0, 4],  # three tokens
        [0, 0, 2, 1],
        [0, 0, -1, 1],
        [0, 1, 0, 1],  # one document
        [0, -1, 0, 1],
        [0, 0, 0, 3],  # with two special tokens, in four positions
    ],
)
def test_a_placement_of_what_is_not_there_is_refused(placement: list[int]) -> None:
    ids, offsets = np.array([7, 8, 9], dtype=np.int32), np.array([0, 3])
    grid, segments = np.empty((1, 4), dtype=np.int32), np.empty((5, 1), dtype=np.int32)
    frame = np.array([1], dtype=np.int32)
    with pytest.raises(IndexError, match="placement 0 has no room, or not so many tokens"):
        compiled().assemble(np.array([placement]), ids, offsets, frame, frame, 4, 0, grid, segments)


@pytest.mark.parametrize(
    ("filled", "drawable", "rate"), [(5, 1, 0.15), (-1, 1, 0.15), (4, 0, 0.15), (4, 1, 1.5), (4, 1, -0.1), (4, 1, float("nan"))]
)
def test_rows_that_cannot_be_masked_are_refused(filled: int, drawable: int, rate: float) -> None:
    masked_as(Labelled.room(1, 4, 1), filled=4, drawable=1, rate=0.15)
    with pytest.raises(ValueError, match="rows of one length"):
        masked_as(Labelled.room(1, 4, 1), filled=filled, drawable=drawable, rate=rate)


@pytest.mark.parametrize(
    "room",
    [
        Labelled.room(2, 4, 1),
        Labelled.room(1, 5, 1),
        Labelled(*(np.empty(wide, dtype=np.int32) for wide in ((1, 4), (1, 2), (1, 1)))),
        Labelled(*(np.empty(wide, dtype=np.int64) for wide in ((1, 4), (1, 1), (1, 1)))),
        Labelled(*(np.empty(wide, dtype=np.int32) for wide in (4, 1, 1))),
        Labelled(*(np.empty((1, 2 * wide), dtype=np.int32)[:, ::2] for wide in (4, 1, 1))),
    ],
)
def test_room_that_masked_rows_do_not_fit_into_is_refused(room: Labelled) -> None:
    with pytest.raises(ValueError, match="rows of one length"):
        masked_as(room, filled=4, drawable=1, rate=0.15)


def masked_as(room: Labelled, *, filled: int, drawable: int, rate: float) -> None:
    """Mask a row of four positions."""
    ids, of_row = np.zeros((1, 4), dtype=np.int32), np.array([filled], dtype=np.int32)
    hashes = [(0, 1)] * 3
    out = room.input_ids, room.label_positions, room.labels
    compiled().mask_tokens(ids, of_row, SPECIAL, of_row[:drawable], *hashes, 0, rate, 3, 0.8, 0.1, *out)


@pytest.mark.parametrize("seed", range(4))
def test_micro_batches_are_the_same(seed: int, both: Any) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(10):
        length, slots, count = (int(number) for number in generator.integers(1, [600, 40, 50]))
        documents = generator.integers(1, length + 1, generator.integers(1, 60))
        placements, _ = place(documents, 0, count, length, 0, "best_fit")
        rows = assemble(placements, np.zeros(documents.sum(), np.int32), np.append(0, np.cumsum(documents)), length, [], [], 0)
        made = TrainRows.unlabelled(rows, slots, generator.integers(0, 5, len(rows.input_ids)).astype(np.int32))
        made.input_ids[:] = generator.integers(0, TOKENS, made.input_ids.shape)
        made.label_positions[:] = generator.integers(0, length, made.labels.shape)
        made.labels[:] = generator.integers(-100, TOKENS, made.labels.shape)
        size = int(generator.integers(1, 40))
        least = -(-len(made) // size)
        for batch, expected in zip(*both(batches_of, made, size, least + int(generator.integers(2))), strict=True):
            for name, tensor in vars(batch).items():
                assert tensor.dtype == getattr(expected, name).dtype
                assert torch.equal(tensor, getattr(expected, name))


def batches_of(rows: TrainRows, size: int, count: int) -> list[Batch]:
    return list(micro_batches(rows, size, count, 0, torch.device("cpu")))


@pytest.mark.parametrize(
    "changed",
    [
        {"starts": [0, 8]},  # one row of four positions is left for padding
        {"starts": [1]},
        {"starts": [0, 3, 2]},
        {"starts": []},
        {"first": 4},
        {"first": -4, "starts": [-4]},
        {"size": 0},
        {"size": 3},
        {"length": 0, "slots": 3},
        {"length": 8, "slots": -1},
        {"room": [8, 8, 2, 2, 2, 2]},  # of which `cu_seq_lens` needs three
        {"room": [8, 7, 3, 2, 2, 2]},
        {"room": [8, 8, 3, 2, 2, 1]},
    ],
)
def test_records_that_are_no_batch_are_refused(changed: dict[str, Any]) -> None:
    fill_batch()
    with pytest.raises(ValueError, match="records, where their segments begin"):
        fill_batch(**changed)


def fill_batch(
    starts: Sequence[int] = (0,),
    first: int = 0,
    size: int = 2,
    length: int = 4,
    slots: int = 1,
    room: Sequence[int] = (8, 8, 3, 2, 2, 2),
) -> None:
    """A record as a batch of two rows."""
    kinds = [np.int64, np.int64, np.int32, np.int64, np.int64, np.int64]
    made = [np.empty(count, dtype=kind) for count, kind in zip(room, kinds, strict=True)]
    record = np.zeros(7, dtype=np.int32)
    compiled().fill_batch(record, np.array(starts, dtype=np.int32), first, size, length, slots, 0, *made)


def test_too_little_memory_for_what_comes_out_is_refused() -> None:
    lengths, order, free = np.array([5, 5]), np.empty(0, dtype=np.int64), np.array([4, 4])
    with pytest.raises(ValueError, match="3 placements where room for 1 was expected"):
        compiled().place(lengths, order, free, 0, 1, 2, False, np.empty((1, 4), dtype=np.int64))


def test_what_an_earlier_version_has_compiled_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native._compiled() is COMPILED
    monkeypatch.setattr(COMPILED, "VERSION", native.VERSION - 1)
    assert native._compiled() is None


def compiled() -> ModuleType:
    assert COMPILED is not None
    return COMPILED


def rows_of(ids: NDArray[np.int32]) -> Rows:
    """A segment in each row."""
    zeros = np.zeros(len(ids), dtype=np.int32)
    return Rows(ids, np.arange(len(ids), dtype=np.int32), zeros, zeros + ids.shape[1], zeros, zeros)
