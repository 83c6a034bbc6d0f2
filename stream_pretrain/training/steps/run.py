"""A run from its first step to its last: when it logs, evaluates and saves."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
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
from stream_pretrain.training.start.setup import Setup
from stream_pretrain.training.state.auto_learning_rate import warmup_of
from stream_pretrain.training.state.background_writer import BackgroundWriter
from stream_pretrain.training.state.totals import nothing_to_train_on
from stream_pretrain.training.steps.corpus_estimate import estimate, many_unknown, sample_of_all, unknown_id
from stream_pretrain.training.steps.corpus_notices import CorpusNotices
from stream_pretrain.training.steps.due_evaluations import Evaluations
from stream_pretrain.training.steps.loop import EndOfCorpus, PassedOver, StepResult, training_steps
from stream_pretrain.training.steps.metrics import StepMetrics
from stream_pretrain.training.steps.overview import lack_of_space, overview
from stream_pretrain.training.steps.rows_of_rank import rows_read
from stream_pretrain.training.steps.saving import Saves
from stream_pretrain.urls import without_secrets

STEP_EVENT = "stream_pretrain.step"
"""The audit event (`sys.addaudithook`) of a trained step, with its `StepResult`; the others are Python's own."""


State = Literal["preempted", "finished"]


def train(setup: Setup, writer: BackgroundWriter, watchdog: Watchdog, stack: ExitStack) -> State:
    """Train to the end or until asked to stop; returns the state of the run.

    Cleanup is pushed on `stack`, for after an error was announced to the other ranks: it may take longer than they wait.
    """
    stream = stack.enter_context(
        StepStream(
            setup.plan,
            setup.cursors,
            step=setup.totals.step,
            rank=setup.ranks.index,
            world=setup.ranks.world,
            workers=setup.config.data.workers,
            in_worker=ignore_in_worker,
            memory=memory_for(setup.parallel.device),
            warn=setup.progress.warning,
        )
    )
    if setup.totals.step != setup.config.train.max_steps:
        setup = _estimated(setup, stream, watchdog)
    evaluations = Evaluations(setup)
    tracker = stack.enter_context(_tracker(setup, more=evaluations.may_come()))
    stack.enter_context(writer)
    if setup.ranks.is_first and setup.totals.step:
        writer.prune(setup.totals.step)
    setup.stop.last_step = setup.totals.step
    run = _Run(setup, writer, watchdog, evaluations, tracker)
    with watchdog.stage("computing"):
        run.evaluate_missed()
        run.train(stream)
        state = run.end()
    setup.progress.close()  # the line of the last step stays above what follows
    setup.stop.wait_for_answer()
    for line in run.summary():
        setup.progress.notice(line)
    return state


class _Run:
    """What surrounds the steps of one start. Every method is called by all ranks."""

    def __init__(
        self, setup: Setup, writer: BackgroundWriter, watchdog: Watchdog, evaluations: Evaluations, tracker: Tracker
    ) -> None:
        self._setup, self._writer, self._watchdog, self._tracker = setup, writer, watchdog, tracker
        self._evaluations, self._log = evaluations, StepLog(setup)
        self._saves, self._notices = Saves(setup, writer), CorpusNotices(setup)
        self._before, self._since = replace(setup.totals), monotonic()
        self._is_stopped = False
        self._why_nothing = list[str]()  # for which the last documents were skipped

    def evaluate_missed(self) -> None:
        """Evaluate the last step where an earlier start was stopped before or during that."""
        if not self._evaluations.is_due():
            return
        metrics = self._evaluate()
        if best := self._evaluations.take_best():
            self._saves.begin_best(best)
        if metrics:
            self._tracker.log(self._setup.totals.step, metrics)

    def train(self, stream: StepStream) -> None:
        """Train until the run ends or is stopped; records, logs, evaluates and saves after each step what is due."""
        try:
            for result in training_steps(self._setup, stream, self._watchdog):
                self._after(result)
                if self._is_stopped:
                    break
        except Interrupted:
            self._is_stopped = True
            self._setup.out.raise_if_lost()
            if self._log.is_due(is_last=True):
                self._record(self._log.read())

    def end(self) -> State:
        """Save the last step, and the model of a finished run. Raises: ContentError for a corpus without a row."""
        setup, step = self._setup, self._setup.totals.step
        setup.out.raise_if_lost()
        if step == 0 and not self._is_stopped:
            nothing = nothing_to_train_on(setup.totals, self._why_nothing)
            raise ContentError(f"{without_secrets(setup.config.data.dataset or 'the mixture')}: {nothing}")
        with self._watchdog.stage("saving"):
            self._saves.end()
        setup.out.raise_if_lost()
        state: State = "preempted" if self._is_stopped else "finished"
        if state == "finished" and (setup.out.finished_at(setup.config.train) != step or not (setup.out.path / MODEL).exists()):
            self._saves.export()
        code = exit_codes.of_stop(setup.stop.signal) if self._is_stopped else None
        setup.out.record(state, step=step, exit_code=code, max_epochs=setup.config.train.max_epochs)
        self._tracker.finish(state)
        return state

    def summary(self) -> Iterator[str]:
        """The last lines; none where every step was passed over."""
        totals, evaluations = self._setup.totals, self._evaluations
        if totals.tokens > self._before.tokens:
            yield from summary(
                totals, self._before, monotonic() - self._since, self._log.loss, evaluations.last, evaluations.best
            )

    def _after(self, result: StepResult | PassedOver | EndOfCorpus) -> None:
        setup, at_end = self._setup, isinstance(result, EndOfCorpus)
        setup.out.raise_if_lost()
        self._writer.check()
        self._notices.of_step(result, last_saved=self._saves.last_step)
        self._why_nothing = [skip.reason for skip in result.rows_seen.skipped]
        if isinstance(result, StepResult):
            sys.audit(STEP_EVENT, result)  # before it is saved: what `verify-resume` sees of a run
        if not isinstance(result, EndOfCorpus):
            self._evaluations.begin_step()
            self._is_stopped = result.stop
        is_last = at_end or self._is_stopped or setup.totals.step == setup.config.train.max_steps
        metrics = self._log.after(result, is_last=is_last)
        if metrics:
            self._notices.of_metrics(metrics)
        if not self._is_stopped and self._evaluations.is_due(at_end=at_end):
            metrics |= self._evaluate()
        best, saves_now = self._evaluations.take_best(), self._saves.is_due(is_last=is_last)
        with self._watchdog.stage("saving"):
            if best and not saves_now:
                self._saves.begin_best(best)
            if metrics:
                self._record(metrics, at_end=at_end)
            if saves_now:
                self._saves.begin(best)
        if at_end:
            self._notices.of_end()

    def _evaluate(self) -> dict[str, float | int]:
        with self._watchdog.stage("evaluating"):
            metrics: dict[str, float | int] = {**self._evaluations.run()}
        self._setup.out.raise_if_lost()  # since it took a while
        self._is_stopped = not metrics
        return metrics

    def _record(self, metrics: Mapping[str, float | int], *, at_end: bool = False) -> None:
        more = self._evaluations.may_come_later(at_end=at_end)
        self._tracker.log(self._setup.totals.step, metrics, more=more)


