"""When a run saves, and what a snapshot holds: the cursors of all ranks, the model and optimizer of the first."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from stream_pretrain.config import fixed_options, shown_options
from stream_pretrain.data.lanes.stream_state import LaneCursors, stream_state, with_checksum
from stream_pretrain.training.files.out_files import BEST, CHECKPOINTS, MODEL
from stream_pretrain.training.files.versions import program
from stream_pretrain.training.start.setup import Setup
from stream_pretrain.training.state.background_writer import BackgroundWriter
from stream_pretrain.training.state.checkpoint import Snapshot, write_model
from stream_pretrain.training.state.passed_steps import steps_in_words
from stream_pretrain.training.state.trainer_state import Best, TrainerState
from stream_pretrain.training.steps.rows_of_rank import cursors_of_all_lanes


class Saves:
    """The checkpoints of a run. Every method is called by all ranks; the first one writes."""

    def __init__(self, setup: Setup, writer: BackgroundWriter) -> None:
        self._setup, self._writer = setup, writer
        self.last_step = setup.totals.step

    def is_due(self, *, is_last: bool) -> bool:
        """Whether to save the last step; is_last: of the run.

        Never after a bad step: weights that are not finite could push all good checkpoints out of --run.keep-last.
        """
        step, every = self._setup.totals.step, self._setup.config.run.save_every
        return self._setup.totals.bad_steps == 0 and self.last_step < step and (is_last or step % every == 0)

    def begin(self, best: Best | None) -> None:
        """Start saving the last step, also as that of the best evaluation. Raises: the error of the previous write."""
        begin_save(self._setup, self._writer, (CHECKPOINTS,) if best is None else (BEST, CHECKPOINTS), best)
        self.last_step = self._setup.totals.step

    def begin_best(self, best: Best) -> None:
        """Start saving the last step as that of the best evaluation alone.

        Where the run can resume from this step already, wait for it: such a start does not evaluate this step again.
        Raises: as `begin`.
        """
        begin_save(self._setup, self._writer, (BEST,), best)
        if self.last_step == self._setup.totals.step:
            self._writer.wait()

    def end(self) -> None:
        """Save the last step, even a bad one, unless it is saved already, and wait for that. Raises: as `begin`."""
        if self.last_step < self._setup.totals.step:
            self.begin(None)
        self._writer.wait()

    def export(self) -> None:
        """Write the final model. Raises: CheckpointError."""
        if self._setup.ranks.is_first:
            write_model(self._writer.copied(self._setup.parallel.export()), self._setup.out.path / MODEL)


def begin_save(
    setup: Setup, writer: BackgroundWriter, folders: tuple[str, ...] = (CHECKPOINTS,), best: Best | None = None
) -> None:
    """Start writing a checkpoint to these folders of OUT. Called by all ranks; the first one writes."""
    cursors = cursors_of_all_lanes(setup.cursors, setup.ranks)
    if setup.ranks.is_first:
        writer.submit(lambda: _snapshot(setup, cursors, writer, folders, best))


def _snapshot(
    setup: Setup, cursors: Sequence[LaneCursors], writer: BackgroundWriter, folders: tuple[str, ...], best: Best | None
) -> Snapshot:
    """The current state, copied into the memory of the writer."""
    export = setup.parallel.export()
    trainer = TrainerState(
        step=setup.totals.step,
        totals=copy.deepcopy(setup.totals),  # which the next steps change
        fixed=shown_options(fixed_options(setup.config)),
        max_steps=setup.config.train.max_steps,
        max_epochs=setup.config.train.max_epochs,
        tokenizer=setup.plan.encoder.fingerprint,
        engine=setup.engine,
        parent=setup.start.parent,
        world=setup.ranks.world,
        defaults=dict(setup.defaults),
        chosen=setup.start.chosen,
        skip_steps=steps_in_words(setup.start.passed),
        best=best,
        **program(),
    )
    return Snapshot(
        export=writer.copied(export),
        optimizer=writer.optimizer.of(setup.parallel.optimizer_tensors()),
        stream=with_checksum(stream_state(setup.totals.step, cursors)),
        corpus=setup.pinned.encoded,
        trainer=trainer,
        untrained=setup.parallel.untrained(export.weights),
        folders=folders,
    )
