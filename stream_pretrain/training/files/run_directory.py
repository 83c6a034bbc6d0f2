"""OUT for the process that owns it, and run.json, the state of the run for people and schedulers."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from stream_pretrain import exit_codes
from stream_pretrain.config import TrainConfig
from stream_pretrain.errors import CheckpointError
from stream_pretrain.non_utf8_names import escaped, in_shell
from stream_pretrain.training.files.atomic_files import replace_file, writing_out
from stream_pretrain.training.files.lock import HeldLock, held
from stream_pretrain.training.files.out_files import FILES, RUN
from stream_pretrain.training.files.retried_reads import read_object
from stream_pretrain.training.files.versions import program

USUAL_CODES = {
    "running": None,
    "preempted": exit_codes.RESUMES,
    "finished": exit_codes.FINISHED,
    "failed": exit_codes.FAILED,
}
"""Exit codes by state; after a kill the state is still `running`."""


class RunDirectory:
    """OUT, for the process that owns it: the first rank."""

    def __init__(self, path: Path, command: Sequence[str], report: Callable[[str], None], lock: HeldLock | None = None) -> None:
        self.path = path
        self._lock = lock
        self._command, self._report = list(command), report
        self._run: dict[str, Any] | None = None
        self._before: dict[str, Any] = {}
        self._writing = threading.RLock()  # checkpoints are recorded by their own thread

    @classmethod
    @contextmanager
    def own(cls, path: Path, command: Sequence[str], report: Callable[[str], None]) -> Iterator[Self]:
        """Create OUT if need be, and lock it during the block.

        Raises: CheckpointError when OUT is in use or cannot be written.
        """
        with writing_out(path):
            path.mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, "it is not writable")
            refuse_no_files(path)
        with held(path, report) as lock:
            yield cls(path, command, report, lock)

    @property
    def is_owned(self) -> bool:
        """Whether this process may change OUT."""
        return self._lock is not None

    @property
    def is_lost(self) -> bool:
        """Whether OUT or its lock was removed, replaced or taken over, so that another process may own OUT now."""
        return self._why_lost is not None

    @property
    def _why_lost(self) -> str | None:
        return None if self._lock is None else self._lock.why_lost

    def raise_if_lost(self) -> None:
        """Call it before each write to OUT. Raises: CheckpointError when this process no longer owns OUT."""
        if (why := self._why_lost) is not None:
            raise CheckpointError(why)

    def begin(self, *, step: int, max_steps: int | None, parent: str | None, skip_steps: Sequence[str] = ()) -> None:
        """Record in run.json that the run trains from `step`. Raises: CheckpointError when OUT cannot be written."""
        now = _now()
        self._before = self.recorded()
        self._run = {
            "state": "running",
            "step": step,
            "max_steps": max_steps,
            "started": self._before.get("started", now),
            "updated": now,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "command": in_shell(self._command),
            "parent": parent,
            **({"skip_steps": list(skip_steps)} if skip_steps else {}),
            **program(),
        }
        with writing_out(self.path):
            self._write()

    def record(
        self, state: str, *, step: int | None = None, error: str | None = None, exit_code: int | None = None, **facts: Any
    ) -> None:
        """Record a state in run.json, and facts such as `world`; does nothing before `begin`.

        exit_code: where it is not the usual one of the state.
        """
        if self._run is not None:
            with self._writing:
                code = USUAL_CODES[state] if exit_code is None else exit_code
                ends = {} if code is None else {"exit_code": code}
                self._run |= {"state": state, **ends, "updated": _now(), **facts}
                if step is not None:
                    self._run["step"] = step
                if error is not None:
                    self._run["error"] = escaped(error)
                self._write_or_report()

    def record_saved(self, step: int) -> None:
        """Record a checkpoint of this step in run.json."""
        assert self._run is not None
        with self._writing:
            self._run |= {"step": step, "updated": _now()}
            self._write_or_report()

    def record_refusal(self, error: str, exit_code: int) -> None:
        """Record that a start failed before it trained; a run that was finished or preempted stays so."""
        if self._run is not None and self._before.get("state") in ("finished", "preempted"):
            self._run = self._before
            self._write_or_report()
        else:
            self.record("failed", error=error, exit_code=exit_code)

    def finished_at(self, train: TrainConfig) -> int | None:
        """The step at which the run is finished, by run.json and also by these options; else None."""
        recorded = self._before if self._run is not None else self.recorded()
        step = recorded.get("step")
        if recorded.get("state") != "finished" or not isinstance(step, int):
            return None
        same_end = recorded.get("max_steps") == train.max_steps and recorded.get("max_epochs") == train.max_epochs
        ends = (train.max_epochs is not None and same_end) or (train.max_steps is not None and step >= train.max_steps)
        return step if ends else None

    @property
    def has_ended(self) -> bool:
        """Whether the end is recorded: whatever happens to processes of the run later changes nothing."""
        return self.has_finished or (self._run is not None and self._run["state"] == "preempted")

    @property
    def has_finished(self) -> bool:
        return self._run is not None and self._run["state"] == "finished"

    def recorded(self) -> dict[str, Any]:
        """The content of run.json; empty where there is none. Raises: CheckpointError."""
        path, advice = self.path / RUN, "delete it, a run needs only its checkpoints"
        content = read_object(path, advice) or {}
        if not isinstance(content.get("parent"), str | None):
            raise CheckpointError(f"{path} has no path as parent: {advice}")
        return content

    def _write_or_report(self) -> None:
        if self.is_lost:
            return  # `raise_if_lost` reports that
        try:
            self._write()
        except OSError as failure:  # not raised, so as not to hide the error of the run, such as a full disk
            self._report(f"{self.path / RUN} cannot be written: {failure.strerror}")

    def _write(self) -> None:
        replace_file(self.path / RUN, [json.dumps(self._run, indent=2).encode(), b"\n"])


def refuse_no_files(out: Path) -> None:
    """Refuse an OUT where something else has the name of a file. Raises: CheckpointError."""
    for name in FILES:
        if (out / name).exists() and not (out / name).is_file():
            raise CheckpointError(f"{out / name} is not a file: remove it, or give another --output-dir")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
