"""The training loop: rows in, optimizer steps out."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.row_layout import part_of
from stream_pretrain.data.lanes.run_progress import counts_of, progress
from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.rows.batches import micro_batches
from stream_pretrain.data.rows.train_rows import TrainRows
from stream_pretrain.errors import TrainingError
from stream_pretrain.training.ranks.signals import Interrupted
from stream_pretrain.training.ranks.watchdog import Watchdog
from stream_pretrain.training.start.optimizer import learning_rate
from stream_pretrain.training.start.setup import Setup
from stream_pretrain.training.state.passed_steps import is_passed
from stream_pretrain.training.state.totals import OF_WINDOWS, refuse_too_many_bad_steps, refuse_too_many_skipped
from stream_pretrain.training.steps.rows_of_rank import next_rows


@dataclass(frozen=True)
class StepResult:
    """One optimizer step; sums are over all ranks."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Sum over the labels."""
    labels: int
    correct: int
    """Labels that are the most likely token."""
    source_loss: list[float]
    """Sum over the labels of each source."""
    source_labels: list[int]
    learning_rate: float
    grad_norm: float
    updated: bool
    """False where the loss or gradient is not finite: the rows are consumed, the weights stay."""
    tokens: int
    rows: int
    segments: int
    seconds: float
    seconds_waiting: float
    """Of `seconds`, for data."""
    data_seconds: list[float]
    """Time of the data workers for the rows, by `source_lane.CAUSES`."""
    progress: float
    """Share of the run that is done."""
    stop: bool
    """Whether any rank was asked to stop."""
    rows_seen: StepRows
    """What this rank read for the step."""
    rows_trained: TrainRows
    """What it trained on."""


@dataclass(frozen=True)
class PassedOver:
    """A step whose rows were read and not trained on."""

    step: int
    stop: bool
    """Whether any rank was asked to stop."""
    rows_seen: StepRows
    """What this rank read for the step."""


@dataclass(frozen=True)
class EndOfCorpus:
    """All lanes have read their epochs: no step, but documents may have been skipped before the end."""

    rows_seen: StepRows


def training_steps(setup: Setup, stream: StepStream, watchdog: Watchdog) -> Iterator[StepResult | PassedOver | EndOfCorpus]:
    """Train, yielding each step, until `max_steps`, the end of the epochs, or a request to stop.

    Before it yields a step, it updates the totals of `setup` and the cursors of this rank's lanes: they cover exactly what was
    trained on.
    Raises: Interrupted where a step is abandoned for a request to stop; TrainingError after too many steps in a row without an
    update; ContentError when too many documents are bad.
    """
    loop, totals, train = _Loop(setup, stream, watchdog), setup.totals, setup.config.train
    while train.max_steps is None or totals.step < train.max_steps:
        result = loop.step()
        yield result
        if isinstance(result, StepResult):
            refuse_too_many_bad_steps(totals, train.max_bad_steps)
        refuse_too_many_skipped(totals, setup.config.data.max_bad_fraction)
        if isinstance(result, EndOfCorpus):
            return


@dataclass(frozen=True)
class _Gradients:
    """What the backward passes of a step leave on the device."""

    losses: Tensor
    """float64 [2 + sources] sums over the labels of this rank: the loss, correct labels, the loss by source."""
    norm: Tensor
    """float32, of the gradients before clipping."""
    is_complete: bool = True
    """False where micro-batches were left out for a request to stop."""


