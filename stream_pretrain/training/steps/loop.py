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

from stream_pretrain.config import Config
from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.row_layout import part_of
from stream_pretrain.data.lanes.run_progress import counts_of, progress
from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_state import LaneCursors
from stream_pretrain.data.rows.batches import micro_batches
from stream_pretrain.data.rows.train_rows import TrainRows
from stream_pretrain.errors import TrainingError
from stream_pretrain.training.ranks.signals import Interrupted
from stream_pretrain.training.ranks.watchdog import Watchdog
from stream_pretrain.training.start.optimizer import learning_rate
from stream_pretrain.training.start.passed_steps import is_passed
from stream_pretrain.training.start.setup import Setup
from stream_pretrain.training.state.totals import OF_WINDOWS, refuse_too_many_skipped
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
    """Train, yielding each optimizer step, until `max_steps`, the end of the epochs, or a request to stop.

    Before it yields a step, it updates the totals of `setup` and the cursors of this rank's lanes: they cover exactly what was
    trained on.
    Raises: TrainingError after too many steps in a row without an update, ContentError when too many documents are bad.
    """
    config, ranks, totals, parallel = setup.config, setup.ranks, setup.totals, setup.parallel
    sources, own_lanes = len(setup.plan.sources), part_of(range(setup.plan.layout.lanes), ranks.index, ranks.world)
    parameters = {name: parameter for name, parameter in parallel.model.named_parameters() if parameter.requires_grad}
    is_checked = False

    while config.train.max_steps is None or totals.step < config.train.max_steps:
        started = time.perf_counter()
        read, rows, interrupted = next_rows(stream, ranks, setup.stop, watchdog)
        waited = time.perf_counter() - started
        interrupted = interrupted or _comes_too_soon(setup)

        of_lanes = counts_of(setup.plan, {lane: setup.cursors[lane] for lane in own_lanes})  # before the step
        labels_and_lanes = _tensor([float((rows.labels >= 0).sum()), *of_lanes.ravel().tolist()], parallel.device)
        with watchdog.stage("waiting for the other ranks"):
            ranks.sum(labels_and_lanes)
        passes_over = is_passed(setup.passed, totals.step + 1)
        if passes_over:
            losses, left_out, grad_norm = _no_losses(setup), False, torch.zeros((), device=parallel.device)
        else:
            losses, left_out = _backward(setup, rows, parallel.loss_scale(labels_and_lanes[0]), watchdog)
            if not is_checked:
                _refuse_parameters_without_gradient(parameters)
                is_checked = True
            grad_norm = torch.nn.utils.clip_grad_norm_(parameters.values(), config.train.max_grad_norm)

        counts = _counts(read, rows, sources)
        counts |= {"stops": [int(setup.stop.requested)], "abandons": [int(interrupted or left_out)]}
        sums = torch.cat([losses, _tensor([*itertools.chain(*counts.values())], parallel.device)])
        with watchdog.stage("waiting for the device and the other ranks"):
            ranks.sum(sums)
            # The one place where the host waits for the device.
            on_host = torch.cat([sums, labels_and_lanes, grad_norm.double().reshape(1)]).tolist()
        sizes = {"loss": 1, "correct": 1, "source_loss": sources, **{name: len(values) for name, values in counts.items()}}
        summed = _by_name(on_host, {**sizes, "labels": 1, "lanes": of_lanes.size, "grad_norm": 1})
        if any(summed["abandons"]):
            raise Interrupted
        if summed["rows"] == [0]:
            totals.count(summed["windows"])
            _keep(setup.cursors, read)
            setup.stop.last_step = totals.step  # there was no other
            yield EndOfCorpus(read)
            refuse_too_many_skipped(totals, config.data.max_bad_fraction)
            return

        [loss], [norm] = summed["loss"], summed["grad_norm"]
        updated = math.isfinite(loss) and math.isfinite(norm)
        of_all_lanes = np.array(summed["lanes"]).reshape(of_lanes.shape)
        # What is predicted changes with what is read: the schedule never goes back.
        totals.progress = max(totals.progress, progress(setup.plan, of_all_lanes, totals.step))
        rate = learning_rate(config.train, totals.step, _progress(config, totals.step, totals.progress))
        if updated and not passes_over:
            for group in parallel.optimizer.param_groups:
                group["lr"] = rate
            parallel.optimizer.step()
        parallel.optimizer.zero_grad()

        _keep(setup.cursors, read)
        [tokens], [row_count], [segments] = (map(int, summed[name]) for name in ("tokens", "rows", "segments"))
        totals.step += 1
        totals.segments += segments
        totals.count(summed["windows"])
        totals.source_documents = list(map(int, summed["source_documents"]))
        totals.documents = sum(totals.source_documents)
        if passes_over:
            yield PassedOver(totals.step, any(summed["stops"]), read)
            refuse_too_many_skipped(totals, config.data.max_bad_fraction)
            continue
        totals.tokens += tokens
        source_tokens = zip(totals.source_tokens or [0] * sources, map(int, summed["source_tokens"]), strict=True)
        totals.source_tokens = [before + new for before, new in source_tokens]
        totals.bad_steps = 0 if updated else totals.bad_steps + 1
        yield StepResult(
            step=totals.step,
            loss=loss,
            labels=int(summed["labels"][0]),
            correct=int(summed["correct"][0]),
            source_loss=summed["source_loss"],
            source_labels=list(map(int, summed["source_labels"])),
            learning_rate=rate,
            grad_norm=norm,
            updated=updated,
            tokens=tokens,
            rows=row_count,
            segments=segments,
            seconds=time.perf_counter() - started,
            seconds_waiting=waited,
            data_seconds=summed["data_seconds"],
            progress=_progress(config, totals.step, totals.progress),
            stop=any(summed["stops"]),
            rows_seen=read,
            rows_trained=rows,
        )
        if totals.bad_steps > config.train.max_bad_steps:
            raise TrainingError(
                f"loss or gradient was not finite in {totals.bad_steps} steps in a row, up to step {totals.step}: "
                "lower --train.learning-rate, or look at the documents of these steps in OUT/bad_steps.jsonl"
            )
        refuse_too_many_skipped(totals, config.data.max_bad_fraction)


