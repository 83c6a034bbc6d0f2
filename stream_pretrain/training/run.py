"""Steps to records, evaluations and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, Literal

from stream_pretrain.config import Config, fixed_options, flatten, shown_options
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.data.lanes.stream import StepStream, lanes_of
from stream_pretrain.data.lanes.stream_state import LaneCursors, stream_state
from stream_pretrain.errors import (
    ContentError,
)
from stream_pretrain.model.loading import export_state
from stream_pretrain.training import evaluation
from stream_pretrain.training.checkpoint import (
    BackgroundWriter,
    Snapshot,
    write_model,
)
from stream_pretrain.training.loop import (
    EndOfCorpus,
    StepResult,
    training_steps,
)
from stream_pretrain.training.metrics import MetricsWindow
from stream_pretrain.training.model_state import optimizer_tensors, untrained
from stream_pretrain.training.out_files import BAD_STEPS, METRICS, MODEL, QUARANTINE
from stream_pretrain.training.preemption import Interrupted, ignore_in_worker
from stream_pretrain.training.records import append, has_evaluation
from stream_pretrain.training.start import Setup
from stream_pretrain.training.totals import nothing_to_train_on, sources_without_text
from stream_pretrain.training.tracking import Tracker
from stream_pretrain.training.versions import program
from stream_pretrain.training.watchdog import Watchdog
from stream_pretrain.urls import without_secrets


def train(setup: Setup, writer: BackgroundWriter, watchdog: Watchdog, stack: ExitStack) -> Literal["preempted", "finished"]:
    """Train to the end, or until asked to stop; returns the state of the run.

    What is to be put away goes on `stack`: that may take longer than the other ranks wait to be told of an error.
    """
    config, ranks, out = setup.config, setup.ranks, setup.out
    totals, progress = setup.totals, setup.progress
    first_step = totals.step
    stream = stack.enter_context(
        StepStream(
            setup.plan,
            setup.cursors,
            rank=ranks.index,
            world=ranks.world,
            workers=config.data.workers,
            in_worker=ignore_in_worker,
        )
    )
    evaluated = ranks.from_first(lambda: has_evaluation(out.path / METRICS, totals.step))
    evaluated = evaluated or setup.evaluation_set is None
    tracker = stack.enter_context(_tracker(setup, more=not evaluated))
    stack.enter_context(writer)
    if ranks.is_first and first_step:
        writer.prune(first_step)
    window = MetricsWindow(setup.plan, setup.loaded.model, setup.accelerator.device, ranks)
    last_saved = first_step
    stopped = False
    with watchdog.stage("computing"):
        if not evaluated and _is_evaluated(config, totals.step):  # one that a signal or a kill has taken from the last start
            with watchdog.stage("evaluating"):
                metrics = _evaluate(setup)
            if metrics:
                tracker.log(totals.step, metrics)
            evaluated, stopped = bool(metrics), not metrics
        warned_of, stripes = set[str](), totals.stripes
        named, done, last_logged = totals.unused, 0.0, first_step
        present = [
            source
            for number, source in enumerate(setup.plan.lanes.sources)
            if not all(source.ended(lane[number]) for lane in setup.cursors)
        ]
        steps = training_steps(
            config,
            setup.plan,
            setup.model,
            setup.optimizer,
            setup.accelerator,
            ranks,
            stream,
            setup.cursors,
            totals,
            setup.stop,
            watchdog,
        )
        try:
            for result in steps:
                at_end = isinstance(result, EndOfCorpus)
                out.raise_if_lost()
                writer.check()
                if totals.unused != named:
                    # Behind the last row no step comes. Where the last one is saved, its checkpoint stands in front of these
                    # documents, and a start from it names them again: they belong to the step behind, whose records it drops.
                    behind = at_end and last_saved == totals.step
                    _name_skipped(setup, result.rows_seen, totals.step + behind)
                    if totals.stripes > stripes:
                        progress.warning(
                            f"step {totals.step:,}: the rest of damaged stripes is skipped ({totals.stripes - stripes}): "
                            "OUT/quarantine.jsonl names them"
                        )
                        stripes = totals.stripes
                    named = totals.unused
                for source, line in sources_without_text(totals, setup.plan.lanes.sources, at_end=at_end).items():
                    if source not in warned_of:
                        progress.warning(line)
                        warned_of.add(source)
                if not isinstance(result, EndOfCorpus):
                    done = result.progress
                    window.results.append(result)
                    evaluated = setup.evaluation_set is None
                    if not result.updated:
                        _name_bad_step(setup, result)
                    stopped = result.stop
                ends = at_end or stopped or totals.step == config.train.max_steps
                metrics = {}
                if last_logged < totals.step and (ends or totals.step % config.run.log_every == 0):
                    metrics |= window.read(totals, setup.cursors)
                    progress.step(totals.step, config.train.max_steps, done, metrics)
                    last_logged = totals.step
                    present = _say_which_left(setup, present, metrics)
                due = not evaluated and (at_end or _is_evaluated(config, totals.step))
                if due and not stopped:
                    with watchdog.stage("evaluating"):
                        found = _evaluate(setup)
                    metrics |= found
                    evaluated, stopped = bool(found), not found
                if metrics:
                    more = not evaluated and (due or config.train.max_epochs is not None)
                    tracker.log(totals.step, metrics, more=more)
                # While steps are bad none is saved: weights that are not finite would be in every checkpoint that is kept.
                if totals.bad_steps == 0 and last_saved < totals.step and (ends or totals.step % config.run.save_every == 0):
                    with watchdog.stage("saving"):
                        begin_save(setup, writer)
                    last_saved = totals.step
                if at_end:
                    _say_what_is_not_read(setup)
                if stopped:
                    break
        except Interrupted:
            stopped = True
            out.raise_if_lost()
            if last_logged < totals.step:
                metrics = window.read(totals, setup.cursors)
                progress.step(totals.step, config.train.max_steps, done, metrics)
                tracker.log(totals.step, metrics, more=not evaluated and config.train.max_epochs is not None)
        out.raise_if_lost()
        if totals.step == 0 and not stopped:
            nothing = nothing_to_train_on(totals, (skip.reason for skip in result.rows_seen.skipped))
            raise ContentError(f"{without_secrets(config.data.dataset or 'the mixture')}: {nothing}")
        with watchdog.stage("saving"):
            if last_saved < totals.step:
                begin_save(setup, writer)
            writer.wait()
        out.raise_if_lost()
        state: Literal["preempted", "finished"] = "preempted" if stopped else "finished"
        if state == "finished" and ranks.is_first:
            weights, settings = export_state(setup.loaded, setup.bare)
            write_model(
                writer.weights.of(weights),
                settings,
                setup.loaded.tokenizer,
                out.path / MODEL,
                setup.loaded.came_with.files,
            )
        out.record(state, step=totals.step)
        tracker.finish(state)
    return state


def _is_evaluated(config: Config, step: int) -> bool:
    """Whether a run evaluates after a step, where it does at all; it also does at the end of the corpus."""
    return step == config.train.max_steps or step % config.eval.every == 0


def _tracker(setup: Setup, *, more: bool) -> Tracker:
    """Where metrics go: those of all ranks are reduced before, so the first one's is the only one that keeps them."""
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
        return Tracker.silent()  # all ranks stop together, in front of the first step


