"""A request to stop does not wait for a step that takes longer than a launcher does."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import Interrupted
from stream_pretrain.training.report.stop_messages import stopping
from stream_pretrain.training.steps import loop
from stream_pretrain.training.steps.rows_of_rank import NextRows
from tests.corpora import documents, write_shard
from tests.training.runs import prepared, steps_of, tiny_run


def test_a_step_of_many_micro_batches_is_left_at_a_signal_as_if_it_had_not_begun(model: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(300), "plain")
    config = tiny_run(tmp_path, model, tmp_path / "out", max_steps=5, micro_batch_size=1)
    forwards = 0

    def signal_in_the_second_step(*_: object) -> None:
        nonlocal forwards
        forwards += 1
        if forwards == 8 + 3:
            signal.raise_signal(signal.SIGTERM)

    with prepared(config) as setup:
        steps = steps_of(setup)
        setup.parallel.model.register_forward_pre_hook(signal_in_the_second_step)
        assert next(steps).step == 1
        weights = {name: weight.clone() for name, weight in setup.parallel.bare.state_dict().items()}
        cursors = list(setup.cursors)
        with pytest.raises(Interrupted):
            next(steps)
        assert forwards == 8 + 3 + 1, "the last micro-batch, in which the ranks meet, is the only one that follows"
        assert setup.totals.step == 1
        assert setup.cursors == cursors
        assert all(torch.equal(weight, weights[name]) for name, weight in setup.parallel.bare.state_dict().items())


def test_a_rank_whose_wait_for_rows_a_signal_has_ended_receives_no_more_of_them(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal may have come in the middle of an item of a worker: what comes next is the rest of it."""
    write_shard(tmp_path / "s", documents(300), "plain")
    prepares: list[StepStream] = []

    def prepare(stream: StepStream) -> None:
        prepares.append(stream)

    monkeypatch.setattr(StepStream, "prepare", prepare)
    with prepared(tiny_run(tmp_path, model, tmp_path / "out", max_steps=5)) as setup:
        steps = steps_of(setup)
        assert next(steps).step == len(prepares) == 1
        nothing = prepares[0].nothing
        monkeypatch.setattr(
            loop, "next_rows", lambda *_: NextRows(nothing, nothing.trained, interrupted=True, have_ended=False)
        )
        with pytest.raises(Interrupted):
            next(steps)
        assert len(prepares) == 1


@pytest.mark.parametrize("micro_batch_size", [8, 1])
def test_behind_the_last_row_a_request_is_answered_with_the_last_step(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch_size: int
) -> None:
    shard = write_shard(tmp_path / "s", documents(20), "plain")
    config = tiny_run(shard, model, tmp_path / "out", max_steps=None, max_epochs=1, micro_batch_size=micro_batch_size)
    answers = []
    with prepared(config) as setup:
        add_up = Ranks.sum

        def answered_meanwhile(ranks: Ranks, values: torch.Tensor) -> None:
            answers.append(setup.stop.last_step)
            add_up(ranks, values)

        monkeypatch.setattr(Ranks, "sum", answered_meanwhile)
        *_, last = steps_of(setup)
        assert setup.stop.last_step == max(filter(None, answers)) == last.step


def test_a_run_that_is_stopped_before_its_first_step_does_not_say_that_it_will_save() -> None:
    for last_step in (None, 0):
        said = stopping("SIGINT", last_step, alone=True)
        assert said == "stopping before the next step; Ctrl-C again quits at once"
    assert stopping("SIGINT", 34, alone=True) == "stopping after step 34, then saving; Ctrl-C again quits without saving"
