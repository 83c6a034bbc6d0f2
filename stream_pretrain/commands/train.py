"""`stream-pretrain [train]`: start a run, or go on with it; the same command does both."""

from __future__ import annotations

import atexit
import json
import math
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from accelerate import Accelerator

from stream_pretrain import data
from stream_pretrain.config import Config, defaults, fixed_options, flatten, run_directory, secrets_of, shown_options
from stream_pretrain.data import PinnedCorpus
from stream_pretrain.data.costs import memory_bound, reading_cost
from stream_pretrain.data.lanes import LanePlan
from stream_pretrain.data.mixture import largest_shares
from stream_pretrain.data.objectives import Vocabulary
from stream_pretrain.data.shard_names import count_kinds
from stream_pretrain.data.source_lane import SourcePlan
from stream_pretrain.data.sources import in_words, resolve
from stream_pretrain.data.standing import refuse_impossible
from stream_pretrain.data.stream import (
    LaneCursors,
    StepRows,
    StepStream,
    StreamPlan,
    cursors_from,
    first_cursors,
    lanes_of,
    stream_plan,
    stream_state,
    worker_died,
)
from stream_pretrain.data.tokenization import Encoder
from stream_pretrain.data.tokenizer_probe import Engine, asked, note_on_engine, refuse_unlike
from stream_pretrain.errors import (
    CheckpointError,
    ConfigError,
    ContentError,
    ModelError,
    SourceError,
    StreamPretrainError,
    TrainingError,
)
from stream_pretrain.model.isolation import isolation_fault
from stream_pretrain.model.loading import LoadedModel, export_state, load_model, load_tokenizer
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.redaction import Secrets
from stream_pretrain.training import evaluation
from stream_pretrain.training.checkpoint import (
    BackgroundWriter,
    Saved,
    Snapshot,
    read,
    verify,
    write_model,
)
from stream_pretrain.training.defaults import with_options
from stream_pretrain.training.disk import replace_file, writing
from stream_pretrain.training.evaluation import EvaluationSet
from stream_pretrain.training.launcher import tell_launcher
from stream_pretrain.training.loop import (
    EndOfCorpus,
    StepResult,
    accelerate_for_one_run,
    accelerator_for,
    training_steps,
)
from stream_pretrain.training.manifest import MANIFEST
from stream_pretrain.training.metrics import MetricsWindow
from stream_pretrain.training.model_state import load_optimizer_tensors, load_weights, optimizer_tensors
from stream_pretrain.training.optimizer import adamw, learning_rate
from stream_pretrain.training.options_file import write_options
from stream_pretrain.training.peers import HEARD_SECONDS, NO_LIFE, POLL_SECONDS, SILENT_POLLS, STOPPED, Peers, between_ranks
from stream_pretrain.training.preemption import Interrupted, StopRequest, ignore_in_worker
from stream_pretrain.training.progress import Progress, human_bytes
from stream_pretrain.training.ranks import Ranks
from stream_pretrain.training.records import RECORDS, append, has_evaluation, trim_after
from stream_pretrain.training.run_directory import RunDirectory, decide_start
from stream_pretrain.training.totals import Totals, nothing_to_train_on, sources_without_text
from stream_pretrain.training.tracking import Tracker
from stream_pretrain.training.versions import program
from stream_pretrain.training.watchdog import Watchdog
from stream_pretrain.urls import without_secrets


@dataclass(frozen=True)
class Setup:
    """A run that is ready to train."""

    config: Config
    accelerator: Accelerator
    ranks: Ranks
    out: RunDirectory
    progress: Progress
    stop: StopRequest
    loaded: LoadedModel
    bare: PretrainingModel
    """The model itself, around which Accelerate may have put DDP."""
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    pinned: PinnedCorpus
    plan: StreamPlan
    engine: Engine
    evaluation_set: EvaluationSet | None
    cursors: list[LaneCursors]
    totals: Totals
    parent: str | None


