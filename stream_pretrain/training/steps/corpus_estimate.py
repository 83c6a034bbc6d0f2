"""Estimates of the tokens of a corpus and of the steps of a run, from the windows that the first step is read from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stream_pretrain.config import TrainConfig
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.window_sizes import BYTES_PER_TOKEN, content_of
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import Interrupted


@dataclass(frozen=True)
class Sample:
    """The rows of one step, and the windows that they are of, over all ranks."""

    rows: int
    tokens: int
    """In the rows."""
    windows: tuple[tuple[float, float], ...]
    """Tokens, about, and bytes of the windows of each source; none where it gave no row, or these are not known."""


def sample_of_all(rows: StepRows, ranks: Ranks, *, interrupted: bool) -> Sample:
    """What the lanes of all ranks give to a step. Called by all ranks. Raises: Interrupted where one of them was."""
    mine = [len(rows.trained), rows.trained.tokens, interrupted, *rows.sampled.ravel()]
    counts = torch.tensor(mine, dtype=torch.float64)
    ranks.sum_on_cpu(counts)
    all_rows, tokens, interruptions, *sampled = counts.tolist()
    if interruptions:
        raise Interrupted
    return Sample(int(all_rows), int(tokens), tuple(zip(sampled[::2], sampled[1::2], strict=True)))


@dataclass(frozen=True)
class CorpusEstimate:
    """Of the corpus of a run."""

    tokens: tuple[float | None, ...]
    """Of each source, in an epoch; None where the size of a shard is unknown."""
    steps: float | None
    """Of the run; None where epochs end it and tokens are unknown."""
    fill: float = 1.0
    """Tokens a position of a row; the rest is padding."""

    def epochs(self, plan: StreamPlan) -> list[float | None]:
        """The epochs of each source in the run."""
        if self.steps is None:
            return [None] * len(self.tokens)
        begins = [shares.from_step for shares in plan.schedule]
        ends = [*begins[1:], self.steps]
        read = [0.0] * len(self.tokens)
        for shares, begin, end in zip(plan.schedule, begins, ends, strict=True):
            tokens = max(0.0, min(end, self.steps) - begin) * self.fill * positions_of_step(plan)
            for number, part in enumerate(shares.parts):
                read[number] += tokens * part / sum(shares.parts)
        found: list[float | None] = []
        for source, in_epoch, of_source in zip(plan.sources, self.tokens, read, strict=True):
            epochs = of_source / in_epoch if in_epoch else None
            found.append(epochs if epochs is None or source.max_epochs is None else min(epochs, source.max_epochs))
        return found


def positions_of_step(plan: StreamPlan) -> int:
    """Positions of the rows of a full step, padding included."""
    return plan.layout.global_batch_size * plan.layout.sequence_length


def estimate(train: TrainConfig, plan: StreamPlan, sample: Sample) -> CorpusEstimate:
    """By the windows that a step is read from, and how full its rows are."""
    fill = sample.tokens / (sample.rows * plan.layout.sequence_length) if sample.rows else 1.0
    tokens = tuple(itertools.starmap(_tokens_of, zip(plan.sources, sample.windows, strict=True)))
    return CorpusEstimate(tokens, _steps(train, plan, tokens, fill), fill)


def _steps(train: TrainConfig, plan: StreamPlan, tokens: Sequence[float | None], fill: float) -> float | None:
    if None in tokens or any(source.max_epochs is None for source in plan.sources):
        return train.max_steps
    total = sum(count * (source.max_epochs or 1) for source, count in zip(plan.sources, tokens, strict=True) if count)
    of_epochs = total / (fill * positions_of_step(plan))
    return of_epochs if train.max_steps is None else min(train.max_steps, of_epochs)


def _tokens_of(source: SourcePlan, window: tuple[float, float]) -> float | None:
    content = [size for shard in source.shards if (size := content_of(shard)) is not None]
    if len(content) < len(source.shards):
        return None
    tokens, read = window
    if read:
        return tokens * source.bytes_of_epoch / read
    # A source that gave no row, or whose format has no byte offsets for its documents.
    return sum(content) / BYTES_PER_TOKEN
