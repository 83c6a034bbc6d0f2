"""A run from its first step to its last: when it logs, evaluates and saves."""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from dataclasses import replace
from time import monotonic
from typing import Literal

from stream_pretrain import exit_codes
from stream_pretrain.config import flatten, shown_options
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.rows.batches import memory_for
from stream_pretrain.errors import ContentError
from stream_pretrain.training.files.out_files import MODEL
from stream_pretrain.training.ranks.signals import Interrupted, ignore_in_worker
from stream_pretrain.training.ranks.watchdog import Watchdog
from stream_pretrain.training.report.summary import summary
from stream_pretrain.training.report.tracking import Tracker
from stream_pretrain.training.start.auto_learning_rate import warmup_of
from stream_pretrain.training.start.setup import Setup
from stream_pretrain.training.state.checkpoint import BackgroundWriter
from stream_pretrain.training.state.totals import nothing_to_train_on
from stream_pretrain.training.steps.corpus_estimate import estimate, sample_of_all
from stream_pretrain.training.steps.corpus_notices import CorpusNotices
from stream_pretrain.training.steps.due_evaluations import Evaluations
from stream_pretrain.training.steps.loop import EndOfCorpus, PassedOver, StepResult, training_steps
from stream_pretrain.training.steps.metrics import MetricsWindow
from stream_pretrain.training.steps.overview import lack_of_space, overview
from stream_pretrain.training.steps.rows_of_rank import rows_read
from stream_pretrain.training.steps.saving import Saves
from stream_pretrain.urls import without_secrets

STEP_EVENT = "stream_pretrain.step"
"""The audit event (`sys.addaudithook`) of a trained step, with its `StepResult`; the others are Python's own."""


def train(setup: Setup, writer: BackgroundWriter, watchdog: Watchdog, stack: ExitStack) -> Literal["preempted", "finished"]:
    """Train to the end or until asked to stop; returns the state of the run.

    Cleanup is pushed on `stack`, for after an error was announced to the other ranks: it may take longer than they wait.
    """
    out, totals, workers = setup.out, setup.totals, setup.config.data.workers
    rank, world = setup.ranks.index, setup.ranks.world
    stream = stack.enter_context(
        StepStream(
            setup.plan,
            setup.cursors,
            step=totals.step,
            rank=rank,
            world=world,
            workers=workers,
            in_worker=ignore_in_worker,
            memory=memory_for(setup.parallel.device),
            warn=setup.progress.warning,
        )
    )
    if totals.step != setup.config.train.max_steps:
        setup = _estimated(setup, stream, watchdog)
    evaluations = Evaluations(setup)
    tracker = stack.enter_context(_tracker(setup, more=evaluations.may_come()))
    stack.enter_context(writer)
    if setup.ranks.is_first and totals.step:
        writer.prune(totals.step)
    log, saves, notices = StepLog(setup), Saves(setup, writer), CorpusNotices(setup)
    setup.stop.last_step = totals.step
    stopped, before, since = False, replace(totals), monotonic()
    with watchdog.stage("computing"):
        if evaluations.is_due():  # an earlier start was stopped before or during it
            with watchdog.stage("evaluating"):
                made_up = evaluations.run()
            if best := evaluations.take_best():
                saves.begin_best(best)
            if made_up:
                tracker.log(totals.step, made_up)
            stopped = not made_up
        try:
            for result in training_steps(setup, stream, watchdog):
                at_end = isinstance(result, EndOfCorpus)
                out.raise_if_lost()
                writer.check()
                notices.of_step(result, last_saved=saves.last_step)
                if isinstance(result, StepResult):
                    sys.audit(STEP_EVENT, result)  # before it is saved: what `verify-resume` sees of a run
                    log.add(result)
                if isinstance(result, StepResult | PassedOver):
                    evaluations.begin_step()
                    stopped = result.stop
                ends = at_end or stopped or totals.step == setup.config.train.max_steps
                metrics: dict[str, float | int] = {}
                if log.is_due(ends=ends):
                    metrics |= log.read()
                    notices.of_metrics(metrics)
                elif isinstance(result, StepResult) and result.step == before.step + 1:
                    log.show(result)
                if not stopped and evaluations.is_due(at_end=at_end):
                    with watchdog.stage("evaluating"):
                        found = evaluations.run()
                    metrics |= found
                    stopped = not found
                best, saves_now = evaluations.take_best(), saves.is_due(ends=ends)
                if best and not saves_now:
                    with watchdog.stage("saving"):
                        saves.begin_best(best)
                if metrics:
                    tracker.log(totals.step, metrics, more=evaluations.may_come_later(at_end=at_end))
                if saves_now:
                    with watchdog.stage("saving"):
                        saves.begin(best)
                if at_end:
                    notices.of_end()
                if stopped:
                    break
        except Interrupted:
            stopped = True
            out.raise_if_lost()
            if log.is_due(ends=True):
                tracker.log(totals.step, log.read(), more=evaluations.may_come_later())
        out.raise_if_lost()
        if totals.step == 0 and not stopped:
            nothing = nothing_to_train_on(totals, (skip.reason for skip in result.rows_seen.skipped))
            raise ContentError(f"{without_secrets(setup.config.data.dataset or 'the mixture')}: {nothing}")
        with watchdog.stage("saving"):
            saves.end()
        out.raise_if_lost()
        state: Literal["preempted", "finished"] = "preempted" if stopped else "finished"
        if state == "finished" and (out.finished_at(setup.config.train) != totals.step or not (out.path / MODEL).exists()):
            saves.export()
        code = exit_codes.of_stop(setup.stop.signal) if stopped else None
        out.record(state, step=totals.step, exit_code=code, max_epochs=setup.config.train.max_epochs)
        tracker.finish(state)
    setup.progress.close()  # the line of the last step stays above what follows
    setup.stop.wait_for_answer()
    if totals.tokens > before.tokens:  # else all steps were passed over
        for line in summary(totals, before, monotonic() - since, log.loss, evaluations.last, evaluations.best):
            setup.progress.notice(line)
    return state