@accelerate_for_one_run()
def run(config: Config, command: Sequence[str], stop: StopRequest) -> int:
    """Train as the options say; returns the exit code, which is 0 also when the run was asked to stop and saved itself."""
    _allow_many_open_files()
    with stop.deadly() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else nullcontext():  # the ranks wait for each other
        accelerator = accelerator_for(config)
    ranks = Ranks(accelerator.process_index, accelerator.num_processes)
    secrets = secrets_of(config, os.environ)
    progress = Progress(sys.stderr if ranks.is_first else None)
    with ExitStack() as stack:
        stack.callback(progress.close)
        out = RunDirectory(run_directory(config), command, progress.warning)  # on ranks but the first it records nothing

        setup: Setup | None = None

        def record_saved(step: int) -> None:
            out.record_saved(step)  # by the owner, which `out` is later on

        writer = BackgroundWriter(out.path, record_saved, keep_last=config.run.keep_last, keep_every=config.run.keep_every)

        def record_end(why: str) -> None:
            if out.has_ended:
                return  # all is saved: that a rank is killed while it leaves changes nothing
            if why == STOPPED:
                out.record("preempted")
            elif NO_LIFE in why:
                out.record("running", error=why)  # as after the loss of the first rank: nothing is wrong with the run
            elif setup is None:
                out.record_refusal(why)
            else:
                out.record("failed", error=why)

        def give_up(why: str, first: bool) -> None:
            if first:
                Progress(sys.stderr).notice(f"error: {why}")
            if why != STOPPED:
                tell_launcher(why)
            record_end(why)
            writer.settle()

        warn = progress.warning if ranks.is_first else Progress(sys.stderr).warning
        peers = stack.enter_context(between_ranks(ranks, stop, give_up, warn))
        watchdog = stack.enter_context(Watchdog(ranks, warn))

        def own() -> None:
            nonlocal out
            out = stack.enter_context(RunDirectory.own(out.path, command, progress.warning))

        state: Literal["preempted", "finished"]
        try:
            with watchdog.stage("starting"):
                with stop.interruptible():
                    ranks.from_first(own)
                setup = prepare(config, command, accelerator, ranks, progress, stop, out)
            state = train(setup, writer, watchdog, stack)
        except SystemExit:  # the first rank ends, and says why
            why_all = peers.reason(patience=HEARD_SECONDS)
            if why_all is not None and why_all != STOPPED:
                tell_launcher(why_all)
            raise
        except BaseException as error:
            explained = _explained(error, ranks, peers, out)
            why = _reason(explained, ranks, secrets)
            told = peers.end(why)
            record_end(told or why)
            peers.part()  # what is to be put away now, such as a checkpoint that is being written, may take its time
            if told is not None and told != STOPPED:
                tell_launcher(told)
                raise SystemExit(1) from error  # the rank that was first to end says why
            if (told or why) != STOPPED:
                if explained is error:
                    raise
                raise explained from error
            state = "preempted"
        else:
            # A launcher that sees one rank leave may end those that have not, and the first one has the most to do.
            with watchdog.stage("waiting for the other ranks"), suppress(RuntimeError):  # one was killed: all is saved
                ranks.wait()
            peers.part()
        if state == "preempted":
            saved = any((out.path / "checkpoints").glob("step-*"))
            goes_on = "goes on from the last checkpoint" if saved else "starts it again: no step was done"
            progress.notice(f"stopped by {stop.signal or 'a signal to another rank'}; the same command {goes_on}")
        else:
            progress.notice(f"finished; the model is in {out.path / 'model'}")
    if ranks.world > 1:
        # Not here, where DDP would be the last to hold it, and wait for its threads with the lock that they need to end.
        atexit.register(torch.distributed.destroy_process_group)
    return 0


def _explained(error: BaseException, ranks: Ranks, peers: Peers, out: RunDirectory) -> BaseException:
    """What ended this rank, in the user's words where there are any."""
    try:
        out.raise_if_lost()  # whatever failed for it
    except CheckpointError as lost:
        return lost
    if isinstance(error, RuntimeError | MemoryError):
        # torch says that a worker has died wherever this process was just then.
        if re.search(r"DataLoader worker \(pid|MemoryError in DataLoader worker", str(error)):
            return ranks.named(worker_died(error))
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY.search(str(error)):
            return ranks.named(TrainingError("out of memory: halve --micro-batch-size, the result does not change"))
    if isinstance(error, RuntimeError | Interrupted):
        # A collective that failed, or the launcher that ends those that are left.
        failed = isinstance(error, RuntimeError)
        cut = failed and peers.are_apart and _NO_CONNECTION.search(str(error))
        gone = peers.vanished(patience=(SILENT_POLLS + 2) * POLL_SECONDS if cut else 2.0 if failed else 0.0)
        if gone is not None:
            return TrainingError(gone)
    return error


