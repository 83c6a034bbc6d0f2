"""How a run is disturbed: when it is killed, and what is different when it goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stream_pretrain.config import Config
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus
from stream_pretrain.data.randomness import KILL, keyed_generator
from stream_pretrain.verification.moments import Moment
from stream_pretrain.verification.recorded_steps import RecordedStep
from stream_pretrain.verification.starts import Start

AHEAD = 9
"""Steps that a run may go on with what a dead worker has read ahead."""


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing has happened to: what all others are compared with."""

    config: Config
    steps: dict[int, RecordedStep]
    checkpoint: Path
    """The last one."""
    corpus: PinnedCorpus
    seconds_to_first_step: float
    seconds: float
    """Of a step."""

    @property
    def last(self) -> int:
        """Its number of steps."""
        return max(self.steps)


@dataclass(frozen=True)
class Trial:
    """A run that is disturbed."""

    name: str
    like: Undisturbed
    starts: Sequence[Start]
    """Each but the last has a moment at which it is killed."""
    tolerance: float
    """Of the losses, relative; 0: they, and the weights, are equal bit by bit."""


def killed_at_random(like: Undisturbed, kills: int, tolerance: float) -> Trial:
    """Kills anywhere between the start and the last step."""
    draws = keyed_generator(like.config.train.seed, KILL, kills).uniform(0, like.last, kills)
    moments = []
    for draw in sorted(draws.tolist()):
        share, step = math.modf(draw)
        seconds = share * (like.seconds if step else like.seconds_to_first_step)
        moments.append(Moment("step" if step else "start", int(step), seconds, latest=like.last - 1))
    return Trial("killed at random moments", like, _killed(like.config, moments), tolerance)


def killed_while_saving(like: Undisturbed, tolerance: float) -> Trial:
    """Kills in the middle of a checkpoint, and in front of its name."""
    every = like.config.run.save_every
    moments = [Moment("save", min(every, like.last)), Moment("rename", min(2 * every, like.last))]
    return Trial("killed while saving", like, _killed(like.config, moments), tolerance)


def killed_worker(like: Undisturbed, tolerance: float) -> Trial | None:
    """The kill of a data worker; None where the run would end with what it has read ahead."""
    if like.last <= AHEAD + 1:
        return None
    config = _with_workers(like.config, max(1, like.config.data.workers))
    return Trial("a data worker killed", like, _killed(config, [Moment("worker", 1)]), tolerance)


def killed_at_epochs_end(like: Undisturbed, tolerance: float) -> Trial:
    """Kills where the second epoch begins, where the first one ends in the last lane, and at the end of the run."""
    epochs = {step: {segment.epoch for row in found.segments for segment in row} for step, found in like.steps.items()}
    begins = min((step for step, found in epochs.items() if 1 in found), default=like.last)
    ends = max(step for step, found in epochs.items() if 0 in found)
    moments = [Moment("step", step) for step in sorted({begins, ends, like.last})]
    return Trial("killed at the end of an epoch", like, _killed(like.config, moments), tolerance)


def other_workers(like: Undisturbed, tolerance: float) -> Trial:
    """One worker more, then none."""
    usual = like.config.data.workers
    starts = [
        Start(like.config, Moment("step", like.last // 3)),
        Start(_with_workers(like.config, usual + 1), Moment("step", 2 * like.last // 3)),
        Start(_with_workers(like.config, 0)),
    ]
    return Trial(f"other workers ({usual}, {usual + 1}, 0)", like, starts, tolerance)


def other_micro_batches(like: Undisturbed, tolerance: float) -> Trial | None:
    """Micro-batches of half the size; None where a batch is one row."""
    train = like.config.train
    if train.global_batch_size == 1:
        return None
    usual = min(train.micro_batch_size, train.global_batch_size)
    other = replace(like.config, train=replace(train, micro_batch_size=usual // 2 or 2))
    starts = [Start(like.config, Moment("step", like.last // 2)), Start(other)]
    return Trial(f"other micro-batches ({usual}, {other.train.micro_batch_size})", like, starts, tolerance)


def other_ranks(like: Undisturbed, tolerance: float) -> Trial | None:
    """Two ranks of which one is killed, then one; None where a batch is one row."""
    if like.config.train.global_batch_size == 1:
        return None
    starts = [Start(like.config, Moment("step", like.last // 2, rank=1), ranks=2), Start(like.config)]
    return Trial("other ranks (2, 1)", like, starts, tolerance)


def _killed(config: Config, moments: Sequence[Moment]) -> list[Start]:
    return [*(Start(config, moment) for moment in moments), Start(config)]


def _with_workers(config: Config, workers: int) -> Config:
    return replace(config, data=replace(config.data, workers=workers))
