"""OUT/best: the checkpoint of the best evaluation, which is not one that a run resumes from.

Until a checkpoint of the run follows, the best one before it stays too: a run that is killed goes back to it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stream_pretrain.errors import DamagedCheckpointError
from stream_pretrain.training.state.checkpoint import checkpoints_in, delete_leftovers, delete_reported, verify
from stream_pretrain.training.state.trainer_state import read_trainer_state


def best_loss(directory: Path, documents: str, report: Callable[[str], None]) -> float | None:
    """The loss that is to be undercut on these documents; None where there is no intact checkpoint.

    Raises: CheckpointError where one cannot be read now.
    """
    for _, checkpoint in reversed(checkpoints_in(directory)):
        name = f"{directory.name}/{checkpoint.name}"
        try:
            verify(checkpoint)
            best = read_trainer_state(checkpoint).best
        except DamagedCheckpointError as error:
            report(f"{error}; --run.keep-best continues without it")
            continue
        if best is not None and best.documents == documents:
            return best.loss
        report(f"--run.keep-best starts over on another evaluation set: the next evaluation replaces {name}")
        return None
    return None


def forget_after(directory: Path, step: int, report: Callable[[str], None]) -> None:
    """Delete the checkpoints after the step from which the run resumes: it may not reach them again."""
    delete_leftovers(directory, report)
    for of_step, checkpoint in checkpoints_in(directory):
        if of_step > step and delete_reported(checkpoint, report):
            report(f"{directory.name}/{checkpoint.name} is deleted: the run resumes after step {step:,}, before it")