_NO_MEMORY = re.compile("out of memory|allocate memory|not enough memory|_ALLOC_FAILED", re.IGNORECASE)
"""What is said by torch on a CPU, and by the libraries on a GPU that do not use its allocator."""


_NO_CONNECTION = re.compile("gloo|nccl|connection", re.IGNORECASE)
"""What is said by a collective when another rank is gone."""


def _reason(error: BaseException, ranks: Ranks, secrets: Secrets) -> str:
    """What the other ranks and run.json are told."""
    if isinstance(error, Interrupted):
        return STOPPED
    said = secrets.hide(f"{type(error).__name__}: {error}")
    return said if ranks.world == 1 or isinstance(error, StreamPretrainError) else f"rank {ranks.index}: {said}"


def prepare(
    config: Config,
    command: Sequence[str],
    accelerator: Accelerator,
    ranks: Ranks,
    progress: Progress,
    stop: StopRequest,
    out: RunDirectory,
) -> Setup:
    """Load the model, resolve the corpus, and stand where the last checkpoint stood. No shard is read before this is done."""
    transformers.utils.logging.disable_progress_bar()  # the phases below say what goes on
    with stop.interruptible():
        start = ranks.from_first(lambda: decide_start(config, out, progress.warning, command))
        config, checkpoint = with_options(config, start.defaults), start.checkpoint
        saved = None if checkpoint is None else ranks.from_first(lambda: read(checkpoint))
        with progress.phase("loading the model") as found:
            if checkpoint is None:
                ranks.from_first(lambda: _verify_given(config.model.init_from))
            loaded = _loaded_by_all(config, accelerator, ranks)
            precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
            found(f"{loaded.model.num_parameters() / 1e6:.1f}M parameters, {precision} on {_devices(accelerator)}")
        for note in loaded.notes:
            progress.notice(note)
        with progress.phase("resolving the corpus") as found:
            pinned = ranks.from_first(lambda: _pinned_corpus(config, saved, ranks.world))
            sizes = [shard.size for shard in pinned.shards if shard.size is not None]
            mixed = f"{len(pinned.sources)} sources, " if len(pinned.sources) > 1 else ""
            kinds = in_words(count_kinds(shard.name for shard in pinned.shards))
            found(f"{mixed}{len(pinned.shards)} shards ({kinds}), {human_bytes(sum(sizes))}, {pinned.lanes} lanes")
        encoder = Encoder.of(loaded.tokenizer, causal=config.objective.name == "clm", special_tokens=config.data.special_tokens)
        for note in encoder.notes:
            progress.notice(note)
        engine = _asked(config, encoder, ranks, saved, progress)
        masked = config.objective.name == "mlm"
        _refuse_short_rows(config, encoder)
        plan = stream_plan(
            config,
            data.lane_plan(config, pinned),
            encoder,
            Vocabulary.of(loaded.tokenizer, config.objective.selection, encoder.kept) if masked else None,
        )
        for line in _advice(plan, ranks, config.data.workers):
            progress.warning(line)
        evaluation_set = None
        if config.eval.every:
            texts = ranks.from_first(lambda: _evaluation_documents(config, plan, out.path, progress))
            evaluation_set = evaluation.evaluation_set(texts, plan, config.train.micro_batch_size)

    bare = PretrainingModel(loaded.model, len(pinned.sources)).train()
    optimizer = adamw(bare, config.train)
    cursors, totals = first_cursors(pinned.lanes, len(pinned.sources)), Totals()
    if checkpoint is not None:  # DDP gives the weights of the first rank to the others
        ranks.from_first(lambda: load_weights(export_state(loaded, bare)[0], checkpoint / "model.safetensors"))
    if config.model.compile:
        bare.compile(dynamic=False)
    model, optimizer = accelerator.prepare(bare, optimizer)
    with accelerator.autocast():  # asked again where it trains: a GPU computes attention with another kernel
        fault = isolation_fault(bare, config.data.sequence_length, not masked, loaded.tokenizer.mask_token_id)
    if fault is not None:
        raise ModelError(f"the documents of a row are not kept apart on this {accelerator.device.type}: {fault}")
    if saved is not None and checkpoint is not None:
        cursors, totals = ranks.from_first(lambda: _where_it_stood(saved, plan))
        load_optimizer_tensors(
            optimizer,
            bare.model.named_parameters(),
            checkpoint / "optimizer.safetensors",
            updates=totals.step - totals.bad_steps,
            ranks=ranks,
        )
        progress.notice(f"going on after step {totals.step:,}, from {checkpoint}")
        was, now = saved.trainer["max_steps"], config.train.max_steps
        if was is not None and now is not None and was != now:
            old = learning_rate(replace(config.train, max_steps=was), totals.step, totals.step / was)
            new = learning_rate(config.train, totals.step, totals.step / now)
            progress.notice(f"--max-steps was {was:,}, is {now:,}: the learning rate goes on with {new:.2e}, not {old:.2e}")
    if ranks.is_first:
        for name in RECORDS:
            trim_after(out.path / name, totals.step if saved is not None else None)
        write_options(config, start.parent, out.path)
    return Setup(
        config, accelerator, ranks, out, progress, stop, loaded, bare, model, optimizer, pinned, plan, engine, evaluation_set,
        cursors, totals, start.parent,
    )  # fmt: skip


