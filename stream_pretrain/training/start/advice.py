"""Warnings at the start about options that cost time, memory or bandwidth."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from stream_pretrain.config import TrainConfig
from stream_pretrain.data.lanes.dealing import LEVEL
from stream_pretrain.data.lanes.reading_costs import memory_bound, reading_cost
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.window_sizes import BYTES_PER_TOKEN, content_of
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.start.first_checks import physical_memory
from stream_pretrain.units import human_bytes

_HIGH_RATE = 0.1


def advice(plan: StreamPlan, ranks: Ranks, workers: int) -> Iterator[str]:
    """Warnings about options that cost time, memory or bandwidth."""
    lanes = plan.layout.lanes
    workers = min(workers, -(-lanes // ranks.world))  # one without a lane is not started
    yield from _steps_of_several_epochs(plan)
    for source in plan.sources:
        if source.undealt:
            yield f"source {source.name} is too small to split over {lanes} lanes: each lane reads all of it, in its own order"
    dealt = [source for source in plan.sources if not source.undealt]
    uneven = max(dealt, key=lambda source: source.fullest_lane, default=None)
    if uneven is not None and uneven.fullest_lane > LEVEL:
        of = f" of source {uneven.name}" if uneven.name else ""
        yield (
            f"lanes are uneven: the fullest has {uneven.fullest_lane:.2f} times the mean{of}, so an epoch ends with rows of "
            "few lanes; fewer --lanes or a smaller --data.window-bytes level them"
        )
    divided = [source for source in plan.sources if source.read.text_documents != "line"]
    if divided and not any("text" in (shard.format, shard.builder) for source in divided for shard in source.shards):
        unit = divided[0].read.text_documents
        yield f"--data.text-documents {unit} changes nothing: it is for .txt and .text files, and there are none"
    cost = reading_cost(plan.sources, ranks.world, workers)
    if cost.amplification > 1.05:
        yield (
            f"several lanes read shards that can only be read from the start: an epoch reads the corpus "
            f"{cost.amplification:.1f} times, and a resume at most {human_bytes(cost.resume_bytes)} of it again; "
            "fewer --lanes or --workers read less, as do more and smaller shards"
        )
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    processes, memory = local_ranks * max(1, workers), physical_memory()
    held = memory_bound(plan.sources, -(-lanes // (ranks.world * max(1, workers))))
    if held * processes > memory / 2:
        each = f" in each of {processes} processes" if processes > 1 else ""
        yield (
            f"readers may need {human_bytes(held)}{each}, and this machine has {human_bytes(memory)}: "
            "fewer --lanes or a smaller --data.window-bytes need less"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers and processes > cores:
        yield f"{processes} data workers on a machine with {cores} cores: fewer --workers may be faster"
    visible = torch.cuda.device_count()
    if visible > local_ranks:
        yield (
            f"{visible} GPUs are visible, {local_ranks} used; to use all: "
            f"torchrun --nproc-per-node {visible} -m stream_pretrain and the same options"
        )


def advice_on_learning_rate(train: TrainConfig) -> Iterator[str]:
    """A warning about a rate that is probably a slip, such as 1e4 for 1e-4."""
    if train.learning_rate != "auto" and train.learning_rate > _HIGH_RATE:
        rate = f"{train.learning_rate:g}"
        yield f"--train.learning-rate {rate} moves weights by up to {rate} a step, which destroys a model: 1e-4 is usual"


def _steps_of_several_epochs(plan: StreamPlan) -> Iterator[str]:
    """A warning for each source that one step reads more than once; none without packing, where rows may be nearly empty."""
    layout, parts = plan.layout, plan.schedule[0].parts
    for source, part in zip(plan.sources, parts, strict=True):
        rows = layout.global_batch_size * part / sum(parts)
        epochs = rows * layout.sequence_length * BYTES_PER_TOKEN / source.bytes_of_epoch
        if epochs > 1 and layout.packing != "none" and None not in map(content_of, source.shards):
            what, times = f"source {source.name}" if source.name else "the corpus", f"{epochs:,.{int(epochs < 10)}f}"
            yield (
                f"a step of {layout.global_batch_size:,} rows is about {times} times {what}: "
                "a smaller --global-batch-size makes several steps of it"
            )
