"""`auto` learning rate and warm-up: chosen at the first start of a run, and pinned in its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stream_pretrain.config import Config, refuse_final_rate_above

RATE_FROM_SCRATCH = 5e-4
RATE_FROM_WEIGHTS = 1e-4
"""Lower, so that trained weights do not move as fast."""

WARMUP_SHARE = 0.06
"""Of the run, as in the fine-tuning of RoBERTa (1907.11692)..."""
MOST_WARMUP_STEPS = 2_000
"""...up to this, which is enough for a long run."""
WARMUP_OF_ANY_RUN = 100
"""Steps where epochs end a run and the sizes of shards are unknown."""


@dataclass(frozen=True)
class Chosen:
    """The values of `auto` in a run, also where its command has numbers instead."""

    learning_rate: float
    warmup_steps: int | None
    """None before the length of the run is estimated, where epochs end it."""

    def applied(self, config: Config) -> Config:
        """The options with these values for `auto`. Raises: ConfigError for a final rate above the peak."""
        train = config.train
        rate = self.learning_rate if train.learning_rate == "auto" else train.learning_rate
        warmup = self.warmup_steps if train.warmup_steps == "auto" and self.warmup_steps is not None else train.warmup_steps
        refuse_final_rate_above(rate, train)
        return replace(config, train=replace(train, learning_rate=rate, warmup_steps=warmup))


def chosen_for(config: Config) -> Chosen:
    """The values for the first start of a run, as far as they follow from its options."""
    is_pretrained = config.model.path is not None or config.model.init_from is not None
    steps = config.train.max_steps if config.train.max_epochs is None else None
    return Chosen(
        learning_rate=RATE_FROM_WEIGHTS if is_pretrained else RATE_FROM_SCRATCH,
        warmup_steps=None if steps is None else warmup_of(steps),
    )


def warmup_of(steps: float | None) -> int:
    """Warm-up steps of a run of `steps`; None: unknown."""
    return WARMUP_OF_ANY_RUN if steps is None else min(MOST_WARMUP_STEPS, round(WARMUP_SHARE * steps))
