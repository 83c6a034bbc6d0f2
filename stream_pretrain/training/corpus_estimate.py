"""How long a run will be, where epochs end it: estimated, since nobody has counted the tokens of the corpus."""

from __future__ import annotations

import math

from stream_pretrain.config import TrainConfig
from stream_pretrain.data.lanes.sizes import BYTES_PER_TOKEN
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.transport.compression import expansion_of


def steps_of_run(train: TrainConfig, plan: StreamPlan) -> float:
    """Steps of a run, about, where epochs may end it."""
    most = math.inf if train.max_steps is None else train.max_steps
    if any(source.max_epochs is None for source in plan.sources):
        return most
    tokens = sum(tokens_of(source) * (source.max_epochs or 1) for source in plan.sources)
    return min(most, tokens / (plan.layout.global_batch_size * plan.layout.sequence_length))


def tokens_of(source: SourcePlan) -> float:
    """Tokens of a source, about, by the sizes of its shards."""
    return sum((shard.size or 0) * expansion_of(shard.compression) for shard in source.shards) / BYTES_PER_TOKEN