def _estimated(setup: Setup, stream: StepStream, watchdog: Watchdog) -> Setup:
    """With a warm-up that fits the run, whose overview is shown. Called by all ranks. Raises: Interrupted."""
    with setup.progress.phase("reading the first rows", stays=False):
        rows, interrupted = rows_read(stream, setup.ranks, setup.stop, watchdog, peek=True)
        with watchdog.stage("waiting for the other ranks"):
            sample = sample_of_all(rows, setup.ranks, interrupted=interrupted)
    estimated = estimate(setup.config.train, setup.plan, sample)
    setup = replace(setup, estimated_steps=estimated.steps)
    if setup.chosen.warmup_steps is None:
        chosen = replace(setup.chosen, warmup_steps=warmup_of(estimated.steps))
        setup = replace(setup, chosen=chosen, config=chosen.applied(setup.asked))
    if setup.ranks.is_first and sample.rows:  # else the corpus has ended
        for line in overview(setup, estimated):
            setup.progress.notice(line)
        if warning := lack_of_space(setup, estimated):
            setup.progress.warning(warning)
    return setup


class StepLog:
    """The steps since the last line of metrics. Every method is called by all ranks."""

    def __init__(self, setup: Setup) -> None:
        self._setup, self._last_step, self._share = setup, setup.totals.step, 0.0
        self.loss = math.nan  # of the last line of metrics
        self._about = setup.estimated_steps
        self._window = MetricsWindow(setup.plan, setup.loaded.model, setup.parallel.device, setup.ranks)

    def add(self, result: StepResult) -> None:
        """Add a step."""
        self._window.add(result)
        self._share = result.progress

    def is_due(self, *, ends: bool) -> bool:
        """Whether to log the last step; ends: it is the last one of the run."""
        step = self._setup.totals.step
        return (
            bool(self._window.results)
            and self._last_step < step
            and (ends or step == 1 or step % self._setup.config.run.log_every == 0)
        )

    def read(self) -> dict[str, float | int]:
        """Read and show the metrics of the steps since the last log line."""
        totals, max_steps = self._setup.totals, self._setup.config.train.max_steps
        metrics = self._window.read(totals, self._setup.cursors)
        self._setup.progress.step(totals.step, max_steps, self._share, metrics, self._about)
        self._last_step, self.loss = totals.step, metrics["train/loss"]
        return metrics

    def show(self, result: StepResult) -> None:
        """Show the first step of a start. It is not recorded: a run without interruption would not record it."""
        metrics = {"train/loss": result.loss / max(1, result.labels), "train/lr": result.learning_rate}
        self._setup.progress.step(result.step, self._setup.config.train.max_steps, result.progress, metrics, self._about)


def _tracker(setup: Setup, *, more: bool) -> Tracker:
    """The tracker of the first rank; silent ones for the others, since metrics are over all ranks."""
    if not setup.ranks.is_first:
        return Tracker.silent()
    try:
        with setup.stop.interruptible():
            return Tracker.open(
                setup.config.run,
                setup.out.path,
                config=shown_options(flatten(setup.config)),
                resumed_step=setup.totals.step or None,
                more=more,
                report=setup.progress.notice,
            )
    except Interrupted:
        return Tracker.silent()  # all ranks stop together, before the first step
