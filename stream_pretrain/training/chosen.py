"""What `auto` stands for in the learning rate and its warm-up: chosen at the first start of a run, the same at every other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

from stream_pretrain.config import Config, refuse_final_rate_above
from stream_pretrain.errors import CheckpointError
from stream_pretrain.typed_json import from_json

RATE_FROM_SCRATCH = 5e-4
RATE_FROM_WEIGHTS = 1e-4
"""Weights that have learnt something are not to be moved as fast."""

WARMUP_SHARE = 0.06
"""Of the run (RoBERTa, 1907.11692, for its fine-tuning; pretraining of half a million steps has 24,000)..."""
MOST_WARMUP_STEPS = 2_000
"""...but a long run needs no more."""
WARMUP_OF_ANY_RUN = 100
"""Where epochs end a run, and the store does not tell how large its shards are."""


@dataclass(frozen=True)
class Chosen:
    """What `auto` stands for in a run, whether or not its command says numbers instead."""

    learning_rate: float
    warmup_steps: int | None
    """None before the length of the run is known, which epochs need an estimate for."""

    @classmethod
    def from_json(cls, value: Any, where: str) -> Self:
        """What a checkpoint says. Raises: CheckpointError."""
        chosen: Self = from_json(cls, value, where)
        if chosen.learning_rate <= 0 or (chosen.warmup_steps or 0) < 0:
            raise CheckpointError(f"{where} is {value}, which is not what a run writes: use another checkpoint")
        return chosen

    def applied(self, config: Config) -> Config:
        """The options with what is known in place of `auto`. Raises: ConfigError for a final rate above the peak."""
        train = config.train
        rate = self.learning_rate if train.learning_rate == "auto" else train.learning_rate
        warmup = self.warmup_steps if train.warmup_steps == "auto" and self.warmup_steps is not None else train.warmup_steps
        refuse_final_rate_above(rate, train)
        return replace(config, train=replace(train, learning_rate=rate, warmup_steps=warmup))


BEFORE_AUTO = Chosen(learning_rate=5e-4, warmup_steps=0)
"""The defaults of runs whose checkpoints say nothing of it."""


def auto_before_auto(config: Config) -> Iterator[str]:
    """What is said of `auto` that is asked for in a run of before, a line each."""
    for name, value in vars(BEFORE_AUTO).items():
        if getattr(config.train, name) == "auto" and f"train.{name}" in config.given:
            option = f"--train.{name.replace('_', '-')}"
            yield f"{option} auto is {value} here, since the run began before there was auto; give a number for another"


def chosen_for(config: Config) -> Chosen:
    """What is chosen at the first start of a run, as far as its options tell."""
    goes_on = config.model.path is not None or config.model.init_from is not None
    steps = config.train.max_steps if config.train.max_epochs is None else None
    return Chosen(
        learning_rate=RATE_FROM_WEIGHTS if goes_on else RATE_FROM_SCRATCH,
        warmup_steps=None if steps is None else warmup_of(steps),
    )


def warmup_of(steps: float | None) -> int:
    """Steps of warm-up of a run with so many, or of one that nothing tells the length of."""
    return WARMUP_OF_ANY_RUN if steps is None else min(MOST_WARMUP_STEPS, round(WARMUP_SHARE * steps))