def _estimated(setup: Setup, stream: StepStream, watchdog: Watchdog) -> Setup:
    """With a warm-up that fits the run, whose overview is shown. Called by all ranks. Raises: Interrupted."""
    with setup.progress.phase("reading the first rows", stays=False):
        rows, interrupted = rows_read(stream, setup.ranks, setup.stop, watchdog, peek=True)
        with watchdog.stage("waiting for the other ranks"):
            unknown = unknown_id(setup.parallel.loaded.tokenizer, setup.plan.encoder)
            sample = sample_of_all(rows, setup.ranks, unknown, interrupted=interrupted)
    estimated = estimate(setup.config.train, setup.plan, sample)
    setup = replace(setup, estimated_steps=estimated.steps)
    if setup.start.chosen.warmup_steps is None:
        chosen = replace(setup.start.chosen, warmup_steps=warmup_of(estimated.steps))
        setup = replace(setup, start=replace(setup.start, chosen=chosen), config=chosen.applied(setup.config_with_auto))
    if setup.ranks.is_first and sample.rows:  # else the corpus has ended
        for line in overview(setup, estimated):
            setup.progress.notice(line)
        for warning in (lack_of_space(setup, estimated), many_unknown(sample)):
            if warning:
                setup.progress.warning(warning)
    return setup


class StepLog:
    """The steps since the last line of metrics. Every method is called by all ranks."""

    def __init__(self, setup: Setup) -> None:
        self._setup, self._share = setup, 0.0
        self._begin = self._last_step = setup.totals.step
        self.loss = math.nan  # of the last line of metrics
        self._metrics = StepMetrics(setup.plan, setup.parallel.loaded.model, setup.parallel.device, setup.ranks)

    def after(self, result: StepResult | PassedOver | EndOfCorpus, *, is_last: bool) -> dict[str, float | int]:
        """Count a step; its metrics, which are shown, where a line is due.

        The first step of a start is shown, and not recorded: a run without interruption would not record it.
        """
        if isinstance(result, StepResult):
            self._metrics.add(result)
            self._share = result.progress
        if self.is_due(is_last=is_last):
            return self.read()
        if isinstance(result, StepResult) and result.step == self._begin + 1:
            self._show({"train/loss": result.loss / max(1, result.labels), "train/lr": result.learning_rate})
        return {}

    def is_due(self, *, is_last: bool) -> bool:
        """Whether to log the last step; is_last: of the run."""
        step = self._setup.totals.step
        is_in_interval = is_last or step == 1 or step % self._setup.config.run.log_every == 0
        return bool(self._metrics.results) and self._last_step < step and is_in_interval

    def read(self) -> dict[str, float | int]:
        """Read and show the metrics of the steps since the last log line."""
        metrics = self._metrics.read(self._setup.totals, self._setup.cursors)
        self._last_step, self.loss = self._setup.totals.step, metrics["train/loss"]
        self._show(metrics)
        return metrics

    def _show(self, metrics: Mapping[str, float | int]) -> None:
        setup = self._setup
        setup.progress.step(setup.totals.step, setup.config.train.max_steps, self._share, metrics, setup.estimated_steps)


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
