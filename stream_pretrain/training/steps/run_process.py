"""One process of a run: what it records and says when the run is stopped, fails or loses a rank."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from stream_pretrain import exit_codes
from stream_pretrain.config import Config, run_directory
from stream_pretrain.errors import NO_MEMORY, CheckpointError, LostRankError, StreamPretrainError, TrainingError
from stream_pretrain.redaction import Secrets
from stream_pretrain.terminal import say
from stream_pretrain.training.files.out_files import CHECKPOINTS
from stream_pretrain.training.files.run_directory import RunDirectory
from stream_pretrain.training.ranks.launcher import tell_launcher
from stream_pretrain.training.ranks.peers import NO_HEARTBEAT, POLL_SECONDS, SILENT_POLLS, STOPPED, Ending, Peers
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import Interrupted, StopRequest
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.report.stop_messages import again, stopped, stopping
from stream_pretrain.training.start.engine import is_of_engine, keep_tokenizers
from stream_pretrain.training.start.setup import Setup
from stream_pretrain.training.state.background_writer import BackgroundWriter
from stream_pretrain.training.state.checkpoint import newest


class RunProcess:
    """This process of a run. Threads call it too: "peers" and "answer", while the main thread may hang, and "checkpoint"."""

    def __init__(self, config: Config, command: Sequence[str], ranks: Ranks, stop: StopRequest, progress: Progress) -> None:
        self._command, self._ranks, self._stop, self._progress = command, ranks, stop, progress
        self._setup: Setup | None = None
        self._resumed_step = 0
        self.out = RunDirectory(run_directory(config), command, progress.warning)
        """Records nothing until `own_folder`, and on the other ranks."""
        self.writer = BackgroundWriter(
            self.out.path,
            self._record_saved,
            progress.warning,
            keep_last=config.run.keep_last,
            keep_every=config.run.keep_every,
        )

    def own_folder(self, stack: ExitStack) -> None:
        """Own OUT until the end of the stack. Called by the first rank. Raises: CheckpointError."""
        self.out = stack.enter_context(RunDirectory.own(self.out.path, self._command, self._progress.warning))

    def begin(self, setup: Setup) -> None:
        """From here on the run trains."""
        self._setup, self._resumed_step = setup, setup.totals.step

    def record_end(self, ending: Ending) -> None:
        """Record in OUT how the run ends, unless all is saved: a rank that dies then changes nothing."""
        if self.out.has_ended:
            return
        if self._ranks.is_first and is_of_engine(ending.why) and not self.out.is_lost:
            keep_tokenizers(self.out.path, ending.why)
        if ending == STOPPED:
            self.out.record("preempted", exit_code=exit_codes.of_stop(self._stop.signal))
        elif NO_HEARTBEAT in ending.why:
            self.out.record("running", error=ending.why)  # as if the first rank were lost: a launcher starts the run again
        elif self._setup is None:
            self.out.record_refusal(ending.why, ending.exit_code)
        else:
            self.out.record("failed", error=ending.why, exit_code=ending.exit_code)

    def give_up(self, ending: Ending, is_first: bool) -> None:
        """Before this process is ended, since it hangs; is_first: whether this rank announced the ending."""
        if is_first:
            say(f"error: {ending.why}")
        if ending != STOPPED:
            tell_launcher(ending.why, ending.exit_code)
        self.record_end(ending)
        self.writer.settle()

    def last_line(self, name: str) -> str:
        """Of a run that is stopped by the signal of this name: what is saved, and the command that resumes."""
        saved, checkpoint = newest(self.out.path / CHECKPOINTS)
        saved = max(saved, self._resumed_step)
        return stopped(name, saved if self._setup is None else self._setup.totals.step, saved, checkpoint, self._command)

    def answer(self, name: str) -> None:
        """Say at once what a signal does."""
        if self.out.has_ended and self._setup is not None and self._setup.totals.step:
            self._progress.notice(f"all is saved; {again(name)} leaves at once")
        elif not self.out.is_lost:  # reported as the error of the run
            self._progress.notice(stopping(name, self._stop.last_step, alone=self._ranks.world == 1))

    def quit_at_once(self, name: str, peers: Peers) -> int:
        """Before this process is ended by a second signal; returns its exit code."""
        if self.out.has_finished:
            return exit_codes.FINISHED
        if self._ranks.is_first:
            if not self.out.has_ended:
                saved, _ = newest(self.out.path / CHECKPOINTS)
                self.out.record("preempted", step=max(saved, self._resumed_step), exit_code=exit_codes.of_stop(name))
            self._progress.close()  # the last line is the last one
            self._progress.notice(self.last_line(name))
        peers.announce(STOPPED)
        return exit_codes.of_stopped_process(name)

    def explained(self, error: BaseException, peers: Peers) -> BaseException:
        """The error that ended this process, for the user where possible."""
        try:
            self.out.raise_if_lost()  # the cause of whatever failed
        except CheckpointError as lost:
            return lost
        is_runtime_error = isinstance(error, RuntimeError)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or (is_runtime_error and NO_MEMORY.search(str(error))):
            advice = ": halve --micro-batch-size; the rows and masks of a step stay the same"
            if self._setup is None:
                advice = " before the first step: see what else uses this machine and its devices, or give a smaller model"
            return self._ranks.named(TrainingError(f"out of memory{advice}"))
        if is_runtime_error or isinstance(error, Interrupted):  # a failed collective, or a launcher that ends the other ranks
            is_cut = is_runtime_error and peers.span_machines and _NO_CONNECTION.search(str(error))
            patience = (SILENT_POLLS + 2) * POLL_SECONDS if is_cut else 2.0 if is_runtime_error else 0.0
            if (gone := peers.dead_rank(patience)) is not None:
                return LostRankError(gone) if NO_HEARTBEAT in gone else TrainingError(gone)
        return error

    def _record_saved(self, checkpoint: Path, step: int) -> None:
        folder = checkpoint.parent.name
        if folder == CHECKPOINTS:
            self.out.record_saved(step)
        self._progress.notice(f"step {step:,}: saved {folder}/{checkpoint.name}")


"""Words of torch on CPUs, and of GPU libraries that do not use its allocator."""

_NO_CONNECTION = re.compile("gloo|nccl|connection", re.IGNORECASE)
"""Words of a collective after the death of a rank."""


def ending_of(error: BaseException, ranks: Ranks, secrets: Secrets) -> Ending:
    """The ending for the other ranks and run.json."""
    if isinstance(error, Interrupted):
        return STOPPED
    why = secrets.hide(f"{type(error).__name__}: {error}")
    named = ranks.world == 1 or isinstance(error, StreamPretrainError)
    return Ending(why if named else f"rank {ranks.index}: {why}", exit_codes.of_error(error))
