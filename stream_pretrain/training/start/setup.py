"""A run that is ready to train: its model, its corpus, and the state of its last checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import transformers
from accelerate import Accelerator

from stream_pretrain.config import Config, TrainConfig, defaults
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus
from stream_pretrain.data.lanes.cursor_checks import refuse_impossible
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors, cursors_from, first_cursors
from stream_pretrain.data.rows.tokenizer_probe import EngineRecord
from stream_pretrain.training.evaluation import evaluation
from stream_pretrain.training.evaluation.evaluation import EvaluationSet
from stream_pretrain.training.evaluation.evaluation_documents import evaluation_corpora, evaluation_documents
from stream_pretrain.training.files.options_file import write_options
from stream_pretrain.training.files.out_files import BEST, RECORDS
from stream_pretrain.training.files.records import trim_after
from stream_pretrain.training.files.run_directory import RunDirectory
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import StopRequest
from stream_pretrain.training.report.progress import Progress, rate_in_words
from stream_pretrain.training.start.advice import advice, advice_on_learning_rate
from stream_pretrain.training.start.corpus import pin_on_all_ranks, plan_on_all_ranks
from stream_pretrain.training.start.kept_defaults import with_options
from stream_pretrain.training.start.model import load_on_all_ranks, ready_to_train
from stream_pretrain.training.start.optimizer import learning_rate
from stream_pretrain.training.start.resume import Start, decide_start
from stream_pretrain.training.state.best_checkpoint import forget_after
from stream_pretrain.training.state.checkpoint import Saved, read
from stream_pretrain.training.state.parallelism import DataParallel
from stream_pretrain.training.state.passed_steps import count_up_to
from stream_pretrain.training.state.totals import Totals
from stream_pretrain.training.state.trainer_state import TRAINER


@dataclass(frozen=True)
class Setup:
    """A run that is ready to train."""

    config: Config
    parallel: DataParallel
    ranks: Ranks
    out: RunDirectory
    progress: Progress
    stop: StopRequest
    pinned: PinnedCorpus
    plan: StreamPlan
    engine: EngineRecord
    evaluation_sets: Sequence[EvaluationSet]
    """Empty where nothing is evaluated."""
    cursors: list[LaneCursors]
    totals: Totals
    start: Start
    defaults: Mapping[str, Any]
    """Those of the run's first start; of an option that is newer, those of the start that first knew it."""
    config_with_auto: Config
    """The options before `auto` was replaced by the values of `start.chosen`."""
    estimated_steps: float | None = None
    """Of the run, once its first rows are read; None where it cannot be estimated."""


def set_up(
    config: Config,
    command: Sequence[str],
    accelerator: Accelerator,
    ranks: Ranks,
    progress: Progress,
    stop: StopRequest,
    out: RunDirectory,
) -> Setup:
    """Load the model, resolve the corpus, restore the last checkpoint. Called by all ranks. Only evaluation reads shards."""
    transformers.utils.logging.disable_progress_bar()  # the phases show the progress
    with stop.interruptible():
        start = ranks.from_first(lambda: decide_start(config, out, progress.warning, command))
        config_with_auto, checkpoint = with_options(config, start.kept), start.checkpoint
        config = start.applied(config)
        saved = None if checkpoint is None else ranks.from_first(lambda: read(checkpoint))
        # The corpus first: a wrong name is refused before a model is downloaded.
        pinned = pin_on_all_ranks(config, saved, ranks, progress)
        corpora = ranks.from_first(lambda: evaluation_corpora(config, out.path))
        loaded = load_on_all_ranks(config, saved, accelerator, ranks, progress)
        plan, engine = plan_on_all_ranks(config, loaded.tokenizer, pinned, saved, out.path, ranks, progress)
        for line in (*advice_on_learning_rate(config.train), *advice(plan, ranks, config.data.workers)):
            progress.warning(line)
        collect = partial(evaluation_documents, config, plan, corpora, out.path, progress, step=start.step)
        evaluation_sets = _evaluation_sets(config, plan, ranks.from_first(collect)) if config.eval.every else []

    parallel = ready_to_train(config, loaded, plan, saved, accelerator, ranks)
    cursors, totals = first_cursors(pinned.lanes, len(pinned.sources)), Totals()
    if saved is not None:
        cursors, totals = ranks.from_first(lambda: restored(saved, plan))
        if saved.trainer.max_epochs != config.train.max_epochs:
            totals.progress = 0.0  # of another run
        updates = totals.step - totals.bad_steps - count_up_to(start.passed, totals.step)
        parallel.load_optimizer(saved.path / "optimizer.safetensors", updates=updates)
        _report_resume(config.train, saved, totals.step, progress)
    if ranks.is_first:
        for name in RECORDS:
            trim_after(out.path / name, None if saved is None else totals.step, progress.warning)
        forget_after(out.path / BEST, totals.step, progress.notice)
        write_options(config_with_auto, start.parent, out.path)
    return Setup(
        config=config,
        parallel=parallel,
        ranks=ranks,
        out=out,
        progress=progress,
        stop=stop,
        pinned=pinned,
        plan=plan,
        engine=engine,
        evaluation_sets=evaluation_sets,
        cursors=cursors,
        totals=totals,
        start=start,
        defaults=defaults(config) if saved is None else defaults(config) | saved.trainer.defaults,
        config_with_auto=config_with_auto,
    )


def _evaluation_sets(config: Config, plan: StreamPlan, texts: Mapping[str, Sequence[str]]) -> list[EvaluationSet]:
    weights = {one.name: one.weight for one in config.eval.sets}
    return [
        evaluation.evaluation_set(of_set, plan, config.train.micro_batch_size, name=name, weight=weights.get(name, 1.0))
        for name, of_set in texts.items()
    ]


def restored(saved: Saved, plan: StreamPlan) -> tuple[list[LaneCursors], Totals]:
    """The cursors and totals of a checkpoint. Raises: CheckpointError for those that no run of this plan can have."""
    totals, file = saved.trainer.totals, saved.path / "stream.json"
    cursors = cursors_from(saved.stream, totals.step, plan.layout.lanes, file)
    totals.refuse_impossible(len(plan.sources), saved.path / TRAINER)
    refuse_impossible(cursors, plan, totals.step, file)
    return cursors, totals


def _report_resume(train: TrainConfig, saved: Saved, step: int, progress: Progress) -> None:
    if train.max_steps is not None and step >= train.max_steps:
        progress.notice(f"already finished at step {step:,}, from {saved.path}")
        return
    progress.notice(f"resuming after step {step:,}, from {saved.path}")
    was = saved.trainer.max_steps
    if was is not None and train.max_steps is not None and was != train.max_steps:
        old = learning_rate(replace(train, max_steps=was), step, step / was)
        new = learning_rate(train, step, step / train.max_steps)
        progress.notice(
            f"--max-steps was {was:,}, is {train.max_steps:,}: the learning rate continues at "
            f"{rate_in_words(new)}, not {rate_in_words(old)}"
        )