class _Loop:
    """The steps of this rank. Every method is called by all ranks."""

    def __init__(self, setup: Setup, stream: StepStream, watchdog: Watchdog) -> None:
        self._setup, self._stream, self._watchdog = setup, stream, watchdog
        self._device, self._sources, layout = setup.parallel.device, len(setup.plan.sources), setup.plan.layout
        self._lanes = part_of(range(layout.lanes), setup.ranks.index, setup.ranks.world)
        self._size, self._count = layout.micro_batches(setup.config.train.micro_batch_size, setup.ranks.world)
        named = setup.parallel.model.named_parameters()
        self._parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        self._all_have_gradients = False  # not known before the first step

    def step(self) -> StepResult | PassedOver | EndOfCorpus:
        """The next step: read its rows, compute gradients, update. Raises: Interrupted, TrainingError."""
        setup, totals = self._setup, self._setup.totals
        started = time.perf_counter()
        following = next_rows(self._stream, setup.ranks, setup.stop, self._watchdog)
        waited = time.perf_counter() - started
        read, rows, is_a_step = following.read, following.trained, not following.have_ended
        interrupted = following.interrupted or self._comes_too_soon(is_a_step=is_a_step)

        known = self._known_before(rows)
        is_passed_over = is_passed(setup.start.passed, totals.step + 1)
        gradients = self._gradients(rows, known[0]) if is_a_step and not is_passed_over else self._no_gradients()
        sums = self._summed(read, rows, known, gradients, interrupted=interrupted)
        if any(sums["abandons"]):
            raise Interrupted
        if not is_a_step:
            totals.count_windows(sums["windows"])
            read.advance(setup.cursors)
            return EndOfCorpus(read)

        [loss], [norm] = sums["loss"], sums["grad_norm"]
        updated = math.isfinite(loss) and math.isfinite(norm)
        rate = self._learning_rate(sums["lanes"])
        if updated and not is_passed_over:
            for group in setup.parallel.optimizer.param_groups:
                group["lr"] = rate
            setup.parallel.optimizer.step()
        setup.parallel.optimizer.zero_grad()

        read.advance(setup.cursors)
        totals.step += 1
        totals.count_windows(sums["windows"])
        totals.count_documents(sums["source_documents"])
        totals.segments += int(sums["segments"][0])
        stop = any(sums["stops"])
        if is_passed_over:
            return PassedOver(totals.step, stop, read)
        totals.count_tokens(sums["source_tokens"])
        totals.bad_steps = 0 if updated else totals.bad_steps + 1
        return StepResult(
            step=totals.step,
            loss=loss,
            labels=int(sums["labels"][0]),
            correct=int(sums["correct"][0]),
            source_loss=sums["source_loss"],
            source_labels=list(map(int, sums["source_labels"])),
            learning_rate=rate,
            grad_norm=norm,
            updated=updated,
            tokens=int(sum(sums["source_tokens"])),
            rows=int(sums["rows"][0]),
            segments=int(sums["segments"][0]),
            seconds=time.perf_counter() - started,
            seconds_waiting=waited,
            data_seconds=sums["data_seconds"],
            progress=self._progress(),
            stop=stop,
            rows_seen=read,
            rows_trained=rows,
        )

    def _comes_too_soon(self, *, is_a_step: bool) -> bool:
        """Whether to abandon a step of one micro-batch for a request to stop: once it has begun, ranks synchronise in it.

        is_a_step: False after the last one. Raises: Interrupted for a single rank.
        """
        if is_a_step and self._count > 1:
            return False
        try:
            self._setup.stop.complete(self._setup.totals.step + is_a_step)
        except Interrupted:
            if self._setup.ranks.world == 1:
                raise
            return True
        return False

    def _known_before(self, rows: TrainRows) -> Tensor:
        """float64 [1 + 3 x sources x lanes] on the device: labels of the step, and the `counts_of` all lanes before it."""
        of_lanes = counts_of(self._setup.plan, {lane: self._setup.cursors[lane] for lane in self._lanes})
        known = self._on_device([float((rows.labels >= 0).sum()), *of_lanes.ravel().tolist()])
        with self._watchdog.stage("waiting for the other ranks"):
            self._setup.ranks.sum(known)
        return known

    def _gradients(self, rows: TrainRows, labels: Tensor) -> _Gradients:
        """Run the micro-batches of this rank. labels: their number over all ranks. Raises: TrainingError."""
        setup, parallel = self._setup, self._setup.parallel
        torch.manual_seed(_seed(setup.config.train.seed, setup.totals.step, setup.ranks.index))  # dropout: nothing to save
        scale, losses, left_out = parallel.loss_scale(labels), self._no_gradients().losses, False
        batches = micro_batches(rows, self._size, self._count, setup.plan.encoder.pad, parallel.device)
        for number, batch in enumerate(batches, start=1):
            is_last = number == self._count
            # A step may take longer than a launcher waits after a signal.
            if not is_last and setup.stop.leaves(setup.totals.step + 1, self._count - number):
                left_out = True
                continue
            with parallel.accumulating(is_last=is_last):
                loss, correct, of_source = parallel.model(**vars(batch))
                with self._watchdog.stage("adding up gradients with the other ranks") if is_last else nullcontext():
                    parallel.accelerator.backward(loss * scale)
            losses += torch.cat([torch.stack([loss.detach().double(), correct.double()]), of_source.double()])
        if not self._all_have_gradients:
            _refuse_parameters_without_gradient(self._parameters)
            self._all_have_gradients = True
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), setup.config.train.max_grad_norm)
        return _Gradients(losses, norm, is_complete=not left_out)

    def _no_gradients(self) -> _Gradients:
        losses = torch.zeros(2 + self._sources, dtype=torch.float64, device=self._device)
        return _Gradients(losses, torch.zeros((), device=self._device))

    def _summed(
        self, read: StepRows, rows: TrainRows, known: Tensor, gradients: _Gradients, *, interrupted: bool
    ) -> dict[str, list[float]]:
        """What a step adds up to over all ranks, by name; `windows` is [sources x OF_WINDOWS], `source_…` [sources]."""
        counts = _counts(read, rows, self._sources)
        counts["stops"] = [int(self._setup.stop.requested)]
        counts["abandons"] = [int(interrupted or not gradients.is_complete)]
        sums = torch.cat([gradients.losses, self._on_device(list(itertools.chain(*counts.values())))])
        if not interrupted:  # by a signal, which may have taken an item of a worker with it
            self._stream.prepare()  # while the device computes
        with self._watchdog.stage("waiting for the device and the other ranks"):
            self._setup.ranks.sum(sums)
            # The one place where the host waits for the device.
            values = iter(torch.cat([sums, known, gradients.norm.double().reshape(1)]).tolist())
        sizes = {"loss": 1, "correct": 1, "source_loss": self._sources, **{name: len(of) for name, of in counts.items()}}
        sizes |= {"labels": 1, "lanes": len(known) - 1, "grad_norm": 1}
        return {name: list(itertools.islice(values, size)) for name, size in sizes.items()}

    def _learning_rate(self, of_lanes: Sequence[float]) -> float:
        """That of the next step. of_lanes: `counts_of` all lanes, flat."""
        setup, totals = self._setup, self._setup.totals
        counts = np.array(of_lanes).reshape(counts_of(setup.plan, {}).shape)
        # What is predicted changes with what is read: the schedule never goes back.
        totals.progress = max(totals.progress, progress(setup.plan, counts, totals.step))
        return learning_rate(setup.config.train, totals.step, self._progress())

    def _progress(self) -> float:
        """Share of the run that is done: of its steps or of the rows of its epochs, whichever ends it sooner."""
        totals, max_steps = self._setup.totals, self._setup.config.train.max_steps
        return max(totals.step / max_steps if max_steps is not None else 0.0, totals.progress)

    def _on_device(self, values: Sequence[float]) -> Tensor:
        tensor = torch.tensor(values, dtype=torch.float64)
        if self._device.type == "cuda":  # from memory that is not pinned, a copy would wait for all queued work of the GPU
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