def _where_it_stood(saved: Saved, plan: StreamPlan) -> tuple[list[LaneCursors], Totals]:
    """The cursors and the totals of a checkpoint. Raises: CheckpointError for what the run can never have been at."""
    cursors = cursors_from(saved.stream, plan.lanes.lanes)
    totals = Totals.from_json(saved.trainer["totals"], len(plan.lanes.sources), "trainer.json: totals")
    refuse_impossible(cursors, plan.lanes, totals.step)
    return cursors, totals


def _asked(config: Config, encoder: Encoder, ranks: Ranks, saved: Saved | None, progress: Progress) -> Engine:
    """What makes the ids, when it makes the same on all ranks as when the run began. Raises: CheckpointError, ModelError."""
    name = config.model.tokenizer or config.model.path
    assert name is not None, "validated: a model from scratch has a tokenizer"
    engine = asked(encoder, name)
    refuse_unlike(ranks.gather(engine))
    if saved is None:
        return engine
    if saved.trainer["tokenizer"] != encoder.fingerprint:
        raise CheckpointError(
            f"the tokenizer of {name} is not the one the run began with: "
            "put it back, or start a new run with another --output-dir"
        )
    note = note_on_engine(engine, saved.trainer.get("engine"))
    if note is not None:
        progress.notice(note)
    return engine


def _refuse_short_rows(config: Config, encoder: Encoder) -> None:
    """Refuse rows in which, full as they may be, no token gets a label. Raises: ConfigError."""
    length, framing = config.data.sequence_length, len(encoder.prefix) + len(encoder.suffix)
    rates = (config.objective.mask_rate, config.objective.final_mask_rate or config.objective.mask_rate)
    needed = framing + (2 if config.objective.name == "clm" else math.ceil(0.51 / min(rates)))
    if length < needed:
        raise ConfigError(
            f"--sequence-length {length} is too short for a label in a row: {framing} positions are special tokens; "
            f"give at least {needed}"
        )


def _verify_given(weights: str | None) -> None:
    """Verify the weights to begin with where they are those of a checkpoint; a model folder has nothing to verify it by."""
    if weights is not None and os.path.lexists(Path(weights) / MANIFEST):
        verify(Path(weights))


def _loaded_by_all(config: Config, accelerator: Accelerator, ranks: Ranks) -> LoadedModel:
    """The first rank refuses for all, one rank of each machine asks the Hub, and the others find what it fetched."""
    loaded: LoadedModel | None = None

    def load() -> None:
        nonlocal loaded
        loaded = _loaded(config)

    ranks.from_first(load)
    if loaded is None and accelerator.is_local_main_process:
        load()
    ranks.wait()
    return loaded or _loaded(config, local_files_only=True)


