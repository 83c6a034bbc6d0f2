"""Recorded steps compared: the first difference is said, and documents are counted."""

from __future__ import annotations

import pytest

from stream_pretrain.verification.comparing import compared
from stream_pretrain.verification.recorded_steps import RecordedSegment, RecordedStep


def step(number: int, *segments: tuple[int, int, str], loss: float = 2.0) -> RecordedStep:
    """With a row of each segment: offset, tokens and digest."""
    rows = tuple((RecordedSegment(0, 0, offset, tokens, digest),) for offset, tokens, digest in segments)
    return RecordedStep(number, loss, 1, tuple(digest for _, _, digest in segments), rows, 0.0)


EXPECTED = {1: step(1, (0, 5, "a"), (9, 7, "b")), 2: step(2, (20, 6, "c"))}


@pytest.mark.parametrize(
    ("starts", "said", "lost", "repeated"),
    [
        ([{1: EXPECTED[1]}, EXPECTED], None, 0, 0),
        ([{1: EXPECTED[1]}], "step 2 was not trained", 1, 0),
        ([{**EXPECTED, 3: EXPECTED[2]}], None, 0, 1),
        (
            [{1: step(1, (0, 5, "a"), (20, 6, "c")), 2: EXPECTED[2]}],
            "step 1, row 2: the document of a at 20 (epoch 0) in the place of the document of a at 9 (epoch 0)",
            1,
            1,
        ),
        (
            [{1: EXPECTED[1], 2: step(2, (20, 6, "d"))}],
            "step 2, row 1: other tokens or masks in the document of a at 20 (epoch 0)",
            0,
            0,
        ),
        (
            [{1: step(1, (0, 5, "a")), 2: EXPECTED[2]}],
            "step 1, row 2: the document of a at 9 (epoch 0) is missing",
            1,
            0,
        ),
        ([{1: EXPECTED[1], 2: step(2, (20, 6, "c"), loss=2.5)}], "step 2: the loss is 2.5, not 2.0", 0, 0),
        # What a kill undid counts for rows and losses, not for documents.
        (
            [{2: step(2, (30, 6, "z"))}, EXPECTED],
            "step 2, row 1: the document of a at 30 (epoch 0) in the place of the document of a at 20 (epoch 0)",
            0,
            0,
        ),
    ],
)
def test_the_first_difference_is_said_and_documents_are_counted(
    starts: list[dict[int, RecordedStep]], said: str | None, lost: int, repeated: int
) -> None:
    found = compared(starts, EXPECTED, ["a"], 0.0)
    assert (found.first_difference and found.first_difference.message) == said
    assert (found.documents_lost, found.documents_repeated) == (lost, repeated)


def test_losses_within_the_tolerance_are_equal_and_rows_have_none() -> None:
    found = compared([{1: EXPECTED[1], 2: step(2, (20, 6, "c"), loss=2.01)}], EXPECTED, ["a"], 0.01)
    assert (found.losses_equal, found.losses_differ_by) == (True, pytest.approx(0.005))
    assert not compared([{1: EXPECTED[1], 2: step(2, (20, 6, "c"), loss=float("nan"))}], EXPECTED, ["a"], 0.01).losses_equal
