"""The models that are compared: what is refused before the first of them is measured, which takes minutes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from transformers import PreTrainedTokenizerFast

from stream_pretrain.config import Config, ModelConfig
from stream_pretrain.data.chain import refuse_short_rows
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.objective import Objective, objective_of
from stream_pretrain.errors import CheckpointError, ModelError
from stream_pretrain.model.hub import only_cached
from stream_pretrain.model.kinds import is_causal, read_config, refuse_other_head
from stream_pretrain.model.loading import load_model
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.model.tokenizer import load_tokenizer
from stream_pretrain.training.files.out_files import CHECKPOINTS, MODEL
from stream_pretrain.training.state.trainer_state import TRAINER, read_fixed_options

KINDS: dict[bool, tuple[Literal["clm", "mlm"], str]] = {True: ("clm", "causal"), False: ("mlm", "masked")}
"""Objective and name of causal models and others."""


@dataclass(frozen=True)
class Candidate:
    """A model by its files, without weights."""

    model: ModelConfig
    tokenizer: PreTrainedTokenizerFast
    encoder: Encoder
    objective: Objective

    @property
    def name(self) -> str:
        """As the user gives it."""
        assert self.model.path is not None
        return self.model.path

    @property
    def mask_id(self) -> int | None:
        """The token that hides another one, of a masked model."""
        return None if self.objective.causal else self.tokenizer.mask_token_id

    def load(self, sequence_length: int) -> PretrainingModel:
        """With weights, on the CPU. Raises: ModelError."""
        loaded = load_model(self.model, self.objective.causal, self.tokenizer, sequence_length, seed=0)
        if loaded.new_head is not None:
            raise ModelError(f"{self.name} has no language-model head, and a new one is untrained: give a model that has one")
        return PretrainingModel(loaded.model).eval()


def candidates_of(names: Sequence[str], config: Config) -> list[Candidate]:
    """The models, judged by the objective that they were trained on. Raises: ModelError, ConfigError."""
    models = {name: ModelConfig(path=name, trust_remote_code=config.model.trust_remote_code) for name in names}
    causal = {name: _is_causal(name, model, config) for name, model in models.items()}
    if len(set(causal.values())) > 1:
        one, other = (next(name for name, kind in causal.items() if kind is wanted) for wanted in (True, False))
        raise ModelError(
            f"{one} is a causal language model, {other} a masked one: their losses are of different tasks; "
            "evaluate them separately"
        )
    return [_candidate(model, causal[name], config) for name, model in models.items()]


def _is_causal(name: str, model: ModelConfig, config: Config) -> bool:
    settings = read_config(name, model, only_cached(name, None))
    refuse_other_head(name, settings)
    causal = is_causal(settings) or _recorded_objective(Path(name).absolute()) == "clm"
    requested, (objective, kind) = config.objective.name, KINDS[causal]
    if "objective.name" in config.given and requested != objective:
        older = "; if it is an encoder that was trained with clm, put is_decoder: true into its config.json"
        raise ModelError(
            f"{name} is a {kind} language model ({settings.model_type}), which --objective.name {requested} cannot judge: "
            f"give --objective.name {objective}, or another model{'' if causal else older}"
        )
    return causal


def _recorded_objective(model: Path) -> str | None:
    """What a checkpoint was trained with, or OUT/model by the checkpoints beside it; earlier configurations do not have it."""
    checkpoints = sorted((model.parent / CHECKPOINTS).glob("step-*"), reverse=True) if model.name == MODEL else []
    for checkpoint in [model] if (model / TRAINER).is_file() else checkpoints:
        with suppress(CheckpointError):  # then that of an older one
            return cast(str, read_fixed_options(checkpoint).get("objective.name"))
    return None


def _candidate(model: ModelConfig, causal: bool, config: Config) -> Candidate:
    tokenizer = load_tokenizer(model, advice="give a model with a tokenizer of its own")
    objective = objective_of(replace(config, objective=replace(config.objective, name=KINDS[causal][0])), tokenizer)
    encoder = objective.framed(Encoder.of(tokenizer, config.data.special_tokens))
    refuse_short_rows(config.data.sequence_length, encoder, objective)
    return Candidate(model, tokenizer, encoder, objective)
