"""OUT: its owner, run.json, and where a start resumes from."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from stream_pretrain import exit_codes
from stream_pretrain.config import ALIASES, Config, TrainConfig, defaults, fixed_options, flatten, steps_to_skip, without_places
from stream_pretrain.data.lanes.stream_state import CURSOR_VERSION
from stream_pretrain.errors import CheckpointError
from stream_pretrain.non_utf8_names import escaped, in_shell
from stream_pretrain.training.files.atomic_files import replace_file, writing_out
from stream_pretrain.training.files.atomic_folders import repair
from stream_pretrain.training.files.lock import held, why_lost
from stream_pretrain.training.files.manifest import json_of
from stream_pretrain.training.files.out_files import CHECKPOINTS, FILES, METRICS, MODEL, RUN
from stream_pretrain.training.files.retried_reads import read_object
from stream_pretrain.training.files.versions import program
from stream_pretrain.training.start.auto_learning_rate import Chosen, chosen_for
from stream_pretrain.training.start.kept_defaults import in_words, kept_options, with_options
from stream_pretrain.training.start.passed_steps import Passed, is_passed, passed_in, steps_in_words
from stream_pretrain.training.state.checkpoint import checkpoints_in, latest, newest_intact, read_trainer, verify
from stream_pretrain.urls import HIDDEN

USUAL_CODES = {
    "running": None,
    "preempted": exit_codes.RESUMES,
    "finished": exit_codes.FINISHED,
    "failed": exit_codes.FAILED,
}
"""Exit codes by state; after a kill the state is still `running`."""


class RunDirectory:
    """OUT, for the process that owns it: the first rank."""

    def __init__(self, path: Path, command: Sequence[str], report: Callable[[str], None], lock: int | None = None) -> None:
        """lock: the open descriptor of OUT/lock."""
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
        return None if self._lock is None else why_lost(self.path, self._lock)

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
            self._report(f"{self.path / 'run.json'} cannot be written: {failure.strerror}")

    def _write(self) -> None:
        replace_file(self.path / RUN, [json.dumps(self._run, indent=2).encode(), b"\n"])


def refuse_no_files(out: Path) -> None:
    """Refuse an OUT where something else has the name of a file. Raises: CheckpointError."""
    for name in FILES:
        if (out / name).exists() and not (out / name).is_file():
            raise CheckpointError(f"{out / name} is not a file: remove it, or give another --output-dir")


@dataclass(frozen=True)
class Start:
    """Where a run starts or resumes."""

    step: int
    checkpoint: Path | None
    """None: from step 0."""
    parent: str | None
    """The checkpoint of another run that this one began from."""
    chosen: Chosen
    """The values of `auto`."""
    passed: Passed = ()
    """Steps whose rows are read and not trained on."""
    kept: Mapping[str, Any] = field(default_factory=dict)
    """Options that keep the default of the first start, by dotted name."""

    def applied(self, config: Config) -> Config:
        """The options of this start."""
        return self.chosen.applied(with_options(config, self.kept))


def decide_start(config: Config, out: RunDirectory, report: Callable[[str], None], command: Sequence[str]) -> Start:
    """Follow --resume, and record the run as running. Called by the owner of OUT. Raises: CheckpointError."""
    start = found_start(config, out, report, command)
    max_steps = start.applied(config).train.max_steps
    out.begin(step=start.step, max_steps=max_steps, parent=start.parent, skip_steps=steps_in_words(start.passed))
    return start


def found_start(config: Config, out: RunDirectory, report: Callable[[str], None], command: Sequence[str]) -> Start:
    """Follow --resume, without a record; where this process does not own OUT, without a change.

    auto resumes from the newest intact checkpoint; no refuses a used OUT; a PATH begins a new run from that checkpoint, which
    the same command resumes later.
    Raises: CheckpointError, also for a changed fixed option.
    """
    resume, path = config.run.resume, out.path
    if out.is_owned:
        with writing_out(path):
            repair(path / MODEL)
    recorded = out.recorded()
    has_checkpoints = any((path / CHECKPOINTS).glob("step-*"))
    used = has_checkpoints or (path / MODEL).exists() or _size(path / METRICS) > 0
    if not recorded and not has_checkpoints and (path / MODEL).exists():
        raise CheckpointError(f"{path / 'model'} would be replaced, but no run wrote it: give another --output-dir")
    if resume == "no":
        if used:
            raise CheckpointError(f"{path} has a run: resume it with --resume auto, or give another --output-dir")
        parent = None
    elif resume == "auto":
        parent = recorded.get("parent")
    else:
        parent = str(Path(resume).resolve())
        if used and recorded.get("parent") != parent:
            raise CheckpointError(f"{path} has another run, and --resume {resume} begins a new one: give another --output-dir")
    checkpoint = latest(path / CHECKPOINTS, report) if out.is_owned else _seen(path / CHECKPOINTS, report)
    if checkpoint is None and parent is not None:
        checkpoint = Path(parent)
        if not os.path.isfile(checkpoint / "trainer.json"):  # False for a name that is too long, unlike Path.is_file
            raise CheckpointError(
                f"{checkpoint} is not a checkpoint: give auto, no, or a folder such as OUT/checkpoints/step-00001000"
            )
        verify(checkpoint)
    step, kept, chosen = 0, dict[str, Any](), chosen_for(config)
    passed = passed_in(recorded, path / RUN)  # of a start that has not saved yet
    if checkpoint is not None:
        trainer = read_trainer(checkpoint)
        new_out = path if not used else _unused(path)
        new_run = _new_run(config, trainer["fixed"], command, checkpoint, new_out)
        refuse_other_version(checkpoint, trainer, "resume with", f", or {new_run}")
        kept = kept_options(config, trainer, checkpoint)
        _refuse_drift(with_options(config, kept), trainer["fixed"], checkpoint, new_out, command)
        for line in in_words(config, kept):
            report(line)
        step, chosen = trainer["step"], Chosen.from_json(trainer.get("chosen"), f"{checkpoint / 'trainer.json'}: chosen")
        passed = tuple(dict.fromkeys((*passed_in(trainer, checkpoint / "trainer.json"), *passed)))
    skipped = steps_to_skip(config.train.skip_steps)
    if skipped is not None and skipped not in passed:
        done = range(skipped.start, min(skipped.stop, step + 1))
        if (trained := next((one for one in done if not is_passed(passed, one)), None)) is not None:
            raise CheckpointError(_stands_behind(config, step, trained, path, command))
        passed = (*passed, skipped)
    return Start(step, checkpoint, parent, chosen, passed, kept)


def _seen(checkpoints: Path, report: Callable[[str], None]) -> Path | None:
    """The checkpoint that the owner of OUT would resume from. Raises: CheckpointError."""
    checkpoint, damaged = newest_intact(checkpoints)
    for reason in damaged.values():
        report(f"{reason}; a start falls back to {checkpoint and checkpoint.name}")
    return checkpoint


def refuse_other_version(checkpoint: Path, trainer: Mapping[str, Any], instead: str, otherwise: str = "") -> None:
    """Refuse cursors of another version, which would lead to other rows. Raises: CheckpointError.

    instead: what to do with the version that wrote them; otherwise: what else.
    """
    version = json_of(checkpoint / "stream.json").get("version")
    if version != CURSOR_VERSION:
        writer = trainer.get("versions", {}).get("stream_pretrain", "of the version that wrote it")
        raise CheckpointError(
            f"{checkpoint} has cursors of version {version}, this program reads version {CURSOR_VERSION}: {instead} "
            f"stream_pretrain {writer}{otherwise}"
        )


def _refuse_drift(config: Config, was: dict[str, Any], checkpoint: Path, new_out: Path, command: Sequence[str]) -> None:
    """Compare the fixed options with those of the checkpoint. Raises: CheckpointError."""
    changed = changed_options(config, was)
    if changed:
        lines = [f"  --{name.replace('_', '-')}: was {before}, is {now}" for name, (before, now) in changed.items()]
        raise CheckpointError(
            f"{checkpoint} was trained with options that must not change in a run:",
            *lines,
            f"put them back, or {_new_run(config, _with_usual(config, was), command, checkpoint, new_out)}",
        )


def changed_options(config: Config, was: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fixed options that differ from those of a checkpoint, by dotted name: what they were, and are."""
    now = without_places(json.loads(json.dumps(fixed_options(config))))
    may_change = flatten(config).keys() - now.keys()
    was = _with_usual(config, was)
    names = sorted((was.keys() | now.keys()) - may_change)
    return {name: (was.get(name), now.get(name)) for name in names if was.get(name) != now.get(name)}


