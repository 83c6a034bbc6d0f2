"""The way from a corpus to the rows of a step, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stream_pretrain.config import Config
from stream_pretrain.data.corpus.pinned import PinnedCorpus
from stream_pretrain.data.lanes.pinning import lane_plan, pin
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.objective import Objective, objective_of
from stream_pretrain.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def stream_plan(config: Config, tokenizer: PreTrainedTokenizerFast, pinned: PinnedCorpus | None = None) -> StreamPlan:
    """All that decides the rows of a run; `pinned`: its corpus, where it is found already."""
    pinned = pinned or pin(config, world=1)
    objective = objective_of(config, tokenizer)
    encoder = objective.framed(Encoder.of(tokenizer, config.data.special_tokens))
    _refuse_short_rows(config.data.sequence_length, encoder, objective)
    return StreamPlan(lane_plan(config, pinned), encoder, objective)


def _refuse_short_rows(sequence_length: int, encoder: Encoder, objective: Objective) -> None:
    """Refuse rows in which, full as they may be, no token gets a label. Raises: ConfigError."""
    framing = len(encoder.prefix) + len(encoder.suffix)
    needed = objective.shortest_row(framing)
    if sequence_length < needed:
        raise ConfigError(
            f"--sequence-length {sequence_length} is too short for a label in a row: {framing} positions are special tokens; "
            f"give at least {needed}"
        )
