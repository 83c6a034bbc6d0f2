"""`stream-pretrain [train]`: start or resume a run."""

from __future__ import annotations

import atexit
import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Literal

import torch

from stream_pretrain import exit_codes
from stream_pretrain.config import Config, run_directory, secrets_of
from stream_pretrain.errors import (
    CheckpointError,
    LostRankError,
    StreamPretrainError,
    TrainingError,
)
from stream_pretrain.redaction import Secrets
from stream_pretrain.terminal import say
from stream_pretrain.training.files.out_files import BEST, CHECKPOINTS, MODEL
from stream_pretrain.training.ranks.launcher import tell_launcher
from stream_pretrain.training.ranks.peers import (
    ACKNOWLEDGE_SECONDS,
    NO_HEARTBEAT,
    POLL_SECONDS,
    SILENT_POLLS,
    STOPPED,
    Ending,
    Peers,
    between_ranks,
)
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import Interrupted, StopRequest
from stream_pretrain.training.ranks.watchdog import Watchdog
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.report.stop_messages import stopped, stopping
from stream_pretrain.training.start.advice import allow_many_open_files
from stream_pretrain.training.start.engine import is_of_engine, keep_tokenizers
from stream_pretrain.training.start.run_directory import RunDirectory
from stream_pretrain.training.start.setup import Setup, prepare
from stream_pretrain.training.state.checkpoint import BackgroundWriter, checkpoint_name, newest
from stream_pretrain.training.state.parallelism import accelerate_for_one_run, accelerator_for, collective_timeout
from stream_pretrain.training.steps.finished_run import complete_finished
from stream_pretrain.training.steps.run import train

GROUPS = ("data", "model", "objective", "train", "eval", "run")
NEEDED = ("data.dataset", "model.path", "train.max_steps")
EXAMPLE = """
stream-pretrain --dataset 'data/*.jsonl.zst' --model bert-base-uncased \\
    --max-steps 10000 --output-dir runs/first
"""