def _evaluate(setup: Setup) -> dict[str, float]:
    """Loss and accuracy on the evaluation set; nothing when a stop was asked for meanwhile, of any rank."""
    assert setup.evaluation_set is not None
    with setup.accelerator.autocast():
        metrics = evaluation.evaluate(
            setup.bare,
            setup.evaluation_set,
            setup.accelerator.device,
            setup.ranks,
            stop=lambda: setup.stop.requested,
        )
    if metrics:
        setup.progress.notice(f"step {setup.totals.step:,}  held-out loss {metrics['eval/loss']:.4f}")
    return metrics


def _say_which_left(setup: Setup, present: Sequence[SourcePlan], metrics: Mapping[str, float]) -> list[SourcePlan]:
    """Say which sources of a mixture all lanes have read as often as they were asked to; returns those that are left."""
    ended = [s for s in present if s.max_epochs is not None and metrics.get(f"train/{s.name}/epoch_least", 0) >= s.max_epochs]
    left = [source for source in present if source not in ended]
    lanes = setup.plan.lanes
    goes_on = lanes.parts_of_row(setup.totals.step * lanes.rows_per_lane, [source not in left for source in lanes.sources])
    for source in ended if goes_on else []:  # else the run ends
        setup.progress.notice(
            f"step {setup.totals.step:,}: source {source.name} leaves the mixture, its max_epochs {source.max_epochs} are "
            "read; the others share its part"
        )
    return left


