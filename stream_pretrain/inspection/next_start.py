"""What the next start of a run would do, as its folder stands. Nothing there is changed, and its lock is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream_pretrain.config import Config, run_directory
from stream_pretrain.training.files.lock import refuse_in_use
from stream_pretrain.training.files.out_files import CHECKPOINTS
from stream_pretrain.training.files.run_directory import RunDirectory, refuse_no_files
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.start.resume import Start, find_start
from stream_pretrain.training.state.checkpoint import Saved, read
from stream_pretrain.training.steps.finished_run import lacks_evaluation, refuse_other_corpus


@dataclass(frozen=True)
class NextStart:
    """How a run would start or resume."""

    out: Path
    config: Config
    """With the defaults and the values of `auto` that the run keeps."""
    start: Start
    saved: Saved | None
    """The checkpoint that it would go on from."""
    is_finished: bool
    """Whether nothing is left to do."""

    @property
    def in_words(self) -> str:
        """For people."""
        step, last, found = self.start.step, self.config.train.max_steps, self.start.checkpoint
        if self.is_finished:
            return f"{self.out} is finished at step {step:,}: nothing is left to train"
        if found is None:
            return f"begins a new run in {self.out}"
        if found.parent != self.out / CHECKPOINTS:
            return f"begins a new run in {self.out} after step {step:,}, from {found}"
        if last is not None and step >= last:
            return f"trains no step: {found} is the last one, --max-steps is {last:,}"
        return f"resumes after step {step:,}{'' if last is None else f' of {last:,}'}, from {found}"

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "description": self.in_words,
            "output_dir": str(self.out),
            "step": self.start.step,
            "checkpoint": None if self.start.checkpoint is None else str(self.start.checkpoint),
            "is_finished": self.is_finished,
        }


def next_start(config: Config, command: Sequence[str], progress: Progress) -> NextStart:
    """Follow the options of a run as far as its folder and its checkpoints decide.

    command: as it begins the run. Raises: what the run is refused with.
    """
    path = run_directory(config)
    refuse_no_files(path)
    refuse_in_use(path)
    out = RunDirectory(path, command, progress.warning)
    finished = out.finished_at(config.train)
    start = find_start(config, out, progress.warning, command)
    applied = start.applied(config)
    is_finished = finished == start.step and start.checkpoint is not None and not lacks_evaluation(config, out, start.step)
    if is_finished:
        assert start.checkpoint is not None
        refuse_other_corpus(applied, start.checkpoint)
    saved = None if start.checkpoint is None else read(start.checkpoint)
    return NextStart(path, applied, start, saved, is_finished)
