"""The start of a run that is already finished: adds results that are missing, and trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stream_pretrain.config import Config, fixed_options, flatten, shown_options
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus
from stream_pretrain.data.lanes.pinning import refuse_mismatch, relocate
from stream_pretrain.training.files.manifest import json_of
from stream_pretrain.training.files.out_files import METRICS, MODEL
from stream_pretrain.training.files.records import has_evaluation
from stream_pretrain.training.files.run_directory import RunDirectory
from stream_pretrain.training.ranks.signals import StopRequest
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.report.tracking import Tracker
from stream_pretrain.training.start.resume import find_start
from stream_pretrain.training.state.checkpoint import MODEL_FILES, copy_model
from stream_pretrain.training.state.trainer_state import read_fixed_options
from stream_pretrain.units import first_of


def complete_finished(
    config: Config, command: Sequence[str], progress: Progress, stop: StopRequest, out: RunDirectory
) -> int | None:
    """Complete a finished run: `model/`, and what Weights & Biases lacks; returns its last step.

    None where a step or an evaluation is still to be done, which needs the model and the corpus. Called by the owner of OUT.
    Raises: CheckpointError, also for a changed fixed option; ConfigError; SourceError; Interrupted.
    """
    with stop.interruptible():
        step = out.finished_at(config.train)
        if step is None or lacks_evaluation(config, out, step):
            return None
        start = find_start(config, out, progress.warning, command)
        if start.checkpoint is None or start.step != step:  # the last checkpoint is damaged
            return None
        config = start.applied(config)
        refuse_other_corpus(config, start.checkpoint)
        model = out.path / MODEL
        if not model.exists():
            copy_model(start.checkpoint, model)
        elif lacking := [name for name in MODEL_FILES if not (model / name).exists()]:
            progress.warning(f"{model} lacks {first_of(lacking)}: delete it, and the same command writes it again")
        shown = shown_options(flatten(config))
        tracker = Tracker.open(config.run, out.path, config=shown, resumed_step=step, report=progress.notice, only_missed=True)
    tracker.finish("finished")
    return step


def lacks_evaluation(config: Config, out: RunDirectory, step: int) -> bool:
    """Whether a run that is finished at a step still has to evaluate there."""
    every, max_steps = config.eval.every, config.train.max_steps
    if not every or has_evaluation(out.path / METRICS, step):
        return False
    return max_steps is None or step <= max_steps or step % every == 0  # the last step of the run, or one of the interval


def refuse_other_corpus(config: Config, checkpoint: Path) -> None:
    """Refuse what an unfinished run refuses; shards are listed only where --dataset names another place."""
    pinned = PinnedCorpus.from_json(json_of(checkpoint / "corpus.json"))
    was, now = read_fixed_options(checkpoint), shown_options(fixed_options(config))
    if all(was.get(name) == now[name] for name in ("data.dataset", "data.sources")):
        refuse_mismatch(config, pinned)
    else:
        relocate(config, pinned, world=1)
