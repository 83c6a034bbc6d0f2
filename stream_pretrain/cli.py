"""The command line: argv and YAML files to an Invocation, an Invocation to a command. The only module that prints to stdout.

--config FILE.yaml ──┐
                     ├──> arguments.py ──> Invocation ──> validate ──> commands/NAME.py
argv ────────────────┘
"""

from __future__ import annotations

import codecs
import importlib
import importlib.metadata
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from stream_pretrain import commands, exit_codes
from stream_pretrain.arguments import Invocation, invocation, misplaced
from stream_pretrain.commands import Answer
from stream_pretrain.config import (
    SYNONYMS,
    Config,
    instead,
    refuse_unusable_values,
    run_directory,
    secrets_of,
    suggestion,
    validate,
)
from stream_pretrain.errors import ConfigError, StreamPretrainError
from stream_pretrain.help import PROGRAM, Declaration, command_names, declaration_of, help_of
from stream_pretrain.non_utf8_names import escaped
from stream_pretrain.redaction import Secrets, printable
from stream_pretrain.shown_commands import of_the_run, values_of, without_secrets
from stream_pretrain.terminal import ClearStream, clear_stderr, show_traceback, unfailing_stderr
from stream_pretrain.training.files.out_files import CHECKPOINTS
from stream_pretrain.training.ranks.launcher import tell_launcher
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.report.stop_messages import stopped


def main(argv: Sequence[str] | None = None, before_command: Callable[[], None] = lambda: None) -> int:
    """Run one command; returns an exit code of `exit_codes`.

    before_command: called when the command takes over, with handlers of its own for signals.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        # The client of Weights & Biases records sys.argv.
        sys.argv[1:] = map(escaped, without_secrets(arguments))
    with unfailing_stderr(), clear_stderr(Secrets.of(values_of(arguments), [], os.environ)) as stderr:
        try:
            return _run(arguments, stderr, before_command)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return exit_codes.of_stopped_process("SIGINT")
        except Exception as error:  # a bug too: shown here, where text is searched for secrets
            is_for_user = isinstance(error, StreamPretrainError)
            if not is_for_user or "--debug" in arguments:
                show_traceback(error)
            if is_for_user:
                print("error:", "\n".join(printable(str(line)) for line in error.args), file=sys.stderr)
            tell_launcher(stderr.secrets.hide(f"{type(error).__name__}: {error}"), exit_codes.of_error(error))
            return exit_codes.of_error(error)


def _run(arguments: list[str], stderr: ClearStream, before_command: Callable[[], None]) -> int:
    command = "train"
    options = arguments
    if arguments and not arguments[0].startswith("-"):
        command, options = arguments[0], arguments[1:]
        if command not in command_names():
            near = suggestion(command, command_names())
            raise ConfigError(misplaced(command) or f"unknown command {command}{near}; see {PROGRAM} --help")
    for place, argument in enumerate(options, start=1):
        flag, _, group = argument.partition("=")
        if flag in ("--help", "-h"):
            after = [group] if group else options[place : place + 1]
            return _print(help_of(command, next((word for word in after if not word.startswith("-")), None)))
    if "--version" in options:
        return _print(importlib.metadata.version("stream_pretrain"))
    declared = declaration_of(command)
    given = invocation(options, os.environ, operands=bool(declared.operands), takes=declared.takes)
    if given.dry_run:
        if command != "train":
            raise ConfigError(f"{command} has no option --dry-run, which is for the command of a run")
        declared = replace(declared, groups=(*declared.groups, "inspect"))
    _refuse_foreign(given, command, declared)
    stderr.secrets = secrets_of(given.config, os.environ)
    validate(given.config, declared.needed)
    for group, options_of_command in given.own.items():
        refuse_unusable_values(options_of_command, f"--{group}.")
    stderr.begin_log()
    if given.dry_run:
        _refuse_at_once(given.config)
        command, arguments = "inspect", of_the_run(arguments)
    given = replace(given, command=(PROGRAM, *without_secrets(arguments)))
    if command == "train":
        return _train(given.config, given.command, before_command)
    _refuse_misuse(declared.own[0], given)
    before_command()
    progress = Progress(sys.stderr)
    answer: Answer = _module(command, progress).run(given, progress)
    if given.as_json:
        return _print(json.dumps(answer.record, ensure_ascii=_encoding() != "utf-8")) or answer.exit_code
    return _print("\n".join(answer.lines)) or answer.exit_code


def _refuse_foreign(given: Invocation, command: str, declared: Declaration) -> None:
    """Refuse what the command does not take. A file may have options for other commands too. Raises: ConfigError."""
    for name in sorted(given.typed):
        if not declared.takes(name):
            last = name.rpartition(".")[2]
            if last in SYNONYMS and declared.takes(SYNONYMS[last]):  # as --steps of ledger is for train
                raise ConfigError(f"unknown option --{last}{instead(last)}")
            raise ConfigError(f"{command} has no option --{name}; see {PROGRAM} {command} --help")
    if given.as_json and not declared.own:
        raise ConfigError(f"{command} has no option --json; see {PROGRAM} {command} --help")


def _module(command: str, progress: Progress) -> ModuleType:
    with progress.phase("importing torch and transformers"):
        return importlib.import_module(f"{commands.__name__}.{command.replace('-', '_')}")


def _train(config: Config, given: Sequence[str], before_command: Callable[[], None]) -> int:
    """Start or resume a run, with signals that stop it, and what can be refused at once refused."""
    from stream_pretrain.training.ranks.signals import stop_on_signals

    before_command()
    with stop_on_signals() as stop:  # before torch is imported, which takes seconds
        progress = Progress(sys.stderr if os.environ.get("RANK", "0") == "0" else None)
        stop.answer(lambda name: _leave(name, run_directory(config), given, progress), exit_codes.of_stopped_process)
        progress.notice(f"run folder: {run_directory(config)}")
        if os.environ.get("RANK", "0") == "0":  # the others may not see the corpus
            _refuse_at_once(config)
        code: int = _module("train", progress).run(config, given, stop)
    return code


def _refuse_at_once(config: Config) -> None:
    """What is refused before torch is imported; with a client of the Hub, which takes a moment itself."""
    from stream_pretrain.training.start.first_checks import refuse_at_once

    refuse_at_once(config)


def _refuse_misuse(group: str, given: Invocation) -> None:
    """As `_refuse_at_once`, for the other commands."""
    from stream_pretrain.command_checks import refuse_misuse

    refuse_misuse(group, given)


def _leave(name: str, out: Path, given: Sequence[str], progress: Progress) -> None:
    """End the process on a signal before the run starts."""
    progress.close()
    progress.notice(stopped(name, 0, 0, max((out / CHECKPOINTS).glob("step-*"), default=None), given))
    os._exit(exit_codes.of_stopped_start(name))


def _encoding() -> str:
    """Of stdout, by its usual name."""
    return codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name


def _print(text: str) -> int:
    """Write to stdout, what it cannot encode as escapes; returns the exit code, that of SIGPIPE for a closed pipe."""
    try:
        print(text.encode(_encoding(), "backslashreplace").decode(_encoding()), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        if isinstance(error, BrokenPipeError):
            return 128 + signal.SIGPIPE
        print(f"error: stdout cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0