def _say_what_is_not_read(setup: Setup) -> None:
    """Say which sources of a mixture are left where the run ends, since none of them has a weight any more."""
    cursors = _all_cursors(setup)
    sources = enumerate(setup.plan.lanes.sources)
    left = [source.name for number, source in sources if not all(source.ended(lane[number]) for lane in cursors)]
    if left:
        setup.progress.notice(
            f"step {setup.totals.step:,}: the run ends for want of documents: all sources with a weight are read; "
            f"left without one: {', '.join(left)}"
        )


def _name_skipped(setup: Setup, rows: StepRows, step: int) -> None:
    """Record the documents that were skipped on the way to the rows of a step, on any rank."""
    shards = setup.pinned.shards
    records = [
        {
            "step": step,
            "epoch": skip.epoch,
            "shard": shards[skip.shard].name,
            "offset": skip.offset,
            "documents": skip.documents,
            "why": skip.reason,
        }
        for skipped in setup.ranks.gather(rows.skipped)
        for skip in skipped
    ]
    if setup.ranks.is_first:
        append(setup.out.path / QUARANTINE, records)


def _name_bad_step(setup: Setup, result: StepResult) -> None:
    """Record the documents of a step that changed nothing, of all ranks."""
    setup.progress.warning(f"step {result.step}: loss or gradient not finite, no update")
    shards = setup.pinned.shards
    gathered = setup.ranks.gather(result.rows_seen.origins.tolist())
    seen = sorted({(epoch, shards[shard].name, offset) for origins in gathered for epoch, shard, offset in origins})
    if setup.ranks.is_first:
        documents = [{"epoch": epoch, "shard": shard, "offset": offset} for epoch, shard, offset in seen]
        append(setup.out.path / BAD_STEPS, [{"step": result.step, "documents": documents}])


def begin_save(setup: Setup, writer: BackgroundWriter) -> None:
    """Begin to write a checkpoint of this moment. All lanes' cursors come together; the first rank writes."""
    cursors = _all_cursors(setup)
    if setup.ranks.is_first:
        writer.wait()
        writer.submit(_snapshot(setup, cursors, writer))


def _all_cursors(setup: Setup) -> list[LaneCursors]:
    """The cursors of all lanes, each from the rank that trains on it. Called by all ranks."""
    own = {lane: setup.cursors[lane] for lane in lanes_of(setup.pinned.lanes, setup.ranks.index, setup.ranks.world)}
    gathered = {lane: cursors for of_rank in setup.ranks.gather(own) for lane, cursors in of_rank.items()}
    return [gathered[lane] for lane in range(setup.pinned.lanes)]


def _snapshot(setup: Setup, cursors: Sequence[LaneCursors], writer: BackgroundWriter) -> Snapshot:
    """What a checkpoint of this moment holds, copied into the memory of the writer."""
    weights, settings = export_state(setup.loaded, setup.bare)
    trainer: dict[str, Any] = {
        "step": setup.totals.step,
        "totals": asdict(setup.totals),
        "fixed": shown_options(fixed_options(setup.config)),
        "max_steps": setup.config.train.max_steps,
        "tokenizer": setup.plan.encoder.fingerprint,
        "engine": setup.engine.to_json(),
        "parent": setup.parent,
        "world": setup.ranks.world,
        "defaults": setup.defaults,
        **program(),
    }
    return Snapshot(
        step=setup.totals.step,
        model=writer.weights.of(weights),
        model_config=settings,
        tokenizer=setup.loaded.tokenizer,
        optimizer=writer.optimizer.of(optimizer_tensors(setup.optimizer, setup.bare.model.named_parameters())),
        stream=stream_state(cursors),
        corpus=setup.pinned.encoded,
        trainer=trainer,
        came_with=setup.loaded.came_with.files,
        untrained=untrained(weights, setup.bare.model),
    )
