"""Starts of the train command in processes of their own, watched by `watched_run`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stream_pretrain.config import GROUPS, Config
from stream_pretrain.verification.kill_moments import KillMoment
from stream_pretrain.verification.recorded_steps import RecordedStep, steps_of
from stream_pretrain.verification.watched_run import VARIABLE, record_of, variable

PROGRAM = ("-m", "stream_pretrain.verification.watched_run")

Launch = Callable[[Sequence[str], Mapping[str, str], Path, float], int | None]
"""Runs a command to its end, with environment variables, a log file and a limit in seconds; its exit code, None where it was
killed at the limit."""


@dataclass(frozen=True)
class WatchedStart:
    """A start of a run, and when it is killed."""

    config: Config
    moment: KillMoment | None = None
    ranks: int = 1


@dataclass(frozen=True)
class Ended:
    """A start that has ended."""

    steps: dict[int, RecordedStep]
    killed: bool
    fault: str | None
    """Why it ended, where it should not have."""
    code: int | None
    seconds_to_first_step: float | None
    """From the start of the process; None where it did not come to a step."""


def run_start(start: WatchedStart, folder: Path, launch: Launch, deadline: float) -> Ended:
    """Run a start to its end; it records to a folder, which is made. deadline: seconds."""
    folder.mkdir(parents=True)
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={start.ranks}", "--standalone", f"--log-dir={folder}"]
    command = [sys.executable, *(torchrun if start.ranks > 1 else []), *PROGRAM, *arguments_of(start.config)]
    began, log = time.monotonic(), folder / "log.txt"
    code = launch(command, {**os.environ, VARIABLE: variable(folder, start.moment)}, log, deadline)
    steps, killed = steps_of([record_of(folder, rank) for rank in range(start.ranks)])
    fault = None
    if code is None:
        fault = f"did not end in {deadline:.0f} seconds; its last lines are in {log}"
    elif code != 0 and not killed:
        fault = _error_in(log) or f"ended with {code} and without an error in {log}: is the disk full?"
    seconds = min((step.at for step in steps.values()), default=None)
    return Ended(steps, killed and code != 0, fault, code, None if seconds is None else seconds - began)


def launched(command: Sequence[str], variables: Mapping[str, str], log: Path, deadline: float) -> int | None:
    """A `Launch` in new processes."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            return process.wait(deadline)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                process.terminate()  # so that torchrun ends its ranks
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                process.kill()
                process.wait()


def arguments_of(config: Config) -> Iterator[str]:
    """The command line of these options."""
    for group in GROUPS:
        options = getattr(config, group)
        for field in dataclasses.fields(options):
            value = getattr(options, field.name)
            if value == field.default:
                continue
            if isinstance(value, tuple):
                records = [dataclasses.asdict(record) for record in value]
                value = json.dumps([{key: inner for key, inner in record.items() if inner is not None} for record in records])
            yield f"--{group}.{field.name.replace('_', '-')}={str(value).lower() if isinstance(value, bool | None) else value}"


def _error_in(log: Path) -> str | None:
    """The error that a run ended with."""
    found = re.findall(r"^(?:\S+Z )?error: (.*)$", log.read_text("utf-8", "replace"), re.MULTILINE)
    return found[-1] if found else None
