"""Labels at every rate from the same draws, whichever rows are labelled together; those of the evaluation set never change."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_pretrain.config import ObjectiveConfig
from stream_pretrain.data.lanes.step_rows import step_of
from stream_pretrain.data.randomness import EVAL_MASK, MASK
from stream_pretrain.data.rows import native
from stream_pretrain.data.rows.clm import Clm
from stream_pretrain.data.rows.labels import Labelled
from stream_pretrain.data.rows.masking import Masks
from stream_pretrain.data.rows.mlm import Mlm
from stream_pretrain.data.rows.objective import Objective
from stream_pretrain.data.rows.packing import Rows
from stream_pretrain.data.rows.vocabulary import Vocabulary
from tests.corpora import documents, write_shard
from tests.data.plans import lane, plan_for, unmasked

PAD, CLS, SEP, MASK_ID = range(4)
CONTINUES, BEGINS = 0, 1


def vocabulary() -> Vocabulary:
    """Of a thousand ids; every third continues a word."""
    ids = np.arange(1000)
    opens = np.where(ids % 3 == 0, CONTINUES, BEGINS).astype(np.uint8)
    return Vocabulary(MASK_ID, ids < 5, ids[5:].astype(np.int32), opens, np.full(1000, 4, np.uint8))


def packed(length: int, count: int) -> Rows:
    """Rows of segments with their special tokens, which some padding follows."""
    places = np.arange(count * length).reshape(count, length)
    ids = (5 + places * 7919 % 995).astype(np.int32)
    starts = [(row, start) for row in range(count) for start in range(0, length - row % 5, 24 + row)]
    lengths = [min(24 + row, length - row % 5 - start) for row, start in starts]
    for (row, start), of_segment in zip(starts, lengths, strict=True):
        ids[row, start], ids[row, start + of_segment - 1] = CLS, SEP
    for row in range(count):
        ids[row, length - row % 5 :] = PAD
    origin = np.zeros(len(starts), dtype=np.int32)
    return Rows(ids, *np.array(starts, dtype=np.int32).T, np.array(lengths, dtype=np.int32), origin, origin)


def mlm(selection: Any, rate: float = 0.3, final: float | None = None) -> Mlm:
    return Mlm(ObjectiveConfig(selection=selection, mask_rate=rate, final_mask_rate=final), vocabulary(), 10)


def together(parts: list[Labelled]) -> list[list[list[int]]]:
    return [np.concatenate([getattr(part, name) for part in parts]).tolist() for name in vars(parts[0])]


@settings(max_examples=60)
@given(
    st.sampled_from([mlm("token", 0.4), mlm("whole_word", 0.4), mlm("span", 0.4), Clm()]),
    st.lists(st.integers(0, 11), max_size=4),
    st.sampled_from([0.01, 0.05, 0.15, 0.3, 0.4]),
    st.integers(0, 2**32),
)
def test_rows_have_the_same_labels_whichever_are_labelled_together(
    objective: Objective, cuts: list[int], rate: float, key: int
) -> None:
    draws = objective.draw(packed(96, 11), (key, MASK))
    whole = together([draws.label(range(11), rate)])
    edges = [0, *sorted(cuts), 11]
    assert together([draws.label(range(a, b), rate) for a, b in itertools.pairwise(edges)]) == whole
    assert together([draws.label(range(row, row + 1), rate) for row in range(11)]) == whole


@pytest.mark.parametrize("selection", ["token", "whole_word", "span"])
def test_the_labels_at_a_rate_do_not_depend_on_what_was_labelled_before(selection: Any) -> None:
    rows, objective = packed(96, 11), mlm(selection, 0.1, 0.4)
    draws = objective.draw(rows, (0, MASK))
    before = rows.input_ids.copy()
    for rate in (0.4, 0.1, 0.25):
        assert together([draws.label(range(11), rate)]) == together([objective.draw(rows, (0, MASK)).label(range(11), rate)])
    assert (rows.input_ids == before).all()


def test_a_token_that_is_labelled_at_a_low_rate_is_so_at_a_higher_one_and_looks_alike() -> None:
    rows = packed(96, 11)
    draws = mlm("token", 0.4).draw(rows, (0, MASK))
    low, high = (draws.label(range(11), rate) for rate in (0.1, 0.4))
    for row in range(11):
        few, many = (labelled.label_positions[row][labelled.labels[row] >= 0].tolist() for labelled in (low, high))
        assert set(few) < set(many)
        assert low.input_ids[row, few].tolist() == high.input_ids[row, few].tolist()


def test_masks_of_neighbouring_keys_and_rows_meet_as_often_as_chance_has_it() -> None:
    ids = np.full((256, 512), 7, dtype=np.int32)
    zeros = np.zeros(256, dtype=np.int32)
    rows = Rows(ids, np.arange(256, dtype=np.int32), zeros, np.full(256, 512, np.int32), zeros, zeros)
    chosen = np.zeros((2, 256, 512), dtype=np.bool_)
    for key in range(2):
        labelled = mlm("token", 0.25).draw(rows, (0, MASK, key)).label(range(256), 0.25)
        chosen[key, np.arange(256)[:, None], labelled.label_positions] = True
    assert abs((chosen[0] & chosen[1]).mean() - 1 / 16) < 4 * 0.06 * 0.75 / np.sqrt(256 * 512)
    assert abs((chosen[:, 1:] & chosen[:, :-1]).mean() - 1 / 16) < 4 * 0.06 * 0.75 / np.sqrt(2 * 256 * 512)


@pytest.mark.parametrize("final", [None, 0.4])
def test_a_group_is_drawn_once_and_labelled_at_the_rate_of_each_step(
    final: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "compiled", None)  # which draws what it is asked for
    write_shard(tmp_path / "s", documents(150), "plain")
    plan = plan_for(tmp_path, lanes=1, global_batch_size=4, max_steps=20, mask_rate=0.1, final_mask_rate=final)
    drawn, labelled = [], []
    draw, label = Masks.of, Masks.label

    def counted_draw(rows: Rows, *rest: Any) -> Masks:
        drawn.append(len(rows.input_ids))
        return draw(rows, *rest)

    def counted_label(masks: Masks, which: range, *rest: Any) -> Labelled:
        labelled.append(len(which))
        return label(masks, which, *rest)

    monkeypatch.setattr(Masks, "of", counted_draw)
    monkeypatch.setattr(Masks, "label", counted_label)
    reading, rows, special = lane(plan, 0), 0, [plan.encoder.pad, *plan.encoder.prefix, *plan.encoder.suffix]
    for step in range(10):
        given = step_of([reading], [4], [False], plan, step).trained
        maskable = (~np.isin(unmasked(given), special)).sum(axis=1)
        rate = plan.objective.rate(step)
        assert (given.labels >= 0).sum(axis=1).tolist() == np.rint(rate * maskable).tolist()
        rows += 4
    assert len(drawn) < 6, "one draw a group"
    assert sum(drawn[:-1]) < rows <= sum(drawn)
    assert sum(labelled) == (sum(drawn) if final is None else rows)


@pytest.mark.parametrize(
    ("selection", "final", "expected"),
    [
        ("token", None, "00a4b78a9f8d0f99"),
        ("token", 0.4, "50aa25287194dc76"),
        ("whole_word", None, "3bbcac55b8b17d4f"),
        ("whole_word", 0.4, "4a44bff82a68461a"),
        ("span", None, "b019044b1c331635"),
        ("span", 0.4, "6809790159736243"),
    ],
)
def test_the_labels_of_the_evaluation_set_never_change(selection: Any, final: float | None, expected: str) -> None:
    """Held-out losses are compared across versions."""
    labelled = mlm(selection, 0.3, final).label_evaluation(packed(96, 11), (7, EVAL_MASK, 32))
    digest = hashlib.sha256()
    for values in vars(labelled).values():
        digest.update(values.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == expected
