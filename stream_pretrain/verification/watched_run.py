"""The command line of a run that records what its steps trained on, and is killed at a given moment.

    python -m stream_pretrain.verification.watched_run --dataset ...

It sees the run through audit hooks (PEP 578): the training itself is that of any other run, except that workers prefetch only
LEAST_STEPS_AHEAD steps where one of them is to be killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stream_pretrain.data.lanes import stream
from stream_pretrain.training.state.checkpoint import checkpoint_name
from stream_pretrain.training.steps.loop import StepResult
from stream_pretrain.training.steps.run import STEP_EVENT
from stream_pretrain.verification.kill_moments import KillMoment
from stream_pretrain.verification.recorded_steps import KILLED, line_of

VARIABLE = "STREAM_PRETRAIN_WATCH"
"""The environment variable that says where to record, and when to kill."""


def variable(folder: Path, moment: KillMoment | None) -> str:
    """The value of `VARIABLE`."""
    return json.dumps({"folder": str(folder), "moment": None if moment is None else asdict(moment)})


def record_of(folder: Path, rank: int) -> Path:
    """What a rank records in a folder."""
    return folder / f"steps-{rank}.jsonl"


_EVENTS = {"save": "open", "rename": "os.rename"}
"""Python's audit events of what a save does."""


class Watch:
    """The audit hook of a process."""

    def __init__(self, watch: Mapping[str, Any], rank: int) -> None:
        """watch: the value of `VARIABLE`."""
        self._process = os.getpid()
        self._file = os.open(record_of(Path(watch["folder"]), rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        moment = None if watch["moment"] is None else KillMoment(**watch["moment"])
        self._moment = moment if moment is not None and moment.rank == rank else None
        self._armed = False
        if self._moment is not None and self._moment.where == "start":
            self._arm(self._moment.seconds)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if os.getpid() != self._process:
            return  # a data worker, which is a fork
        if event == STEP_EVENT:
            self._step(arguments[0])
        elif self._moment is not None and event == _EVENTS.get(self._moment.where) and not isinstance(arguments[0], int):
            hidden, path = f".tmp-{checkpoint_name(self._moment.step)}", Path(os.fsdecode(arguments[0]))
            within = path.parent.name == hidden and path.name == "trainer.json"  # the tensors are written by then
            if within if event == "open" else path.name == hidden:
                self._kill()

    def _step(self, result: StepResult) -> None:
        os.write(self._file, line_of(result, time.monotonic()))
        moment = self._moment
        if moment is None:
            return
        if moment.latest is not None and result.step >= moment.latest:
            self._kill()
        if moment.where == "worker" and result.step >= moment.step:
            self._moment = None
            os.write(self._file, KILLED)
            multiprocessing.active_children()[0].kill()
        if moment.where == "step" and result.step >= moment.step and not self._armed:
            self._arm(moment.seconds)

    def _arm(self, seconds: float) -> None:
        self._armed = True
        if not seconds:
            self._kill()
        timer = threading.Timer(seconds, self._kill)
        timer.daemon = True
        timer.start()

    def _kill(self) -> None:
        os.write(self._file, KILLED)
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run the command line, watched as `VARIABLE` says."""
    watch = json.loads(os.environ[VARIABLE])
    if watch["moment"] is not None and watch["moment"]["where"] == "worker":
        # A worker that prefetches all of a short run is not missed when it dies; how far it prefetches changes no row.
        stream.steps_ahead = lambda *_, **__: stream.LEAST_STEPS_AHEAD
    sys.addaudithook(Watch(watch, int(os.environ.get("RANK", "0"))))
    runpy.run_module("stream_pretrain", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
