"""What a verification will take, before it begins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_pretrain.model.flops import training_flops
from stream_pretrain.training.state.checkpoint_size import BYTES_A_WEIGHT, checkpoint_bytes, model_bytes
from stream_pretrain.verification.proof import Proof

MARGIN = 1.5
"""A start does more than its imports, and a step more than matrix products."""


@dataclass(frozen=True)
class Cost:
    """An estimate."""

    starts: tuple[int, ...]
    """Of the train command, in each run."""
    seconds: float
    disk_bytes: int
    """The most at a time."""


def cost_of(proof: Proof, *, seconds_of_a_start: float, flops_a_second: float | None) -> Cost:
    """The cost of all runs. flops_a_second: of the CPU; None for a GPU, whose steps take no time beside the starts."""
    starts, parameters = proof.starts, proof.model.parameters
    seconds = sum(starts) * seconds_of_a_start
    if flops_a_second is not None:
        seconds += len(starts) * flops_of_a_run(proof) / flops_a_second
    weights = BYTES_A_WEIGHT * parameters
    model, checkpoint = model_bytes(weights), checkpoint_bytes(weights, parameters)
    kept = len(starts) if proof.options.folder is not None else proof.undisturbed_runs + 1
    # At the end of a run: its newest checkpoints, and the model; one checkpoint more while it runs.
    return Cost(starts, MARGIN * seconds, kept * (proof.config.run.keep_last * checkpoint + model) + checkpoint)


def flops_of_a_run(proof: Proof) -> float:
    """Of its steps, with full rows."""
    config, model = proof.config, proof.model
    rows, length = config.train.global_batch_size, config.data.sequence_length
    labels = rows * length * (config.objective.mask_rate if config.objective.name == "mlm" else 1)
    return proof.options.run_steps * training_flops(model.settings, np.full(rows, length), round(labels))
