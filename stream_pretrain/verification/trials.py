"""How a run is disturbed: when it is killed, and what changes when it resumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stream_pretrain.config import Config
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus
from stream_pretrain.data.randomness import KILL, keyed_generator
from stream_pretrain.verification.kill_moments import KillMoment
from stream_pretrain.verification.recorded_steps import RecordedStep
from stream_pretrain.verification.starts import WatchedStart

AHEAD = 9
"""Steps that a run may continue with what a dead worker had prefetched."""


@dataclass(frozen=True)
class Baseline:
    """The undisturbed run, which all others are compared with."""

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
    baseline: Baseline
    starts: Sequence[WatchedStart]
    """Each but the last has a moment at which it is killed."""
    tolerance: float
    """Of the losses, relative; 0: they, and the weights, are equal bit by bit."""


def killed_at_random(baseline: Baseline, kills: int, tolerance: float) -> Trial:
    """Kills anywhere between the start and the last step."""
    draws = keyed_generator(baseline.config.train.seed, KILL, kills).uniform(0, baseline.last, kills)
    moments = []
    for draw in sorted(draws.tolist()):
        share, step = math.modf(draw)
        seconds = share * (baseline.seconds if step else baseline.seconds_to_first_step)
        moments.append(KillMoment("step" if step else "start", int(step), seconds, latest=baseline.last - 1))
    return Trial("killed at random moments", baseline, _killed(baseline.config, moments), tolerance)


def killed_while_saving(baseline: Baseline, tolerance: float) -> Trial:
    """Kills in the middle of a checkpoint, and in front of its name."""
    every = baseline.config.run.save_every
    moments = [KillMoment("save", min(every, baseline.last)), KillMoment("rename", min(2 * every, baseline.last))]
    return Trial("killed while saving", baseline, _killed(baseline.config, moments), tolerance)


def killed_worker(baseline: Baseline, tolerance: float) -> Trial | None:
    """The kill of a data worker; None where the run would end with what it had prefetched."""
    if baseline.last <= AHEAD + 1:
        return None
    config = _with_workers(baseline.config, max(1, baseline.config.data.workers))
    return Trial("a data worker killed", baseline, _killed(config, [KillMoment("worker", 1)]), tolerance)


def killed_at_epochs_end(baseline: Baseline, tolerance: float) -> Trial:
    """Kills where the second epoch begins, where the first one ends in the last lane, and at the end of the run."""
    epochs = {step: {segment.epoch for row in found.segments for segment in row} for step, found in baseline.steps.items()}
    begins = min((step for step, found in epochs.items() if 1 in found), default=baseline.last)
    ends = max(step for step, found in epochs.items() if 0 in found)
    moments = [KillMoment("step", step) for step in sorted({begins, ends, baseline.last})]
    return Trial("killed at the end of an epoch", baseline, _killed(baseline.config, moments), tolerance)


def other_workers(baseline: Baseline, tolerance: float) -> Trial:
    """One worker more, then none."""
    workers = baseline.config.data.workers
    starts = [
        WatchedStart(baseline.config, KillMoment("step", baseline.last // 3)),
        WatchedStart(_with_workers(baseline.config, workers + 1), KillMoment("step", 2 * baseline.last // 3)),
        WatchedStart(_with_workers(baseline.config, 0)),
    ]
    return Trial(f"other workers ({workers}, {workers + 1}, 0)", baseline, starts, tolerance)


def other_micro_batches(baseline: Baseline, tolerance: float) -> Trial:
    """Micro-batches of half the size."""
    train = baseline.config.train
    size = min(train.micro_batch_size, train.global_batch_size)
    other = replace(baseline.config, train=replace(train, micro_batch_size=size // 2 or 2))
    starts = [WatchedStart(baseline.config, KillMoment("step", baseline.last // 2)), WatchedStart(other)]
    return Trial(f"other micro-batches ({size}, {other.train.micro_batch_size})", baseline, starts, tolerance)


def other_ranks(baseline: Baseline, tolerance: float) -> Trial:
    """Two ranks of which one is killed, then one."""
    starts = [
        WatchedStart(baseline.config, KillMoment("step", baseline.last // 2, rank=1), ranks=2),
        WatchedStart(baseline.config),
    ]
    return Trial("other ranks (2, 1)", baseline, starts, tolerance)


def _killed(config: Config, moments: Sequence[KillMoment]) -> list[WatchedStart]:
    return [*(WatchedStart(config, moment) for moment in moments), WatchedStart(config)]


def _with_workers(config: Config, workers: int) -> Config:
    return replace(config, data=replace(config.data, workers=workers))
