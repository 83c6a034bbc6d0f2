"""A run without disturbance, and the same run killed, resumed and spread over processes in other ways.

undisturbed     N steps; what they train on is what every other run has to train on
killed          at random moments, in saves, by the death of a worker, where an epoch ends: equal bit by bit
elsewhere       other numbers of workers, micro-batches and ranks: the same rows, and losses but for rounding
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stream_pretrain import exit_codes
from stream_pretrain.config import Config, EvalConfig, RunConfig
from stream_pretrain.config.command_options import LEAST_STEPS, VerifyConfig
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus
from stream_pretrain.errors import ConfigError, TrainingError
from stream_pretrain.training.files.out_files import CHECKPOINTS
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.state.checkpoint import checkpoint_name
from stream_pretrain.units import counted, human_duration
from stream_pretrain.verification import trials
from stream_pretrain.verification.comparing import Comparison, compared, same_tensors, tokens_of
from stream_pretrain.verification.extract import extracted
from stream_pretrain.verification.reduced_model import ReducedModel
from stream_pretrain.verification.starts import Ended, Launch, WatchedStart, run_start
from stream_pretrain.verification.trials import Baseline, Trial

ROUNDING = {"fp32": 1e-4, "bf16": 2e-2}
"""Relative difference of losses that sums in another order may make."""
LONGEST_SECONDS = 24 * 3600.0
"""For the undisturbed run."""


@dataclass(frozen=True)
class Outcome:
    """What a trial has shown."""

    trial: Trial
    comparison: Comparison
    weights_equal: bool | None
    """Those of the last checkpoint, and the state of the optimizer; None where rounding may differ."""
    kills: int
    seconds_to_resume: Sequence[float]
    """From the start of each process after a kill to the end of its first step."""
    fault: str | None
    """Why the trial came to no end, or to one without its kills."""

    @property
    def proven(self) -> bool:
        """Whether the run is the undisturbed one."""
        found = self.comparison
        same = found.rows_equal and found.losses_equal and self.weights_equal is not False
        return same and self.fault is None and not found.documents_lost and not found.documents_repeated

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "trial": self.trial.name,
            "proven": self.proven,
            **self.comparison.to_json(),
            "losses_tolerance": self.trial.tolerance,
            "weights_equal": self.weights_equal,
            "kills": [str(start.moment) for start in self.trial.starts[: self.kills]],
            "resumes": len(self.seconds_to_resume),
            "median_seconds_to_resume": median(self.seconds_to_resume),
            "fault": self.fault,
        }


class Proof:
    """The runs of a verification, in one folder."""

    def __init__(
        self, config: Config, model: ReducedModel, options: VerifyConfig, folder: Path, launch: Launch, progress: Progress
    ) -> None:
        self.options, self.model, self.folder, self.launch, self.progress = options, model, folder, launch, progress
        self.on_gpu = torch.cuda.is_available()
        chosen = model.without_dropout or model.options if self.on_gpu else model.options
        self.config = replace(_for_verification(config, options.run_steps), model=chosen)
        bf16 = config.train.precision == "bf16" or (config.train.precision == "auto" and self.on_gpu)
        self.rounding = ROUNDING["bf16" if bf16 else "fp32"] if options.tolerance == "auto" else options.tolerance
        self.of_kills = self.rounding if self.on_gpu else 0.0
        """Tolerance of losses after a kill."""
        self._runs = 0

    @property
    def starts(self) -> tuple[int, ...]:
        """Starts of the train command in each run, as an estimate: where epochs end decides some of them."""
        is_divided = self.undivided is None
        of_runs = {
            "undisturbed": 1,
            "killed at random": self.options.kills + 1,
            "killed while saving": 3,
            "a worker killed": 2 if self.options.run_steps > trials.AHEAD + 1 else 0,
            "other workers": 3,
            "undisturbed, on few documents": 1,
            "killed at the end of an epoch": 3,
            "undisturbed, without dropout": 1 if self.undisturbed_runs == 3 else 0,
            "other micro-batches": 2 if is_divided else 0,
            "other ranks": 2 if is_divided and self.has_second_rank else 0,
        }
        return tuple(starts for starts in of_runs.values() if starts)

    @property
    def undisturbed_runs(self) -> int:
        """Runs that others are compared with: as the options are, on few documents, and without dropout."""
        return 2 + (self.undivided is None and self.model.without_dropout != self.config.model)

    @property
    def undivided(self) -> str | None:
        """Why micro-batches and ranks stay as they are, if they do."""
        if self.config.train.global_batch_size == 1:
            return "a batch of one row cannot be divided"
        return None if self.model.without_dropout is not None else "dropout cannot be turned off in this model"

    @property
    def has_second_rank(self) -> bool:
        """Whether two ranks can run."""
        return not self.on_gpu or torch.cuda.device_count() > 1

    def outcomes(self) -> Iterator[Outcome]:
        """The trials in order, as they end.

        Raises: ConfigError, TrainingError where an undisturbed run fails; ConfigError for one of too few steps.
        """
        baseline = self.undisturbed("undisturbed", self.config)
        if (count := len(baseline.steps)) < LEAST_STEPS:
            raise ConfigError(
                f"the run has only {counted(count, 'step')}, and needs {LEAST_STEPS} to be killed on its way: "
                "give a smaller --global-batch-size, or a larger corpus"
            )
        left = (sum(self.starts) - 1) * (baseline.seconds_to_first_step + baseline.seconds * baseline.last / 2)
        self.progress.notice(f"at this speed, the other runs take about {human_duration(left)}")
        yield self.outcome(trials.killed_at_random(baseline, self.options.kills, self.of_kills))
        yield self.outcome(trials.killed_while_saving(baseline, self.of_kills))
        killed_worker = trials.killed_worker(baseline, self.of_kills)
        if killed_worker is None:
            self.progress.notice(f"no data worker is killed: it reads {trials.AHEAD} steps ahead")
        else:
            yield self.outcome(killed_worker)
        yield self.outcome(trials.other_workers(baseline, self.of_kills))
        yield self.outcome(trials.killed_at_epochs_end(self.first_documents(baseline), self.of_kills))
        if self.undivided is not None:
            self.progress.notice(f"micro-batches and ranks stay as they are: {self.undivided}")
            return
        without_dropout = self.model.without_dropout
        assert without_dropout is not None
        if without_dropout != baseline.config.model:
            baseline = self.undisturbed("undisturbed, without dropout", replace(baseline.config, model=without_dropout))
        yield self.outcome(trials.other_micro_batches(baseline, self.rounding))
        if not self.has_second_rank:
            self.progress.notice("ranks stay as they are: two need two GPUs")
            return
        yield self.outcome(trials.other_ranks(baseline, self.rounding))

    def undisturbed(self, name: str, config: Config) -> Baseline:
        """Run to the end. Raises: ConfigError, TrainingError where that fails."""
        folder, out = self._next_run(config)
        with self.progress.phase(name) as report:
            ended = run_start(WatchedStart(out), folder / "start-1", self.launch, LONGEST_SECONDS)
            if ended.fault is not None:
                raise (ConfigError if ended.code == exit_codes.USAGE else TrainingError)(ended.fault)
            report(f"{len(ended.steps)} steps, {len(tokens_of(ended.steps)):,} documents")
        times = [ended.steps[step].at for step in sorted(ended.steps)]
        checkpoint = folder / "out" / CHECKPOINTS / checkpoint_name(max(ended.steps))
        corpus = PinnedCorpus.from_json(json.loads((checkpoint / "corpus.json").read_bytes()))
        assert ended.seconds_to_first_step is not None
        return Baseline(
            # Left to the first start of each run, the number of lanes would follow its number of processes.
            replace(config, data=replace(config.data, lanes=corpus.lanes)),
            ended.steps,
            checkpoint,
            corpus,
            ended.seconds_to_first_step,
            (times[-1] - times[0]) / max(1, len(times) - 1),
        )

    def first_documents(self, baseline: Baseline) -> Baseline:
        """A run on so few documents of the corpus that its epochs, two or more, are about as long as another run."""
        edges = itertools.accumulate((len(source.shards) for source in baseline.corpus.sources), initial=0)
        shards = [shard for _, shard, _ in tokens_of(baseline.steps)]
        counts = [max(2, sum(first <= shard < stop for shard in shards) // 2) for first, stop in itertools.pairwise(edges)]
        with self.progress.phase("taking the first documents", stays=False) as report:
            small = extracted(self.config, counts, self.folder / "first-documents", report)
        epochs = max(2, 1 + max(epoch for epoch, _, _ in tokens_of(baseline.steps)))
        small = replace(small, train=replace(small.train, max_epochs=epochs, max_steps=4 * self.options.run_steps))
        return self.undisturbed(f"undisturbed, {epochs:,} epochs of the first documents", small)

    def outcome(self, trial: Trial) -> Outcome:
        """Run a trial, and compare. Raises: TrainingError where a temporary failure, such as a full disk, ends it."""
        folder, _ = self._next_run(self.config)
        baseline, ended = trial.baseline, list[Ended]()
        deadline = 600 + 20 * (baseline.seconds_to_first_step + baseline.seconds * baseline.last)
        with self.progress.phase(trial.name) as report:
            for number, start in enumerate(trial.starts, start=1):
                report(f"start {number} of {len(trial.starts)}")
                start = replace(start, config=_into(start.config, folder))
                ended.append(run_start(start, folder / f"start-{number}", self.launch, deadline))
                if not ended[-1].killed:
                    break
            if ended[-1].code == exit_codes.RESUMES and not ended[-1].killed:
                raise TrainingError(f"{trial.name}: {ended[-1].fault}")
            fault, kills = ended[-1].fault, sum(end.killed for end in ended)
            if fault is None and kills < len(trial.starts) - 1:
                fault = f"came to its end before it was killed {trial.starts[kills].moment}"
            names = [shard.name for shard in baseline.corpus.shards]
            comparison = compared([end.steps for end in ended], baseline.steps, names, trial.tolerance)
            checkpoint = folder / "out" / CHECKPOINTS / baseline.checkpoint.name
            weights = None if trial.tolerance else same_tensors(checkpoint, baseline.checkpoint)
            seconds = [end.seconds_to_first_step for end in ended[1:] if end.seconds_to_first_step is not None]
            outcome = Outcome(trial, comparison, weights, kills, seconds, fault)
            report("as if nothing had happened" if outcome.proven else "not as it should be")
        if self.options.folder is None:
            shutil.rmtree(folder / "out", ignore_errors=True)
        return outcome

    def _next_run(self, config: Config) -> tuple[Path, Config]:
        self._runs += 1
        folder = self.folder / f"run-{self._runs:02}"
        folder.mkdir()
        return folder, _into(config, folder)


def median(seconds: Sequence[float]) -> float | None:
    """Rounded; None of nothing."""
    return round(statistics.median(seconds), 2) if seconds else None


def _into(config: Config, folder: Path) -> Config:
    return replace(config, run=replace(config.run, output_dir=str(folder / "out")))


def _for_verification(config: Config, steps: int) -> Config:
    """The options of a run of a few steps that saves often, and neither evaluates nor reports to Weights & Biases."""
    return replace(
        config,
        train=replace(config.train, max_steps=steps),
        eval=EvalConfig(),
        run=RunConfig(save_every=max(1, steps // 4), keep_last=2, log_every=config.run.log_every, wandb="disabled"),
    )
