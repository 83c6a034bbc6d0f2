"""When a run saves, and what a checkpoint holds: all lanes, from all ranks, and the state of the first rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from stream_pretrain.config import fixed_options, shown_options
from stream_pretrain.data.lanes.stream import lanes_of
from stream_pretrain.data.lanes.stream_state import LaneCursors, stream_state
from stream_pretrain.training.checkpoint import BackgroundWriter, Snapshot, write_model
from stream_pretrain.training.out_files import MODEL
from stream_pretrain.training.start import Setup
from stream_pretrain.training.versions import program


class Saves:
    """The checkpoints of a run. Every method is called by all ranks; the first one writes."""

    def __init__(self, setup: Setup, writer: BackgroundWriter) -> None:
        self._setup, self._writer = setup, writer
        self.last_step = setup.totals.step

    def is_due(self, *, ends: bool) -> bool:
        """Whether the last step is to be saved, `ends` where the run ends behind it; never while steps are bad.

        Weights that are not finite would be in every checkpoint that is kept.
        """
        step, every = self._setup.totals.step, self._setup.config.run.save_every
        return self._setup.totals.bad_steps == 0 and self.last_step < step and (ends or step % every == 0)

    def begin(self) -> None:
        """Begin to save the last step. Raises: what the write before it has failed by."""
        begin_save(self._setup, self._writer)
        self.last_step = self._setup.totals.step

    def end(self) -> None:
        """Save the last step where it is not saved, also where it was bad, and wait for that. Raises: as `begin`."""
        if self.last_step < self._setup.totals.step:
            self.begin()
        self._writer.wait()

    def export(self) -> None:
        """Write the final model. Raises: CheckpointError."""
        if self._setup.ranks.is_first:
            weights, settings = self._setup.parallel.export()
            loaded = self._setup.loaded
            folder, copies = self._setup.out.path / MODEL, self._writer.weights.of(weights)
            write_model(copies, settings, loaded.tokenizer, folder, loaded.passthrough.files)


def begin_save(setup: Setup, writer: BackgroundWriter) -> None:
    """Begin to write a checkpoint of this moment. Called by all ranks; the first one writes."""
    cursors = all_cursors(setup)
    if setup.ranks.is_first:
        writer.submit(lambda: _snapshot(setup, cursors, writer))


def all_cursors(setup: Setup) -> list[LaneCursors]:
    """The cursors of all lanes, each from the rank that trains on it. Called by all ranks."""
    own = {lane: setup.cursors[lane] for lane in lanes_of(setup.pinned.lanes, setup.ranks.index, setup.ranks.world)}
    gathered = {lane: cursors for of_rank in setup.ranks.gather(own) for lane, cursors in of_rank.items()}
    return [gathered[lane] for lane in range(setup.pinned.lanes)]


def _snapshot(setup: Setup, cursors: Sequence[LaneCursors], writer: BackgroundWriter) -> Snapshot:
    """What a checkpoint of this moment holds, copied into the memory of the writer."""
    weights, settings = setup.parallel.export()
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
        "chosen": asdict(setup.chosen),
        **program(),
    }
    return Snapshot(
        step=setup.totals.step,
        model=writer.weights.of(weights),
        model_config=settings,
        tokenizer=setup.loaded.tokenizer,
        optimizer=writer.optimizer.of(setup.parallel.optimizer_tensors()),
        stream=stream_state(cursors),
        corpus=setup.pinned.encoded,
        trainer=trainer,
        passthrough=setup.loaded.passthrough.files,
        untrained=setup.parallel.untrained(weights),
    )
