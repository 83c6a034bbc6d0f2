"""AdamW as it is used for language models, and the learning rate of a step."""

from __future__ import annotations

import math

import torch

from stream_pretrain.config import TrainConfig


def adamw(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 1711.05101), fused; no weight decay on biases, norms and other vectors."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert config.learning_rate != "auto", "chosen at the start"
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=all(p.device.type in ("cpu", "cuda") for p in parameters),
    )


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """A pure function. Where warm-up and decay overlap, the lower of the two rates holds, so that the rate never jumps.

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
