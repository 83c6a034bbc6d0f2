"""Messages of a run that is stopped: at the signal, and the last line, with the command that resumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stream_pretrain import exit_codes
from stream_pretrain.non_utf8_names import in_shell
from stream_pretrain.urls import HIDDEN


def stopping(name: str, last_step: int | None, *, alone: bool) -> str:
    """The message at the first signal.

    last_step: after which the run stops, None or 0 before its first one. alone: whether there is one rank; of several, another
    may be a step ahead.
    """
    if not last_step:
        return f"stopping before the next step; {again(name)} quits at once"
    when = f"after step {last_step:,}" if alone else "at the end of a step"
    return f"stopping {when}, then saving; {again(name)} quits without saving"


def again(name: str) -> str:
    """A second signal, in words."""
    return "Ctrl-C again" if name == "SIGINT" else f"another {name}"


def stopped(name: str, done: int, saved: int, checkpoint: Path | None, command: Sequence[str]) -> str:
    """The last line. done: the last step; saved: the step to resume from, of the checkpoint if there is one."""
    if done > saved:
        lost = f"step {done:,} is" if done == saved + 1 else f"steps {saved + 1:,} to {done:,} are"
        left = f"the last checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint"
        return f"stopped by {name} without saving: {lost} lost, {left}; resume with: {in_words(command)}"
    if checkpoint is None:
        return f"stopped by {name}; the same command starts it again: no step was done"
    return f"stopped by {name}, saved in {checkpoint}; resume with: {in_words(command)}"


def in_words(command: Sequence[str]) -> str:
    """The command that resumes, quoted for a shell."""
    program, *arguments = command
    line = in_shell(command)
    if exit_codes.is_launched():  # whose options this process does not know
        line = f"the same launcher and -m {program.replace('-', '_')} {in_shell(arguments)}"
    return f"{line} (put the secrets back in place of {HIDDEN})" if HIDDEN in line else line
