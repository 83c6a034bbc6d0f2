"""Functions that run in a process of their own without importing anything again: forks of one that has imported it all."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ended:
    """What has become of a function."""

    items: list[Any]
    """What it gave until it ended, in whatever way."""
    fault: str | None
    """Why it is no success, in a line."""
    log: str
    """All that it printed."""
    seconds: float
    is_stopped: bool = False
    """Whether a signal has ended it that this process answers by `SystemExit`; what it gave until then is there."""


def in_fork(function: Callable[[], Iterable[Any]], seconds: float | None = None) -> Ended:
    """Run a function to its end in a fork, or until its time is up: then it is killed with the processes that it has started.

    What it yields has to fit into JSON. This process must not have initialised CUDA.
    """
    stopped: SystemExit | None = None
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as printed:
        fork = multiprocessing.get_context("fork").Process(target=_run, args=(function, given, printed))
        fork.start()
        try:
            fork.join(seconds)
        except SystemExit as error:
            stopped = error
        finally:
            is_late = fork.exitcode is None
            if is_late:
                with suppress(ProcessLookupError):  # it has ended just now, or has not begun
                    os.killpg(fork.pid, signal.SIGKILL)
                fork.kill()
                fork.join()
        for file in (given, printed):
            file.seek(0)
        # A fork that is killed may have written half of a line.
        lines = [json.loads(line) for line in given if line.endswith("\n")]
        log = printed.read()
    fault = next((text for kind, text in lines if kind == "fault"), None)
    if stopped is not None:
        fault = f"stopped: {stopped}"
    elif is_late:
        fault = f"not done after {seconds:.0f} s"
    elif fault is None and fork.exitcode:
        fault = f"exit code {fork.exitcode}" if fork.exitcode > 0 else f"killed by {signal.Signals(-fork.exitcode).name}"
    items = [item for kind, item in lines if kind == "item"]
    return Ended(items, fault, log, time.perf_counter() - began, stopped is not None)


def given_by(function: Callable[[], Iterable[Any]], seconds: float | None = None) -> list[Any]:
    """What a function gives in a fork. Raises: SystemExit with its log where it fails."""
    ended = in_fork(function, seconds)
    if ended.fault is not None:
        raise SystemExit(f"{ended.log}\n{ended.fault}")
    return ended.items


def _run(function: Callable[[], Iterable[Any]], given: Any, printed: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setpgid(0, 0)  # so that it can be killed with what it has started
    os.dup2(printed.fileno(), 1)
    os.dup2(printed.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)

    def give(kind: str, value: Any) -> None:
        given.write(json.dumps([kind, value]) + "\n")
        given.flush()

    try:
        for item in function():
            give("item", item)
    except (Exception, SystemExit) as error:
        first_line = str(error).partition("\n")[0]
        give("fault", first_line if isinstance(error, SystemExit) else f"{type(error).__name__}: {first_line}")
        raise
