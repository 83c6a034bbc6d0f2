"""The training loop: rows in, optimizer steps out, read from top to bottom.

Data comes sharded already and the learning rate is set here, so Accelerate prepares the model and the optimizer only.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs

from stream_pretrain.config import Config
from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.source_lane import CAUSES
from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.data.lanes.stream import StepStream, lanes_of
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors
from stream_pretrain.data.rows.batches import micro_batches, on_device
from stream_pretrain.errors import ConfigError, StreamPretrainError, TrainingError
from stream_pretrain.training.optimizer import learning_rate
from stream_pretrain.training.preemption import Interrupted, StopRequest
from stream_pretrain.training.ranks import Ranks
from stream_pretrain.training.totals import OF_WINDOWS, Totals, refuse_too_many_skipped
from stream_pretrain.training.watchdog import Watchdog

PATIENCE_SECONDS = 1_800.0
"""What a rank may take, besides the wait for a server, before torch ends those that wait for it."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step; sums are over all ranks."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Sum over the labels."""
    labels: int
    correct: int
    """Labels that were the most likely token."""
    source_loss: list[float]
    """Sum over the labels of each source."""
    source_labels: list[int]
    learning_rate: float
    grad_norm: float
    updated: bool
    """False where the loss or gradient of a rank was not finite: the rows are consumed, the weights stay."""
    tokens: int
    rows: int
    segments: int
    seconds: float
    seconds_waiting: float
    """Of `seconds`, for data."""
    data_seconds: list[float]
    """What the data workers spent on the rows, by `source_lane.CAUSES`."""
    progress: float
    """Share of the run that is done."""
    stop: bool
    """Whether any rank was asked to stop."""
    rows_seen: StepRows
    """What this rank trained on."""


@dataclass(frozen=True)
class EndOfCorpus:
    """Every lane of every rank has read its epochs; no step, but documents may have been skipped on the way to the end."""

    rows_seen: StepRows


@contextmanager
def accelerate_for_one_run() -> Iterator[None]:
    """Let Accelerate forget the run at its end: it refuses another one in the process that asks for anything else."""
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def accelerator_for(config: Config) -> Accelerator:
    """Accelerate as the loop needs it. Raises ConfigError where the environment or a launcher wants it otherwise."""
    on_gpu = torch.cuda.is_available()
    precision = config.train.precision
    if precision == "auto":
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    mixed_precision = "bf16" if precision == "bf16" else "no"
    _refuse_environment(mixed_precision)
    launched = "LOCAL_RANK" in os.environ
    accelerator = Accelerator(
        cpu=launched and not on_gpu,  # without this, ranks on CPUs would not find each other
        mixed_precision=mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        # A rank may wait for a server as long as it is told to, and the others for that rank.
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(seconds=config.data.retry_deadline + PATIENCE_SECONDS)),
        ],
    )
    supported = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in supported:
        raise ConfigError(
            f"the launcher asks for {accelerator.distributed_type.value}, which is not supported: launch with torchrun, or "
            "with `accelerate launch --multi_gpu`"
        )
    if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {accelerator.num_processes} processes have found each other: "
            "launch with torchrun, or unset it"
        )
    assert accelerator.gradient_accumulation_steps == 1
    assert str(accelerator.state.dynamo_plugin.backend).rsplit(".", 1)[-1] == "NO"
    assert accelerator.mixed_precision == mixed_precision
    torch.set_float32_matmul_precision("high")
    return accelerator


def _refuse_environment(mixed_precision: str) -> None:
    """Refuse variables that override, without a word, what the options say."""
    accepted = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1",), "--micro-batch-size decides that"),
        "ACCELERATE_DYNAMO_BACKEND": (("no",), "use --model.compile"),
        # "no" is what `accelerate launch` sets by itself; it does not change what the Accelerator is asked for.
        "ACCELERATE_MIXED_PRECISION": ((mixed_precision, "no"), "use --train.precision"),
        "ACCELERATE_USE_FSDP": (("false",), "it is not supported"),
        "ACCELERATE_USE_DEEPSPEED": (("false",), "it is not supported"),
        "ACCELERATE_USE_MEGATRON_LM": (("false",), "it is not supported"),
    }
    for name, (values, instead) in accepted.items():
        found = os.environ.get(name, values[0])
        if found.lower() not in values:
            raise ConfigError(f"{name} is set to {found}: unset it or launch with torchrun, {instead}")


def training_steps(
    config: Config,
    plan: StreamPlan,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    ranks: Ranks,
    stream: StepStream,
    cursors: list[LaneCursors],
    totals: Totals,
    stop: StopRequest,
    watchdog: Watchdog,
) -> Iterator[StepResult | EndOfCorpus]:
    """Train, one optimizer step an item, until `max_steps`, the end of the epochs, or a request to stop.

    `cursors` (all lanes; those of other ranks are not touched) and `totals` are brought up to date before a step is
    given out: what they say is what was trained on.
    Raises TrainingError after too many steps in a row without an update, ContentError when too much is unreadable.
    """
    device = accelerator.device
    rows_of_rank = len(lanes_of(plan.lanes.lanes, 0, ranks.world)) * plan.lanes.rows_per_lane  # no rank has more than the first
    size = min(config.train.micro_batch_size, rows_of_rank)
    micro_batches_a_step = math.ceil(rows_of_rank / size)
    own_lanes = lanes_of(plan.lanes.lanes, ranks.index, ranks.world)
    sources = len(plan.lanes.sources)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    checked_gradients = False

    while config.train.max_steps is None or totals.step < config.train.max_steps:
        started = time.perf_counter()
        abandoned = False
        try:
            with watchdog.stage("waiting for data"), stop.interruptible():
                rows = next(stream)
        except StreamPretrainError as error:
            if ranks.world == 1:
                raise  # with its cause
            raise ranks.named(error) from error
        except Interrupted:
            if ranks.world == 1:
                raise
            rows, abandoned = stream.nothing, True  # the others are in this step already: keep up with them to its end
        waited = time.perf_counter() - started

        progress = sum(plan.lanes.progress(lane, cursors[lane]) for lane in own_lanes)
        labels_and_progress = _tensor([float((rows.labelled.labels >= 0).sum()), progress], device)
        with watchdog.stage("waiting for the other ranks"):
            ranks.sum(labels_and_progress)
        scale = (ranks.world / labels_and_progress[0].clamp(min=1)).float()  # DDP averages over the ranks

        torch.manual_seed(_seed(config.train.seed, totals.step, ranks.index))  # dropout: nothing to save, nothing to restore
        losses = torch.zeros(2 + sources, dtype=torch.float64, device=device)
        batches = micro_batches(rows.rows, rows.labelled, rows.row_source, size, micro_batches_a_step, plan.encoder.pad)
        for number, batch in enumerate(on_device(batches, device), start=1):
            if stop.requested and number < micro_batches_a_step:
                abandoned = True  # the step may be longer than a launcher waits; in the last micro-batch the ranks meet
                continue
            is_last = number == micro_batches_a_step
            with nullcontext() if is_last else accelerator.no_sync(model):
                loss, correct, of_source = model(**vars(batch))
                with watchdog.stage("adding up gradients with the other ranks") if is_last else nullcontext():
                    accelerator.backward(loss * scale)
            losses += torch.cat([torch.stack([loss.detach().double(), correct.double()]), of_source.double()])
        if not checked_gradients:
            _refuse_parameters_without_gradient(parameters)
            checked_gradients = True
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters.values(), config.train.max_grad_norm)

        lengths = rows.rows.segment_length.astype(np.int64)
        counts = [rows.tokens, len(rows.row_lane), len(lengths)]
        counts += rows.cursors[:, :, _OF_WINDOWS].sum(axis=0).ravel().tolist()
        counts += [int(stop.requested), int(abandoned), *rows.seconds.tolist()]
        counts += rows.cursors[:, :, _DOCUMENTS].sum(axis=0).tolist()
        row_labels = (rows.labelled.labels >= 0).sum(axis=1)
        counts += np.bincount(rows.row_source, row_labels, sources).tolist()
        counts += np.bincount(rows.row_source[rows.rows.segment_row], lengths, sources).tolist()
        sums = torch.cat([losses, _tensor(counts, device)])
        with watchdog.stage("waiting for the device and the other ranks"):
            ranks.sum(sums)
            # The one place where the host waits for the device.
            on_host = torch.cat([sums, labels_and_progress, grad_norm.double().reshape(1)]).tolist()
        loss_sum, correct_sum, *rest = on_host
        source_loss, rest = rest[:sources], rest[sources:]
        tokens, row_count, segments, *rest = rest
        of_windows, rest = rest[: sources * len(OF_WINDOWS)], rest[sources * len(OF_WINDOWS) :]
        stops, abandons, *rest = rest
        data_seconds, rest = rest[: len(CAUSES)], rest[len(CAUSES) :]
        documents, source_labels, source_tokens = (list(map(int, rest[i * sources :][:sources])) for i in range(3))
        labels, done, norm = rest[3 * sources :]
        if abandons:
            raise Interrupted
        if row_count == 0:
            totals.count(of_windows)
            _keep(cursors, rows)
            yield EndOfCorpus(rows)
            refuse_too_many_skipped(totals, config.data.max_bad_fraction)
            return

        updated = math.isfinite(loss_sum) and math.isfinite(norm)
        rate = learning_rate(config.train, totals.step, _progress(config, totals.step, done / plan.lanes.lanes))
        if updated:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        optimizer.zero_grad()

        _keep(cursors, rows)
        totals.step += 1
        totals.tokens += int(tokens)
        totals.segments += int(segments)
        totals.documents = sum(documents)
        totals.count(of_windows)
        totals.source_documents = documents
        totals.source_tokens = [a + b for a, b in zip(totals.source_tokens or [0] * sources, source_tokens, strict=True)]
        totals.bad_steps = 0 if updated else totals.bad_steps + 1
        yield StepResult(
            step=totals.step,
            loss=loss_sum,
            labels=int(labels),
            correct=int(correct_sum),
            source_loss=source_loss,
            source_labels=source_labels,
            learning_rate=rate,
            grad_norm=norm,
            updated=updated,
            tokens=int(tokens),
            rows=int(row_count),
            segments=int(segments),
            seconds=time.perf_counter() - started,
            seconds_waiting=waited,
            data_seconds=data_seconds,
            progress=_progress(config, totals.step, done / plan.lanes.lanes),
            stop=stops > 0,
            rows_seen=rows,
        )
        if totals.bad_steps > config.train.max_bad_steps:
            raise TrainingError(
                f"loss or gradient was not finite in {totals.bad_steps} steps in a row, the last was step {totals.step}: "
                "lower --train.learning-rate, or look at the documents of these steps in OUT/bad_steps.jsonl"
            )
        refuse_too_many_skipped(totals, config.data.max_bad_fraction)


_OF_WINDOWS = list(map(Cursor._fields.index, OF_WINDOWS))
_DOCUMENTS = Cursor._fields.index("documents")


def _keep(cursors: list[LaneCursors], rows: StepRows) -> None:
    for lane, of_sources in zip(rows.lanes.tolist(), rows.cursors.tolist(), strict=True):
        cursors[lane] = tuple(Cursor(*cursor) for cursor in of_sources)


def _progress(config: Config, step: int, read: float) -> float:
    """Share of the run that lies before a step; `read` is the share of the epochs that was read."""
    steps = step / config.train.max_steps if config.train.max_steps is not None else 0.0
    return max(steps, read)


def _refuse_parameters_without_gradient(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    unused = [name for name, parameter in parameters.items() if parameter.grad is None]
    if unused:
        raise TrainingError(f"{len(unused)} parameters of the model take no part in the loss, for example {unused[0]}")


def _tensor(values: Sequence[float], device: torch.device) -> torch.Tensor:
    tensor = torch.tensor(values, dtype=torch.float64)
    # A copy from memory that is not pinned would wait for all that the GPU has to do.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _seed(*key: int) -> int:
    return int.from_bytes(hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8).digest(), "big")