def _counts(read: StepRows, rows: TrainRows, sources: int) -> dict[str, list[float]]:
    """What this rank adds to the sums of a step."""
    source_of_segments, labels = rows.source[rows.segment_start // rows.length], (rows.labels >= 0).sum(axis=1)
    return {
        "rows": [len(rows)],
        "segments": [np.count_nonzero(rows.segment_tokens)],
        "windows": read.cursors[:, :, _OF_WINDOWS].sum(axis=0).ravel().tolist(),
        "data_seconds": read.seconds.tolist(),
        "source_documents": read.cursors[:, :, _DOCUMENTS].sum(axis=0).tolist(),
        "source_labels": np.bincount(rows.source, labels, sources).tolist(),
        "source_tokens": np.bincount(source_of_segments, rows.segment_tokens, sources).tolist(),
    }


_OF_WINDOWS = list(map(Cursor._fields.index, OF_WINDOWS))
_DOCUMENTS = Cursor._fields.index("documents")


def _refuse_parameters_without_gradient(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    unused = [name for name, parameter in parameters.items() if parameter.grad is None]
    if unused:
        raise TrainingError(
            f"the loss does not depend on {len(unused)} parameters, for example {unused[0]}: choose another model"
        )


def _seed(*key: int) -> int:
    return int.from_bytes(hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8).digest(), "big")
