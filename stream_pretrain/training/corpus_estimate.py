"""Estimates of the tokens of a corpus and of the steps of a run, from the sizes of shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stream_pretrain.config import TrainConfig
from stream_pretrain.data.lanes.sizes import BYTES_PER_TOKEN
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.transport.compression import expansion_of


@dataclass(frozen=True)
class CorpusEstimate:
    """Of the corpus of a run."""

    tokens: tuple[float | None, ...]
    """Of each source, in an epoch; None where the size of a shard is unknown."""
    steps: float | None
    """Of the run; None where epochs end it and tokens are unknown."""

    def epochs(self, plan: StreamPlan) -> list[float | None]:
        """The epochs of each source in the run."""
        if self.steps is None:
            return [None] * len(self.tokens)
        tokens_a_step = plan.layout.global_batch_size * plan.layout.sequence_length
        begins = [shares.from_step for shares in plan.schedule]
        ends = [*begins[1:], self.steps]
        read = [0.0] * len(self.tokens)
        for shares, begin, end in zip(plan.schedule, begins, ends, strict=True):
            for number, part in enumerate(shares.parts):
                read[number] += max(0.0, min(end, self.steps) - begin) * tokens_a_step * part / sum(shares.parts)
        found: list[float | None] = []
        for source, tokens, of_source in zip(plan.sources, self.tokens, read, strict=True):
            epochs = None if not tokens else of_source / tokens
            found.append(epochs if epochs is None or source.max_epochs is None else min(epochs, source.max_epochs))
        return found


def estimate(train: TrainConfig, plan: StreamPlan) -> CorpusEstimate:
    """By the sizes of the shards."""
    tokens = tuple(map(_tokens_of, plan.sources))
    return CorpusEstimate(tokens, _steps(train, plan, tokens))


def _steps(train: TrainConfig, plan: StreamPlan, tokens: Sequence[float | None]) -> float | None:
    if any(source.max_epochs is None for source in plan.sources):
        return train.max_steps
    if None in tokens:
        return train.max_steps
    total = sum(count * (source.max_epochs or 1) for source, count in zip(plan.sources, tokens, strict=True) if count)
    of_epochs = total / (plan.layout.global_batch_size * plan.layout.sequence_length)
    return of_epochs if train.max_steps is None else min(train.max_steps, of_epochs)


def _tokens_of(source: SourcePlan) -> float | None:
    sizes = [shard.size for shard in source.shards]
    if None in sizes:
        return None
    expanded = (size * expansion_of(shard.compression) for size, shard in zip(sizes, source.shards, strict=True) if size)
    return sum(expanded) / BYTES_PER_TOKEN
