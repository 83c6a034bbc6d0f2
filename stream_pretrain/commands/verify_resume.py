"""`stream-pretrain verify-resume`: prove that a run with these options resumes as if it had never stopped."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from stream_pretrain import exit_codes
from stream_pretrain.arguments import Invocation
from stream_pretrain.commands import Answer
from stream_pretrain.config import COMMAND_GROUPS
from stream_pretrain.data.rows.objective import objective_named
from stream_pretrain.errors import ConfigError, TrainingError
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.units import human_bytes, human_count, human_duration
from stream_pretrain.verification.cost import cost_of
from stream_pretrain.verification.proof import Outcome, Proof, median
from stream_pretrain.verification.reduced_model import ReducedModel, reduced
from stream_pretrain.verification.starts import Launch, launched
from stream_pretrain.verification.table import lines_of

GROUPS = ("verify", "data", "model", "objective", "train", "eval", "run")
NEEDED = ("data.dataset", "model.path", "train.max_steps")
EXAMPLE = """
stream-pretrain verify-resume --dataset 'data/*.jsonl.zst' --model bert-base-uncased \\
    --max-steps 10000 --sequence-length 128 --global-batch-size 16
"""

MATRIX = 1024
"""Rows of a matrix product, by which the speed of this CPU is measured."""


def run(given: Invocation, progress: Progress, launch: Launch = launched) -> Answer:
    """Run a few steps undisturbed, then disturbed in many ways, and compare."""
    config, options = given.config, given.own["verify"]
    assert isinstance(options, COMMAND_GROUPS["verify"])
    transformers.utils.logging.disable_progress_bar()
    with ExitStack() as stack:
        for name in (signal.SIGTERM, signal.SIGHUP):
            before = signal.getsignal(name)
            if before != signal.SIG_IGN:  # nohup
                # Ends the runs and deletes their folder, as Ctrl-C does.
                stack.callback(signal.signal, name, before)
                signal.signal(name, signal.default_int_handler)
        folder = _folder(options.folder, stack)
        causal = objective_named(config.objective.name).causal
        model = reduced(config.model, causal=causal, full=options.full_model, folder=folder)
        proof = Proof(config, model, options, folder, launch, progress)
        for line in _cost(proof):
            progress.notice(line)
        try:
            outcomes = list(proof.outcomes())
        except OSError as error:
            raise TrainingError(f"the runs in {folder} cannot be recorded: {error.strerror}") from error
    code = exit_codes.FINISHED if _all_proven(outcomes) else exit_codes.FAILED
    return Answer(list(lines_of(outcomes)), _record(outcomes, proof, model), code)


def _folder(path: str | None, stack: ExitStack) -> Path:
    if path is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="verify-resume-")))
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"--verify.folder {path} is not empty: give another one")
    except OSError as error:
        raise ConfigError(f"--verify.folder {path}: {error.strerror}") from error
    return folder.absolute()


def _cost(proof: Proof) -> list[str]:
    """What the verification will do, and an estimate of its cost."""
    rows, length, model = proof.config.train.global_batch_size, proof.config.data.sequence_length, proof.model
    cost = cost_of(
        proof,
        # A start imports what this process has.
        seconds_of_a_start=time.time() - psutil.Process().create_time(),
        flops_a_second=None if proof.on_gpu else _flops_a_second(),
    )
    return [
        f"{model.description}, {human_count(model.parameters)} parameters, on {'a GPU' if proof.on_gpu else 'this CPU'}; "
        f"{proof.options.run_steps} steps of {rows:,} rows of {length:,} tokens",
        f"about {len(cost.starts)} runs with {sum(cost.starts)} starts: {human_duration(cost.seconds)} and "
        f"{human_bytes(cost.disk_bytes)} of disk in {proof.folder}; fewer --verify.run-steps, or a smaller "
        "--global-batch-size, take less",
    ]


def _flops_a_second() -> float:
    """Of a matrix product in float32 on this CPU."""
    matrix = torch.ones(MATRIX, MATRIX)
    matrix @ matrix
    began = time.perf_counter()
    matrix @ matrix
    return 2 * MATRIX**3 / (time.perf_counter() - began)


def _record(outcomes: Sequence[Outcome], proof: Proof, model: ReducedModel) -> dict[str, Any]:
    found = [outcome.comparison for outcome in outcomes]
    return {
        "proven": _all_proven(outcomes),
        "model": model.description,
        "device": "gpu" if proof.on_gpu else "cpu",
        "steps": proof.options.run_steps,
        "rows_equal": all(comparison.rows_equal for comparison in found),
        "losses_equal": all(comparison.losses_equal for comparison in found),
        "weights_equal": all(outcome.weights_equal is not False for outcome in outcomes),
        "documents_lost": sum(comparison.documents_lost for comparison in found),
        "documents_repeated": sum(comparison.documents_repeated for comparison in found),
        "resumes": sum(len(outcome.seconds_to_resume) for outcome in outcomes),
        "median_seconds_to_resume": median([second for outcome in outcomes for second in outcome.seconds_to_resume]),
        "trials": [outcome.to_json() for outcome in outcomes],
    }


def _all_proven(outcomes: Sequence[Outcome]) -> bool:
    return all(outcome.proven for outcome in outcomes)
