"""The hash that masks are drawn with: its definition, and the statistics of its numbers over places, purposes and keys."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_pretrain.data.randomness import MASK, Hashed, InTurn, chosen, keyed_generator, uniform_uint32

COUNT = 1 << 16


def deviations(cells: NDArray[np.integer], count: int) -> float:
    """The chi-square statistic of cells that are equally likely, in standard deviations above what chance gives."""
    observed = np.bincount(cells.ravel(), minlength=count)
    expected = cells.size / count
    return float((((observed - expected) ** 2 / expected).sum() - (count - 1)) / math.sqrt(2 * (count - 1)))


def splitmix64(state: int, step: int, steps: int) -> int:
    """The published algorithm, in Python's integers."""
    z = (state + steps * step) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def test_the_algorithm_gives_the_published_numbers() -> None:
    numbers = [splitmix64(1234567, 0x9E3779B97F4A7C15, steps) for steps in (1, 2, 3)]
    assert numbers == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_numbers_of_a_key_are_those_of_the_algorithm_and_never_change() -> None:
    state, step = 0xDB7E099E944190A5, 0x37BFD1F1FDA61905  # BLAKE2b of "0,4,1,2,3,0"
    pairs = [splitmix64(state, step, steps) for steps in range(6000)]
    expected = [half for pair in pairs for half in (pair % 2**32, pair >> 32)]
    assert Hashed((0, MASK, 1, 2, 3)).run(0, range(12_000)).tolist() == expected


@settings(max_examples=60)
@given(st.integers(0, 20_000), st.integers(0, 20_000), st.integers(0, 3))
def test_the_number_of_a_place_does_not_depend_on_which_others_are_asked_for(start: int, count: int, purpose: int) -> None:
    numbers = Hashed((7, 8))
    run = numbers.run(purpose, range(start, start + count))
    assert run.dtype == np.uint32
    assert run.tolist() == numbers.at(purpose, np.arange(start, start + count)).tolist()
    assert run[1:].tolist() == numbers.run(purpose, range(start + 1, start + count)).tolist()
    if count:
        assert numbers.at(purpose, np.array([start + count - 1])).tolist() == [run[-1]]


@pytest.mark.parametrize("key", [(), (0,), (1, -2, 1 << 70)])
def test_a_generator_is_philox_with_the_hash_of_its_key(key: tuple[int, ...]) -> None:
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=16).digest()
    philox = np.random.Philox(key=int.from_bytes(digest, "little"))
    assert uniform_uint32(keyed_generator(*key), 18).view(np.uint64).tolist() == philox.random_raw(9).tolist()


def test_numbers_in_turn_are_those_of_the_generator() -> None:
    numbers, generator = InTurn(keyed_generator(3)), keyed_generator(3)
    assert numbers.run(0, range(6)).view(np.uint64).tolist() == generator.bit_generator.random_raw(3).tolist()
    assert numbers.at(1, np.array([9, 12])).tolist() == uniform_uint32(generator, 2).tolist()


@pytest.mark.parametrize("key", [(), (0,), (0, MASK, 0, 0, 0, 0, 0, 0), (2**70, MASK, 3)])
def test_every_byte_of_the_numbers_is_uniform_and_so_are_pairs_of_neighbours(key: tuple[int, ...]) -> None:
    numbers = Hashed(key).run(0, range(4 * COUNT))
    for shift in (0, 8, 16, 24):
        assert abs(deviations(numbers >> shift & 255, 256)) < 4
        nibbles = numbers >> shift & 15
        for lag in (1, 2, 3, 64, 512):
            assert abs(deviations(nibbles[lag:] * 16 + nibbles[:-lag], 256)) < 4


def test_numbers_are_not_correlated_with_their_neighbours_nor_with_their_place() -> None:
    numbers = Hashed((0, MASK)).run(0, range(COUNT)) * 2.0**-32
    for lag in (1, 2, 3, 16, 128, 512):
        assert abs(np.corrcoef(numbers[lag:], numbers[:-lag])[0, 1]) * math.sqrt(COUNT) < 4
    assert abs(np.corrcoef(numbers, np.arange(COUNT))[0, 1]) * math.sqrt(COUNT) < 4


def test_the_same_place_of_neighbouring_keys_and_purposes_has_independent_numbers() -> None:
    table = np.array([[Hashed((0, MASK, key)).run(purpose, range(64)) for purpose in range(4)] for key in range(1000)])
    for shift in (0, 12, 28):
        nibbles = table >> shift & 15
        assert abs(deviations(nibbles, 16)) < 4
        assert abs(deviations(nibbles[1:] * 16 + nibbles[:-1], 256)) < 4
        assert abs(deviations(nibbles[:, 1:] * 16 + nibbles[:, :-1], 256)) < 4


@pytest.mark.parametrize("bit", [0, 1, 2, 5, 9, 15, 31, 40])
def test_a_bit_of_the_place_changes_half_of_the_bits_of_the_number(bit: int) -> None:
    places, numbers = np.arange(0, 7 * COUNT, 7), Hashed((5, MASK))
    changed = numbers.at(0, places) ^ numbers.at(0, places ^ (1 << bit))
    shares = np.unpackbits(changed.view(np.uint8)).reshape(-1, 32).mean(axis=0)
    assert (abs(shares - 0.5) * 2 * math.sqrt(COUNT) < 6).all()  # each pair counts twice for the low bits


def test_a_bit_of_the_key_changes_half_of_the_bits_of_the_numbers() -> None:
    for bit in (0, 7, 40, 63):
        changed = Hashed((9, MASK)).run(0, range(COUNT)) ^ Hashed((9 ^ 1 << bit, MASK)).run(0, range(COUNT))
        shares = np.unpackbits(changed.view(np.uint8)).reshape(-1, 32).mean(axis=0)
        assert (abs(shares - 0.5) * 2 * math.sqrt(COUNT) < 4.5).all()


def test_what_is_chosen_is_a_function_of_the_key_and_as_much_as_the_probability_says() -> None:
    assert [list(chosen(20, 0.25, key)) for key in (7, 7, 8)] == [[0, 2, 5, 11, 12, 17]] * 2 + [list(chosen(20, 0.25, 8))]
    assert list(chosen(20, 0.25, 8)) != [0, 2, 5, 11, 12, 17]
    counts = np.bincount([index for key in range(4000) for index in chosen(10, 0.3, key)], minlength=10)
    assert np.abs(counts - 1200).max() < 5 * (4000 * 0.3 * 0.7) ** 0.5
