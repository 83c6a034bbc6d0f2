"""Where a start resumes from: --resume, the checkpoints of OUT, and the options that must not have changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stream_pretrain.config import SHORT, Config, defaults, fixed_options, flatten, steps_to_skip, without_places
from stream_pretrain.errors import CheckpointError
from stream_pretrain.non_utf8_names import in_shell
from stream_pretrain.training.files.atomic_files import writing_out
from stream_pretrain.training.files.atomic_folders import repair
from stream_pretrain.training.files.out_files import CHECKPOINTS, MODEL, RUN
from stream_pretrain.training.files.run_directory import RunDirectory
from stream_pretrain.training.start.first_checks import is_used, refuse_no_checkpoint, refuse_used
from stream_pretrain.training.start.kept_defaults import in_words, kept_options, with_options
from stream_pretrain.training.state.auto_learning_rate import Chosen, chosen_for
from stream_pretrain.training.state.checkpoint import checkpoints_in, latest, newest_intact, verify
from stream_pretrain.training.state.passed_steps import Passed, is_passed, passed_in, steps_in_words
from stream_pretrain.training.state.trainer_state import read_fixed_options, read_trainer_state, refuse_other_version
from stream_pretrain.urls import HIDDEN


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
    start = find_start(config, out, report, command)
    max_steps = start.applied(config).train.max_steps
    out.begin(step=start.step, max_steps=max_steps, parent=start.parent, skip_steps=steps_in_words(start.passed))
    return start


def find_start(config: Config, out: RunDirectory, report: Callable[[str], None], command: Sequence[str]) -> Start:
    """Follow --resume, without a record; where this process does not own OUT, without a change.

    auto resumes from the newest intact checkpoint; no refuses a used OUT; a PATH begins a new run from that checkpoint, which
    the same command resumes later.
    Raises: CheckpointError, also for a changed fixed option.
    """
    path, recorded = out.path, out.recorded()
    if out.is_owned:
        with writing_out(path):
            repair(path / MODEL)
    has_checkpoints = any((path / CHECKPOINTS).glob("step-*"))
    if not recorded and not has_checkpoints and (path / MODEL).exists():
        raise CheckpointError(f"{path / MODEL} would be replaced, but no run wrote it: give another --output-dir")
    parent = _parent(config.run.resume, path, recorded.get("parent"))
    checkpoint = latest(path / CHECKPOINTS, report) if out.is_owned else _seen(path / CHECKPOINTS, report)
    if checkpoint is None and parent is not None:
        checkpoint = Path(parent)
        refuse_no_checkpoint(checkpoint)
        verify(checkpoint)
    if checkpoint is None and (path / MODEL).exists():
        raise CheckpointError(
            f"{path} has the model of a run, {path / MODEL}, and none of its checkpoints: the run would begin again at step 0 "
            f"and replace that; give another --output-dir, or delete {path}"
        )
    step, kept, chosen = 0, dict[str, Any](), chosen_for(config)
    passed = passed_in(recorded.get("skip_steps", []), f"{path / RUN}: skip_steps")  # of a start that has not saved yet
    if checkpoint is not None:
        new_out = _unused(path) if is_used(path) else path
        new_run = _new_run(config, read_fixed_options(checkpoint), command, checkpoint, new_out)
        refuse_other_version(checkpoint, "resume with", f", or {new_run}")
        trainer = read_trainer_state(checkpoint)
        kept = kept_options(config, trainer.defaults, checkpoint)
        _refuse_drift(with_options(config, kept), trainer.fixed, checkpoint, new_out, command)
        for line in in_words(config, kept):
            report(line)
        step, chosen = trainer.step, trainer.chosen
        passed = tuple(dict.fromkeys((*trainer.passed, *passed)))
    skipped = steps_to_skip(config.train.skip_steps)
    if skipped is not None and skipped not in passed:
        done = range(skipped.start, min(skipped.stop, step + 1))
        if (trained := next((one for one in done if not is_passed(passed, one)), None)) is not None:
            raise CheckpointError(_already_trained(config, step, trained, path, command))
        passed = (*passed, skipped)
    return Start(step, checkpoint, parent, chosen, passed, kept)


def _parent(resume: str, out: Path, recorded: str | None) -> str | None:
    """The checkpoint of another run to begin from, by --resume and by run.json. Raises: CheckpointError."""
    if resume == "auto":
        return recorded
    if resume == "no":
        refuse_used(out)
        return None
    parent = str(Path(resume).resolve())
    if is_used(out) and recorded != parent:
        raise CheckpointError(f"{out} has another run, and --resume {resume} begins a new one: give another --output-dir")
    return parent


def _seen(checkpoints: Path, report: Callable[[str], None]) -> Path | None:
    """The checkpoint that the owner of OUT would resume from. Raises: CheckpointError."""
    checkpoint, damaged = newest_intact(checkpoints)
    for reason in damaged.values():
        report(f"{reason}; a start falls back to {checkpoint and checkpoint.name}")
    return checkpoint


def _refuse_drift(config: Config, was: dict[str, Any], checkpoint: Path, new_out: Path, command: Sequence[str]) -> None:
    """Compare the fixed options with those of the checkpoint. Raises: CheckpointError."""
    changed = changed_options(config, was)
    if changed:
        lines = [
            f"  --{name.replace('_', '-')}: was {_as_given(before)}, is {_as_given(now)}"
            for name, (before, now) in changed.items()
        ]
        raise CheckpointError(
            f"{checkpoint} was trained with options that must not change in a run:",
            *lines,
            f"put them back, or {_new_run(config, _with_usual(config, was), command, checkpoint, new_out)}",
        )


def _as_given(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value, ensure_ascii=False)


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


def _already_trained(config: Config, step: int, trained: int, out: Path, command: Sequence[str]) -> str:
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
    names = {f"--{name}" for short in replaced for name in (short, SHORT.get(short, short))}
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