def _loaded(config: Config, *, local_files_only: bool = False) -> LoadedModel:
    tokenizer = load_tokenizer(config.model, local_files_only=local_files_only)
    return load_model(
        config.model,
        config.objective,
        tokenizer,
        config.data.sequence_length,
        config.train.seed,
        local_files_only=local_files_only,
    )


def _devices(accelerator: Accelerator) -> str:
    name = torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else accelerator.device.type
    return name if accelerator.num_processes == 1 else f"{accelerator.num_processes} x {name}"


def _advice(plan: StreamPlan, ranks: Ranks, workers: int) -> Iterator[str]:
    """What the user may want to start otherwise."""
    lanes = plan.lanes.lanes
    if lanes % ranks.world:
        idle = 1 - lanes / (-(-lanes // ranks.world) * ranks.world)
        yield f"{lanes} lanes do not divide evenly over {ranks.world} ranks: {idle:.0%} of every step is idle"
    for source in plan.lanes.sources:
        if source.whole:
            yield f"source {source.name} is too small to be dealt to {lanes} lanes: each reads all of it, in its own order"
    asked = [source for source in plan.lanes.sources if source.read.text_documents != "line"]
    if asked and not any("text" in (shard.format, shard.builder) for source in asked for shard in source.shards):
        unit = asked[0].read.text_documents
        yield f"--data.text-documents {unit} changes nothing: it is for .txt and .text files, and there are none"
    cost = reading_cost(plan.lanes, ranks.world, workers)
    if cost.amplification > 1.05:
        yield (
            f"shards that cannot be entered in their middle are shared by processes: an epoch reads the corpus "
            f"{cost.amplification:.1f} times, a resume at most {human_bytes(cost.resume_bytes)} of it again; "
            "fewer --lanes or --workers read less, as do more and smaller shards"
        )
    processes, memory = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * max(1, workers), _physical_memory()
    held = memory_bound(plan.lanes, -(-lanes // (ranks.world * max(1, workers))))
    if held * processes > memory / 2:
        yield (
            f"readers may hold {human_bytes(held)} in each of {processes} processes, and this machine has "
            f"{human_bytes(memory)}: fewer --lanes or a smaller --data.window-bytes hold less"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers and processes > cores:
        yield f"{processes} data workers on this machine, which has {cores} cores: fewer --workers may be faster"
    visible, used = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if visible > used:
        yield (
            f"{visible} GPUs are visible, {used} used; for all of them: "
            f"torchrun --nproc-per-node {visible} -m stream_pretrain and the same options"
        )


def _allow_many_open_files() -> None:
    """Every lane has a file or a connection for every source, and the usual limit is 1,024; data workers inherit this one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


MOST_OPEN_FILES = 65_536


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
    evaluated = ranks.from_first(lambda: has_evaluation(out.path / "metrics.jsonl", totals.step))
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
                out.path / "model",
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


def _pinned_corpus(config: Config, saved: Saved | None, world: int) -> PinnedCorpus:
    """The corpus that the run began with, where it lies now, or as it is found now."""
    if saved is None:
        return data.pin(config, world)
    return data.found_again(config, PinnedCorpus.from_json(saved.corpus), world)


def _evaluation_documents(config: Config, plan: StreamPlan, out: Path, progress: Progress) -> list[str]:
    """The texts of the fixed evaluation set: collected once, kept in OUT."""
    kept, origin = out / "evaluation.jsonl", out / "evaluation.json"
    dataset = None if config.eval.dataset is None else without_secrets(config.eval.dataset)
    asked = {"dataset": dataset, "split": config.eval.split, "documents": config.eval.documents}
    if not kept.exists():
        with progress.phase("collecting the evaluation set") as found:
            texts = _collected(config, plan.lanes, found, progress.warning)
            found(f"{len(texts)} documents")
        with writing(origin):
            replace_file(origin, [json.dumps(asked).encode()])
        evaluation.save_documents(kept, texts)
    began = asked
    with suppress(FileNotFoundError):
        began = evaluation.load_origin(origin)
    if began != asked:
        was = ", ".join(
            f"--eval.{name} was {began.get(name)}, is {asked[name]}" for name in asked if began.get(name) != asked[name]
        )
        progress.warning(f"the evaluation set is still the one the run began with ({was}): delete {kept} to have another")
    return evaluation.load_documents(kept)


def _collected(config: Config, plan: LanePlan, report: Callable[[str], None], warn: Callable[[str], None]) -> list[str]:
    """Documents of the split or dataset that was named, else of those held out of each source. Raises SourceError for none."""
    named, split = config.eval.dataset, config.eval.split
    if named is None and split is None:
        return _held_out(config, plan, report, warn)
    if config.data.sources and named is None:
        raise ConfigError("--eval.split names a split of --dataset, but the corpus is a mixture: give --eval.dataset")
    texts = evaluation.collect(
        resolve(config.data, split=split, dataset=named).shards,
        data.read_options(config.data, plan.sources[0].read.window_bytes, share=1),
        documents=config.eval.documents,
        heldout_fraction=None,
        max_read_bytes=config.eval.max_read_bytes,
        skip_bad_shards=config.data.on_bad_shard == "skip",
        report=report,
    )
    if not texts:
        raise SourceError(
            f"no document for the evaluation set in {f'split {split}' if named is None else without_secrets(named)}: "
            "name another, or raise --eval.max-read-bytes"
        )
    return texts


def _held_out(config: Config, plan: LanePlan, report: Callable[[str], None], warn: Callable[[str], None]) -> list[str]:
    """Documents held out of each source, by the largest share of the rows that it ever has."""
    shares = zip(plan.sources, largest_shares(plan.weights), strict=True)
    holding = [(source, share) for source, share in shares if source.heldout_fraction and share]
    if not holding:
        raise ConfigError("--eval-every needs documents: give --data.heldout-fraction, --eval.split or --eval.dataset")
    total = sum(share for _, share in holding)
    found = {
        source.name: evaluation.collect(
            source.shards,
            source.read,
            documents=max(1, round(config.eval.documents * share / total)),
            heldout_fraction=source.heldout_fraction,
            max_read_bytes=int(config.eval.max_read_bytes * share / total),
            skip_bad_shards=source.skip_bad_shards,
            report=report,
        )
        for source, share in holding
    }
    if not any(found.values()):
        raise SourceError(
            "no document for the evaluation set: raise --data.heldout-fraction or --eval.max-read-bytes, "
            "or name an --eval.dataset"
        )
    for name, texts in found.items():
        if not texts:
            warn(f"source {name} gives the evaluation set no document: raise its heldout_fraction or --eval.max-read-bytes")
    return [text for texts in found.values() for text in texts]


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
    own = [setup.cursors[lane] for lane in lanes_of(setup.pinned.lanes, setup.ranks.index, setup.ranks.world)]
    sources = enumerate(setup.plan.lanes.sources)
    left = [source.name for number, source in sources if not all(source.ended(lane[number]) for lane in own)]
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
        append(setup.out.path / "quarantine.jsonl", records)


def _name_bad_step(setup: Setup, result: StepResult) -> None:
    """Record the documents of a step that changed nothing, of all ranks."""
    setup.progress.warning(f"step {result.step}: loss or gradient not finite, no update")
    shards = setup.pinned.shards
    gathered = setup.ranks.gather(result.rows_seen.origins.tolist())
    seen = sorted({(epoch, shards[shard].name, offset) for origins in gathered for epoch, shard, offset in origins})
    if setup.ranks.is_first:
        documents = [{"epoch": epoch, "shard": shard, "offset": offset} for epoch, shard, offset in seen]
        append(setup.out.path / "bad_steps.jsonl", [{"step": result.step, "documents": documents}])


def begin_save(setup: Setup, writer: BackgroundWriter) -> None:
    """Begin to write a checkpoint of this moment. All lanes' cursors come together; the first rank writes."""
    own = {lane: setup.cursors[lane] for lane in lanes_of(setup.pinned.lanes, setup.ranks.index, setup.ranks.world)}
    gathered = {lane: cursor for cursors in setup.ranks.gather(own) for lane, cursor in cursors.items()}
    if setup.ranks.is_first:
        writer.wait()
        writer.submit(_snapshot(setup, [gathered[lane] for lane in range(setup.pinned.lanes)], writer))


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
        "defaults": defaults(setup.config),
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
    )
