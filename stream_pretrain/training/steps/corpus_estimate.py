"""Estimates of the tokens of a corpus and of the steps of a run, from the windows that the first step is read from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from stream_pretrain.config import TrainConfig
from stream_pretrain.data.lanes.rows_of_run import RowsOfRun, rows_of_run
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.window_sizes import BYTES_PER_TOKEN, content_of
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import Interrupted

MANY_UNKNOWN = 0.01
"""Share of the tokens above which unknown ones are warned of."""


@dataclass(frozen=True)
class SampledStep:
    """The rows of one step, and the windows that they are of, over all ranks."""

    rows: int
    tokens: int
    """In the rows."""
    unknown: int
    """Of these tokens, how many the tokenizer does not know."""
    windows: tuple[tuple[float, float], ...]
    """Tokens, about, and bytes of the windows of each source; none where it gave no row, or these are not known."""


def unknown_id(tokenizer: PreTrainedTokenizerBase, encoder: Encoder) -> int | None:
    """The id of unknown text; None where it stands for something else too, as that of GPT-2 for the end of a document."""
    unknown: int | None = tokenizer.unk_token_id
    return None if unknown in (encoder.pad, *encoder.prefix, *encoder.suffix, *encoder.document_end) else unknown


def sample_of_all(rows: StepRows, ranks: Ranks, unknown_id: int | None, *, interrupted: bool) -> SampledStep:
    """What the lanes of all ranks give to a step. Called by all ranks. Raises: Interrupted where one of them was."""
    unknown = 0 if unknown_id is None else int((rows.trained.input_ids == unknown_id).sum())  # never masked
    mine = [len(rows.trained), rows.trained.tokens, unknown, interrupted, *rows.sampled.ravel()]
    counts = torch.tensor(mine, dtype=torch.float64)
    ranks.sum_on_cpu(counts)
    all_rows, tokens, unknown, interruptions, *sampled = counts.tolist()
    if interruptions:
        raise Interrupted
    return SampledStep(int(all_rows), int(tokens), int(unknown), tuple(zip(sampled[::2], sampled[1::2], strict=True)))


def many_unknown(sample: SampledStep) -> str | None:
    """A warning where the tokenizer does not know the language or the signs of the corpus."""
    share = sample.unknown / max(1, sample.tokens)
    if share <= MANY_UNKNOWN:
        return None
    return (
        f"the tokenizer does not know {share:.1%} of the tokens of the first rows: choose a model that was made for such text"
    )


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
        rows = _rows_in_epoch(self.tokens, plan, self.fill)
        read = _rows_of_run(rows, plan, self.steps).of_sources
        return [given / in_epoch if in_epoch else None for given, in_epoch in zip(read, rows, strict=True)]


def estimate(train: TrainConfig, plan: StreamPlan, sample: SampledStep) -> CorpusEstimate:
    """By the windows that a step is read from, and how full its rows are."""
    fill = sample.tokens / (sample.rows * plan.layout.sequence_length) if sample.rows else 1.0
    tokens = tuple(itertools.starmap(_tokens_of, zip(plan.sources, sample.windows, strict=True)))
    steps = _rows_of_run(_rows_in_epoch(tokens, plan, fill), plan, train.max_steps).steps
    return CorpusEstimate(tokens, None if math.isinf(steps) else steps, fill)


def _rows_in_epoch(tokens: Sequence[float | None], plan: StreamPlan, fill: float) -> list[float | None]:
    """Of each source."""
    return [None if of_source is None else of_source / (fill * plan.layout.sequence_length) for of_source in tokens]


def _rows_of_run(in_epoch: Sequence[float | None], plan: StreamPlan, max_steps: float | None) -> RowsOfRun:
    max_epochs = [source.max_epochs for source in plan.sources]
    return rows_of_run(plan.schedule, in_epoch, max_epochs, plan.layout.global_batch_size, max_steps)


def _tokens_of(source: SourcePlan, window: tuple[float, float]) -> float | None:
    content = [size for shard in source.shards if (size := content_of(shard)) is not None]
    if len(content) < len(source.shards):
        return None
    tokens, read = window
    if read:
        return tokens * source.bytes_of_epoch / read
    # A source that gave no row, or whose format has no byte offsets for its documents.
    return sum(content) / BYTES_PER_TOKEN