def _with_usual(config: Config, was: Mapping[str, Any]) -> dict[str, Any]:
    """The fixed options of a checkpoint; an option newer than it had its default."""
    usual = {name: value for name, value in defaults(config).items() if name in fixed_options(config)}
    return without_places({**usual, **was})


def _stands_behind(config: Config, step: int, trained: int, out: Path, command: Sequence[str]) -> str:
    """The error where a step to pass over is trained on already, with the command for a run that passes over it."""
    option = f"--train.skip-steps {config.train.skip_steps}"
    fault = f"{option}: the run is at step {step:,}, and has trained on step {trained:,}"
    before = [path for of_step, path in checkpoints_in(out / CHECKPOINTS) if of_step < trained]
    if not before:
        return f"{fault}; {out} has no checkpoint before it: give --resume one that is, and another --output-dir"
    new = _command(command, {"resume": str(before[-1]), "output-dir": str(_unused(out))})
    return f"{fault}; begin a new run before it{_secrets(new)}: {new}"


def _new_run(config: Config, was: Mapping[str, Any], command: Sequence[str], checkpoint: Path, out: Path) -> str:
    """Advice and command for a new run with the same options, from the weights of the checkpoint, in its own folder."""
    replaced = {"resume": config.run.resume != "auto" and "auto", "init-from": str(checkpoint), "output-dir": str(out)}
    replaced |= {"skip-steps": False, "train.skip-steps": False}  # of other rows
    why = ""
    if was.get("train.seed") == config.train.seed:
        replaced["seed"] = str(config.train.seed + 1)
        why = " with another seed, since the same one repeats documents and masks"
    new = _command(command, replaced)
    return f"start a new run from its weights{why}{_secrets(new)}: {new}"


def _secrets(command: str) -> str:
    return f" (put the secrets back in place of {HIDDEN})" if HIDDEN in command else ""


def _command(command: Sequence[str], replaced: Mapping[str, str | Literal[False]]) -> str:
    """The command with other values of options by their short names; False: without the option."""
    names = {f"--{name.replace('_', '-')}" for short in replaced for name in (short, ALIASES.get(short, short))}
    kept: list[str] = []
    words = iter(command)
    for word in words:
        option, equals, _ = word.partition("=")
        if option.replace("_", "-") not in names:
            kept.append(word)
        elif not equals:
            next(words, None)
    return in_shell([*kept, *(word for short, value in replaced.items() if value for word in (f"--{short}", value))])


def _unused(out: Path) -> Path:
    number = 2
    while (candidate := Path(f"{out}-{number}")).exists():
        number += 1
    return candidate


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
