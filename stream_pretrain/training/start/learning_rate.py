"""The learning rate of a step: a pure function of the step, the progress of the run and the options."""

from __future__ import annotations

import math

from stream_pretrain.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Learning rate of a step. Where warm-up and decay overlap, the lower of the two holds, so the rate never jumps.

    progress: share of the run before the step, 0 to 1: of `max_steps`, or of the corpus where epochs end the run.
    Source of WSD with a 1 - sqrt decay: Haegele et al. 2405.18392.
    """
    assert config.learning_rate != "auto", "chosen at the start"
    assert config.warmup_steps != "auto", "chosen before the first step"
    peak, last, progress = config.learning_rate, config.final_learning_rate, min(progress, 1.0)
    warmup = config.warmup_steps / config.max_steps if config.max_steps is not None else 0.0
    after_warmup = (progress - warmup) / (1 - warmup) if warmup < progress else 0.0
    match config.schedule:
        case "constant":
            share = 1.0
        case "linear":
            share = 1 - after_warmup
        case "cosine":
            share = (1 + math.cos(math.pi * after_warmup)) / 2
        case "wsd":
            begin = 1 - config.decay_fraction
            share = 1 - math.sqrt((progress - begin) / config.decay_fraction) if progress > begin else 1.0
    rising = peak * (step + 1) / config.warmup_steps if step < config.warmup_steps else peak
    return min(rising, last + (peak - last) * share)