def _comes_too_soon(setup: Setup) -> bool:
    """Whether to abandon a step of one micro-batch for a request to stop: once it has begun, ranks synchronise in it.

    Raises: Interrupted for a single rank.
    """
    if _micro_batches(setup)[1] > 1:
        return False
    try:
        setup.stop.complete(setup.totals.step + 1)
    except Interrupted:
        if setup.ranks.world == 1:
            raise
        return True
    return False


def _backward(setup: Setup, rows: TrainRows, scale: Tensor, watchdog: Watchdog) -> tuple[Tensor, bool]:
    """Accumulate the gradients of a step; returns the sums of losses, correct labels and losses by source [2 + sources].

    True: micro-batches were skipped for a request to stop, since a step may take longer than a launcher waits.
    """
    config, plan, parallel = setup.config, setup.plan, setup.parallel
    size, micro_batches_a_step = _micro_batches(setup)
    torch.manual_seed(_seed(config.train.seed, setup.totals.step, setup.ranks.index))  # dropout: nothing to save or restore
    losses = _no_losses(setup)
    left_out = False
    batches = micro_batches(rows, size, micro_batches_a_step, plan.encoder.pad, parallel.device)
    for number, batch in enumerate(batches, start=1):
        is_last = number == micro_batches_a_step
        if not is_last and setup.stop.leaves(setup.totals.step + 1, micro_batches_a_step - number):
            left_out = True
            continue
        with parallel.accumulating(is_last=is_last):
            loss, correct, of_source = parallel.model(**vars(batch))
            with watchdog.stage("adding up gradients with the other ranks") if is_last else nullcontext():
                parallel.accelerator.backward(loss * scale)
        losses += torch.cat([torch.stack([loss.detach().double(), correct.double()]), of_source.double()])
    return losses, left_out


def _no_losses(setup: Setup) -> Tensor:
    return torch.zeros(2 + len(setup.plan.sources), dtype=torch.float64, device=setup.parallel.device)


def _micro_batches(setup: Setup) -> tuple[int, int]:
    """Rows of a micro-batch, and micro-batches per step."""
    layout = setup.plan.layout
    rows_of_rank = math.ceil(layout.global_batch_size / setup.ranks.world)
    size = min(setup.config.train.micro_batch_size, rows_of_rank)
    return size, math.ceil(rows_of_rank / size)


def _counts(read: StepRows, rows: TrainRows, sources: int) -> dict[str, list[float]]:
    """What this rank adds to the sums of a step; `windows` is [sources x OF_WINDOWS], `source_…` [sources]."""
    source_of_segments, labels = rows.source[rows.segment_start // rows.length], (rows.labels >= 0).sum(axis=1)
    return {
        "tokens": [rows.tokens],
        "rows": [len(rows)],
        "segments": [np.count_nonzero(rows.segment_tokens)],
        "windows": read.cursors[:, :, _OF_WINDOWS].sum(axis=0).ravel().tolist(),
        "data_seconds": read.seconds.tolist(),
        "source_documents": read.cursors[:, :, _DOCUMENTS].sum(axis=0).tolist(),
        "source_labels": np.bincount(rows.source, labels, sources).tolist(),
        "source_tokens": np.bincount(source_of_segments, rows.segment_tokens, sources).tolist(),
    }


def _by_name(values: Sequence[float], sizes: Mapping[str, int]) -> dict[str, list[float]]:
    """Split consecutive values by name; sizes: how many of each."""
    remaining = iter(values)
    found = {name: list(itertools.islice(remaining, size)) for name, size in sizes.items()}
    assert next(remaining, None) is None
    return found


_OF_WINDOWS = list(map(Cursor._fields.index, OF_WINDOWS))
_DOCUMENTS = Cursor._fields.index("documents")


def _keep(cursors: list[LaneCursors], rows: StepRows) -> None:
    for lane, of_sources in zip(rows.lanes.tolist(), rows.cursors.tolist(), strict=True):
        cursors[lane] = tuple(Cursor(*cursor) for cursor in of_sources)


def _progress(config: Config, step: int, of_epochs: float) -> float:
    """Share of the run before a step; of_epochs: share of the rows of the epochs."""
    steps = step / config.train.max_steps if config.train.max_steps is not None else 0.0
    return max(steps, of_epochs)


def _refuse_parameters_without_gradient(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    unused = [name for name, parameter in parameters.items() if parameter.grad is None]
    if unused:
        raise TrainingError(
            f"the loss does not depend on {len(unused)} parameters, for example {unused[0]}: choose another model"
        )


def _tensor(values: Sequence[float], device: torch.device) -> torch.Tensor:
    tensor = torch.tensor(values, dtype=torch.float64)
    # A copy from unpinned memory would wait for all queued work of the GPU.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _seed(*key: int) -> int:
    return int.from_bytes(hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8).digest(), "big")
