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
from stream_pretrain.model.loading import LoadedModel
from stream_pretrain.training.evaluation import evaluation
from stream_pretrain.training.evaluation.evaluation import EvaluationSet
from stream_pretrain.training.evaluation.evaluation_documents import evaluation_corpora, evaluation_documents
from stream_pretrain.training.files.options_file import write_options
from stream_pretrain.training.files.out_files import BEST, RECORDS
from stream_pretrain.training.files.records import trim_after
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import StopRequest
from stream_pretrain.training.report.progress import Progress, rate_in_words
from stream_pretrain.training.start.advice import advice
from stream_pretrain.training.start.auto_learning_rate import Chosen
from stream_pretrain.training.start.corpus import pin_on_all_ranks, plan_on_all_ranks
from stream_pretrain.training.start.kept_defaults import with_options
from stream_pretrain.training.start.model import load_on_all_ranks, ready_to_train
from stream_pretrain.training.start.optimizer import learning_rate
from stream_pretrain.training.start.passed_steps import Passed, count_up_to
from stream_pretrain.training.start.run_directory import RunDirectory, decide_start
from stream_pretrain.training.state.best_checkpoint import forget_after
from stream_pretrain.training.state.checkpoint import Saved, read
from stream_pretrain.training.state.parallelism import DataParallel
from stream_pretrain.training.state.totals import Totals


@dataclass(frozen=True)
class Setup:
    """A run that is ready to train."""

    config: Config
    parallel: DataParallel
    ranks: Ranks
    out: RunDirectory
    progress: Progress
    stop: StopRequest
    loaded: LoadedModel
    pinned: PinnedCorpus
    plan: StreamPlan
    engine: EngineRecord
    evaluation_sets: Sequence[EvaluationSet]
    """Empty where nothing is evaluated."""
    cursors: list[LaneCursors]
    totals: Totals
    parent: str | None
    defaults: Mapping[str, Any]
    """Those of the run's first start; of an option that is newer, those of the start that first knew it."""
    asked: Config
    """The options, with `auto` where it is given."""
    chosen: Chosen
    """The values of `auto`."""
    passed: Passed = ()
    """Steps whose rows are read and not trained on."""
    estimated_steps: float | None = None
    """Of the run, once its first rows are read; None where nothing tells."""


def prepare(
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
        asked, checkpoint, chosen = with_options(config, start.kept), start.checkpoint, start.chosen
        config = start.applied(config)
        saved = None if checkpoint is None else ranks.from_first(lambda: read(checkpoint))
        # The corpus first: a wrong name is refused before a model is downloaded.
        pinned = pin_on_all_ranks(config, saved, ranks, progress)
        held_out = ranks.from_first(lambda: evaluation_corpora(config, out.path))
        loaded = load_on_all_ranks(config, saved, accelerator, ranks, progress)
        corpus = plan_on_all_ranks(config, loaded.tokenizer, pinned, saved, out.path, ranks, progress)
        plan = corpus.plan
        for line in advice(plan, ranks, config.data.workers):
            progress.warning(line)
        evaluation_sets: list[EvaluationSet] = []
        if config.eval.every:
            collect = partial(evaluation_documents, config, plan, held_out, out.path, progress, step=start.step)
            weights = {one.name: one.weight for one in config.eval.sets}
            evaluation_sets = [
                evaluation.evaluation_set(texts, plan, config.train.micro_batch_size, name=name, weight=weights.get(name, 1.0))
                for name, texts in ranks.from_first(collect).items()
            ]

    parallel = ready_to_train(config, loaded, plan, saved, accelerator, ranks)
    began_with = defaults(config)
    if saved is None:
        cursors, totals = first_cursors(pinned.lanes, len(pinned.sources)), Totals()
    else:
        cursors, totals = ranks.from_first(lambda: restored(saved, plan))
        if saved.trainer["max_epochs"] != config.train.max_epochs:
            totals.progress = 0.0  # of another run
        updates = totals.step - totals.bad_steps - count_up_to(start.passed, totals.step)
        parallel.load_optimizer(saved.path / "optimizer.safetensors", updates=updates)
        if config.train.max_steps is not None and totals.step >= config.train.max_steps:
            progress.notice(f"already finished at step {totals.step:,}, from {saved.path}")
        else:
            progress.notice(f"resuming after step {totals.step:,}, from {saved.path}")
            _report_other_max_steps(config.train, saved.trainer["max_steps"], totals.step, progress)
        began_with |= saved.trainer["defaults"]
    if ranks.is_first:
        for name in RECORDS:
            trim_after(out.path / name, None if saved is None else totals.step, progress.warning)
        forget_after(out.path / BEST, totals.step, progress.notice)
        write_options(asked, start.parent, out.path)
    return Setup(
        config, parallel, ranks, out, progress, stop, loaded, pinned, plan, corpus.engine, evaluation_sets, cursors, totals,
        start.parent, began_with, asked, chosen, start.passed,
    )  # fmt: skip


def restored(saved: Saved, plan: StreamPlan) -> tuple[list[LaneCursors], Totals]:
    """The cursors and totals of a checkpoint. Raises: CheckpointError for those that no run of this plan can have."""
    cursors = cursors_from(saved.stream, saved.trainer["step"], plan.layout.lanes)
    totals = Totals.from_json(saved.trainer["totals"], len(plan.sources), "trainer.json: totals")
    refuse_impossible(cursors, plan, totals.step)
    return cursors, totals


def _report_other_max_steps(now: TrainConfig, was: int | None, step: int, progress: Progress) -> None:
    if was is not None and now.max_steps is not None and was != now.max_steps:
        old = learning_rate(replace(now, max_steps=was), step, step / was)
        new = learning_rate(now, step, step / now.max_steps)
        progress.notice(
            f"--max-steps was {was:,}, is {now.max_steps:,}: the learning rate continues at "
            f"{rate_in_words(new)}, not {rate_in_words(old)}"
        )
