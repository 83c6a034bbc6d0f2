"""Writes and prunes checkpoints beside the training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from stream_pretrain.errors import StreamPretrainError, TrainingError
from stream_pretrain.model.loading import Export
from stream_pretrain.training.files.out_files import BEST, CHECKPOINTS, CURSORS
from stream_pretrain.training.files.records import sync_records
from stream_pretrain.training.state.checkpoint import Snapshot, newest, prune, prune_best, write, write_again
from stream_pretrain.training.state.model_state import HostCopies, all_finite


class BackgroundWriter:
    """Writes and prunes checkpoints on a background thread. A context manager.

    The next call, in the training thread, raises an error of the thread. Snapshots are copied into memory that it owns.
    """

    def __init__(
        self,
        out: Path,
        saved: Callable[[Path, int], None],
        report: Callable[[str], None],
        *,
        keep_last: int,
        keep_every: int,
    ) -> None:
        """saved: called in the thread with each checkpoint and its step; report: with new problems of pruning."""
        self._out, self._saved, self._report = out, saved, report
        self._keep_last, self._keep_every = keep_last, keep_every
        self._reported = set[str]()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._weights, self.optimizer = HostCopies(), HostCopies()

    def copied(self, export: Export) -> Export:
        """The export with its weights in memory of this writer, which the next copy overwrites."""
        return replace(export, weights=self._weights.of(export.weights))

    def submit(self, snapshot: Callable[[], Snapshot]) -> None:
        """Wait for the previous write, take a snapshot, which reuses its memory, and start writing it.

        Raises: CheckpointError where the previous write failed, TrainingError where its weights were not finite.
        """
        self.wait()
        self._pending = self._thread.submit(self._save, snapshot())

    def prune(self, newest: int) -> None:
        """Start pruning up to a step, after the previous write: a killed process may have left checkpoints to prune."""
        self.wait()
        self._pending = self._thread.submit(self._prune, newest)

    def check(self) -> None:
        """Raise the error of a write that has ended; does not wait for one in progress."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last submitted snapshot is on the disk. Raises: as `submit`."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def settle(self) -> None:
        """Like `wait`, but raises nothing: for another thread, while the training thread hangs."""
        if (pending := self._pending) is not None:
            futures.wait([pending])

    def close(self) -> None:
        """Wait, then end the thread. Raises: as `submit`."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _save(self, snapshot: Snapshot) -> None:
        trained = (tensor for name, tensor in snapshot.export.weights.items() if name not in snapshot.untrained)
        if not all_finite(trained):  # an update can overflow after a finite loss; no run could resume from it
            raise TrainingError(
                f"the weights are not finite after step {snapshot.step}: lower --train.learning-rate; "
                "the same command resumes from the last checkpoint"
            )
        sync_records(self._out)  # a resume expects the lines of all steps before the checkpoint
        for folder in snapshot.folders:
            checkpoint = (write_again if folder == BEST else write)(snapshot, self._out / folder)
            self._saved(checkpoint, snapshot.step)
        self._prune(snapshot.step)

    def _prune(self, step: int) -> None:
        prune(
            self._out / CHECKPOINTS,
            newest=step,
            keep_last=self._keep_last,
            keep_every=self._keep_every,
            cursors=self._out / CURSORS,
            report=self._report_once,
        )
        prune_best(self._out / BEST, saved=newest(self._out / CHECKPOINTS)[0], report=self._report_once)

    def _report_once(self, problem: str) -> None:
        if problem not in self._reported:
            self._reported.add(problem)
            self._report(problem)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            self.close()
        except StreamPretrainError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # the first error is the one to show