@accelerate_for_one_run()
def run(config: Config, command: Sequence[str], stop: StopRequest) -> int:
    """Train; returns the exit code of this process."""
    allow_many_open_files()
    accelerator = accelerator_for(config)
    ranks = Ranks.of(accelerator.process_index, accelerator.num_processes, collective_timeout(config))
    secrets = secrets_of(config, os.environ)
    progress = Progress(sys.stderr if ranks.is_first else None)
    with ExitStack() as stack:
        stack.callback(progress.close)
        out = RunDirectory(run_directory(config), command, progress.warning)  # records nothing on other ranks

        setup: Setup | None = None
        began = 0  # the step that this start resumes after

        def record_saved(step: int) -> None:
            out.record_saved(step)  # by the owner, which `out` is later on
            progress.notice(f"step {step:,}: saved {CHECKPOINTS}/{checkpoint_name(step)}")

        def tell_best(step: int) -> None:
            progress.notice(f"step {step:,}: saved {BEST}/{checkpoint_name(step)}")

        writer = BackgroundWriter(
            out.path,
            record_saved,
            progress.warning,
            keep_last=config.run.keep_last,
            keep_every=config.run.keep_every,
            saved_best=tell_best,
        )

        def record_end(ending: Ending) -> None:
            if out.has_ended:
                return  # all is saved: a rank that dies now changes nothing
            if ranks.is_first and is_of_engine(ending.why) and not out.is_lost:
                keep_tokenizers(out.path, ending.why)
            if ending == STOPPED:
                out.record("preempted", exit_code=exit_codes.of_stop(stop.signal))
            elif NO_HEARTBEAT in ending.why:
                out.record("running", error=ending.why)  # as if the first rank were lost: a launcher starts the run again
            elif setup is None:
                out.record_refusal(ending.why, ending.exit_code)
            else:
                out.record("failed", error=ending.why, exit_code=ending.exit_code)

        def give_up(ending: Ending, first: bool) -> None:
            if first:
                say(f"error: {ending.why}")
            if ending != STOPPED:
                tell_launcher(ending.why, ending.exit_code)
            record_end(ending)
            writer.settle()

        def last_line(name: str) -> str:
            saved, checkpoint = newest(out.path / CHECKPOINTS)
            saved = max(saved, began)
            return stopped(name, saved if setup is None else setup.totals.step, saved, checkpoint, command)

        def answer(name: str) -> None:
            if out.has_ended and setup is not None:
                progress.notice("all is saved; Ctrl-C again leaves at once")
            elif not out.is_lost:  # reported as the error of the run
                progress.notice(stopping(name, stop.last_step, alone=ranks.world == 1))

        def quit_at_once(name: str) -> int:
            if out.has_finished:
                return exit_codes.FINISHED
            if ranks.is_first and not out.has_ended:
                saved, _ = newest(out.path / CHECKPOINTS)
                out.record("preempted", step=max(saved, began), exit_code=exit_codes.of_stop(name))
                progress.close()  # the last line is the last one
                progress.notice(last_line(name))
            peers.announce(STOPPED)
            return exit_codes.of_stopped_process(name)

        warn = progress.warning if ranks.is_first else lambda text: say(f"warning: {text}")
        peers = stack.enter_context(between_ranks(ranks, stop, give_up, warn))
        stop.answer(answer, quit_at_once)
        watchdog = stack.enter_context(Watchdog(ranks, warn))

        def own() -> None:
            nonlocal out
            out = stack.enter_context(RunDirectory.own(out.path, command, progress.warning))

        state: Literal["preempted", "finished"] = "finished"
        try:
            with watchdog.stage("starting"):
                with stop.interruptible():
                    ranks.from_first(own)
                already = ranks.from_first(lambda: complete_finished(config, command, progress, stop, out))
                if already is None:
                    setup = prepare(config, command, accelerator, ranks, progress, stop, out)
            if setup is not None:
                began = setup.totals.step
                state = train(setup, writer, watchdog, stack)
        except SystemExit:  # the first rank reports why
            announced = peers.wait_for_ending(patience=ACKNOWLEDGE_SECONDS)
            if announced is not None and announced != STOPPED:
                tell_launcher(announced.why, announced.exit_code)
            raise
        except BaseException as error:
            explained = _explained(error, ranks, peers, out)
            own_ending = _ending(explained, ranks, secrets)
            announced = peers.announce(own_ending)
            record_end(announced or own_ending)
            peers.leave()  # cleanup, such as a checkpoint in progress, may take longer than the others wait
            if announced is not None and announced != STOPPED:
                tell_launcher(announced.why, announced.exit_code)
                raise SystemExit(announced.exit_code) from error  # the first rank to end reports why
            if (announced or own_ending) != STOPPED:
                if explained is error:
                    raise
                raise explained from error
            state = "preempted"
        else:
            # A launcher may kill the other ranks when one leaves, and the first one has the most to do.
            with watchdog.stage("waiting for the other ranks"), suppress(RuntimeError):  # one died: all is saved
                ranks.wait()
            peers.leave()
    if state == "preempted":
        stop.wait_for_answer()
        progress.notice(last_line(stop.signal or "a signal to another rank"))
    elif already is not None:
        progress.notice(f"already finished at step {already:,}; the model is in {out.path / MODEL}")
    else:
        progress.notice(f"finished; the model is in {out.path / MODEL}")
    if ranks.world > 1:
        # At exit: here, the last reference would be that of DDP, which then waits for threads that need its lock.
        atexit.register(torch.distributed.destroy_process_group)
    return exit_codes.FINISHED if state == "finished" else exit_codes.of_stopped_process(stop.signal)


def _explained(error: BaseException, ranks: Ranks, peers: Peers, out: RunDirectory) -> BaseException:
    """The error that ended this rank, for the user where possible."""
    try:
        out.raise_if_lost()  # the cause of whatever failed
    except CheckpointError as lost:
        return lost
    no_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if no_memory or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return ranks.named(TrainingError("out of memory: halve --micro-batch-size; the rows and masks of a step stay the same"))
    if isinstance(error, RuntimeError | Interrupted):
        # A failed collective, or a launcher that ends the remaining ranks.
        failed = isinstance(error, RuntimeError)
        cut = failed and peers.span_machines and _NO_CONNECTION.search(str(error))
        gone = peers.dead_rank(patience=(SILENT_POLLS + 2) * POLL_SECONDS if cut else 2.0 if failed else 0.0)
        if gone is not None:
            return LostRankError(gone) if NO_HEARTBEAT in gone else TrainingError(gone)
    return error


_NO_MEMORY = re.compile("out of memory|allocate memory|not enough memory|_ALLOC_FAILED", re.IGNORECASE)
"""Words of torch on CPUs, and of GPU libraries that do not use its allocator."""

_NO_CONNECTION = re.compile("gloo|nccl|connection", re.IGNORECASE)
"""Words of a collective after the death of a rank."""


def _ending(error: BaseException, ranks: Ranks, secrets: Secrets) -> Ending:
    """The ending for the other ranks and run.json."""
    if isinstance(error, Interrupted):
        return STOPPED
    said = secrets.hide(f"{type(error).__name__}: {error}")
    named = ranks.world == 1 or isinstance(error, StreamPretrainError)
    return Ending(said if named else f"rank {ranks.index}: {said}", exit_codes.of_error(error))
