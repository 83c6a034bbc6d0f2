"""The models that are compared: what is refused before the first of them is measured, which takes minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedTokenizerFast

from stream_pretrain.config import Config, ModelConfig
from stream_pretrain.data.chain import refuse_short_rows
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.objective import Objective, objective_of
from stream_pretrain.errors import ModelError
from stream_pretrain.model.hub import only_cached
from stream_pretrain.model.kinds import is_causal, read_config, refuse_other_head
from stream_pretrain.model.loading import load_model
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.model.tokenizer import load_tokenizer

KINDS: dict[bool, tuple[Literal["clm", "mlm"], str]] = {True: ("clm", "causal"), False: ("mlm", "masked")}
"""Objective and name of causal models and others."""


@dataclass(frozen=True)
class Candidate:
    """A model by its files, without weights."""

    name: str
    tokenizer: PreTrainedTokenizerFast
    encoder: Encoder
    objective: Objective

    def load(self, sequence_length: int) -> PretrainingModel:
        """With weights, on the CPU. Raises: ModelError."""
        own = ModelConfig(path=self.name)
        loaded = load_model(own, self.objective.causal, self.tokenizer, sequence_length, seed=0)
        if loaded.new_head is not None:
            raise ModelError(f"{self.name} has no language-model head, and a new one tells nothing: give a model that has one")
        return PretrainingModel(loaded.model).eval()

    @property
    def mask_id(self) -> int | None:
        """The token that hides another one, of a masked model."""
        return None if self.objective.causal else self.tokenizer.mask_token_id


def candidates_of(names: Sequence[str], config: Config) -> list[Candidate]:
    """The models, judged by the objective that they were trained on. Raises: ModelError, ConfigError."""
    kinds = {name: _is_causal(name, config) for name in names}
    if len(set(kinds.values())) > 1:
        causal, masked = (next(name for name, kind in kinds.items() if kind is wanted) for wanted in (True, False))
        raise ModelError(
            f"{causal} is a causal language model, {masked} a masked one: their losses are of different tasks; "
            "evaluate them apart"
        )
    return [_candidate(name, causal, config) for name, causal in kinds.items()]


def _is_causal(name: str, config: Config) -> bool:
    settings = read_config(name, ModelConfig(path=name), only_cached(name, None))
    refuse_other_head(name, settings)
    causal, asked = is_causal(settings), config.objective.name
    objective, kind = KINDS[causal]
    if "objective.name" in config.given and asked != objective:
        raise ModelError(
            f"{name} is a {kind} language model ({settings.model_type}), which --objective.name {asked} cannot judge: "
            f"give --objective.name {objective}, or another model"
        )
    return causal


def _candidate(name: str, causal: bool, config: Config) -> Candidate:
    tokenizer = load_tokenizer(ModelConfig(path=name))
    objective = objective_of(replace(config, objective=replace(config.objective, name=KINDS[causal][0])), tokenizer)
    encoder = objective.framed(Encoder.of(tokenizer, config.data.special_tokens))
    refuse_short_rows(config.data.sequence_length, encoder, objective)
    return Candidate(name, tokenizer, encoder, objective)
