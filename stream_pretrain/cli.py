"""The command line: argv and YAML files to a Config, a Config to a command. The only module that prints or exits.

--config FILE.yaml ──┐
                     ├──> arguments.py ──> Config ──> validate ──> commands/NAME.py
argv ────────────────┘
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import itertools
import json
import os
import pkgutil
import signal
import sys
import textwrap
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from stream_pretrain import commands
from stream_pretrain.arguments import SHORT_NAMES, TYPES, parse, suggestion, values_of, without_secrets
from stream_pretrain.config import GROUPS, Config, flatten, secrets_of, validate
from stream_pretrain.errors import ConfigError, StreamPretrainError
from stream_pretrain.non_utf8_names import escaped
from stream_pretrain.redaction import Secrets, printable
from stream_pretrain.terminal import ClearStream, clear_stderr, show_traceback, unfailing_stderr
from stream_pretrain.training.launcher import tell_launcher

PROGRAM = "stream-pretrain"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, what the command returns, 1 run error, 2 usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        # The client of Weights & Biases records what is there.
        sys.argv[1:] = map(escaped, without_secrets(arguments))
    with unfailing_stderr(), clear_stderr(Secrets.of(values_of(arguments), [], os.environ)) as stderr:
        try:
            return _run(arguments, stderr)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except StreamPretrainError as error:
            if "--debug" in arguments:
                show_traceback(error)
            print("error:", "\n".join(printable(str(line)) for line in error.args), file=sys.stderr)
            tell_launcher(stderr.secrets.hide(f"{type(error).__name__}: {error}"))
            return 2 if isinstance(error, ConfigError) else 1
        except Exception as error:  # a fault of this program: shown here, where its text is searched for secrets
            show_traceback(error)
            tell_launcher(stderr.secrets.hide(f"{type(error).__name__}: {error}"))
            return 1


def _run(arguments: list[str], stderr: ClearStream) -> int:
    command = "train"
    options = arguments
    if arguments and not arguments[0].startswith("-"):
        command, options = arguments[0], arguments[1:]
        if command not in _commands():
            raise ConfigError(f"unknown command {command}{suggestion(command, _commands(), '')}; see {PROGRAM} --help")
    if "--help" in options or "-h" in options:
        return _print(_help(command))
    if "--version" in options:
        return _print(importlib.metadata.version("stream_pretrain"))
    config = parse(options)
    for name in sorted(config.given):
        if name.partition(".")[0] not in _groups(command):
            raise ConfigError(f"{command} has no option --{name.replace('_', '-')}; see {PROGRAM} {command} --help")
    stderr.secrets = secrets_of(config, os.environ)
    validate(config)
    from stream_pretrain.training.signals import stop_on_signals

    with stop_on_signals() as stop:  # before torch is imported, which takes seconds
        module = importlib.import_module(f"{commands.__name__}.{command.replace('-', '_')}")
        code: int = module.run(config, [PROGRAM, *without_secrets(arguments)], stop)
    return code


def _commands() -> list[str]:
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__)]


def _source(command: str) -> ast.Module:
    """The file of a command: to import it takes seconds."""
    [path] = commands.__path__
    return ast.parse((Path(path) / f"{command.replace('-', '_')}.py").read_bytes())


def _groups(command: str) -> Sequence[str]:
    """The groups of options that a command takes, as its file says."""
    [groups] = [
        ast.literal_eval(line.value)
        for line in _source(command).body
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "GROUPS"
    ]
    return tuple(groups)


_WIDTH = 120


def _print(text: str) -> int:
    """Write to stdout; returns the exit code, which is that of SIGPIPE where the reader has gone."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries what is left once more when it ends
        if isinstance(error, BrokenPipeError):
            return 128 + signal.SIGPIPE
        print(f"error: stdout cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _help(command: str) -> str:
    groups = _groups(command)
    short_names = {short: dotted for short, dotted in SHORT_NAMES.items() if dotted.partition(".")[0] in groups}
    width = max(map(len, short_names), default=0)
    lines = [
        f"usage: {PROGRAM} [COMMAND] [--OPTION=VALUE ...]",
        "",
        f"Commands: {', '.join(_commands())}; without one, train. These are the options of {command}.",
        "",
        "Short names:",
        *(f"  --{alias:{width}}  --{dotted}" for alias, dotted in short_names.items()),
        "",
        "  --config FILE.yaml  options from a file, nested or dotted; the command line overrides them",
        "  --version           print the version",
        "  --debug             show the traceback of an error",
        *(line for group in groups for line in _help_of(group)),
    ]
    return "\n".join(lines)


def _help_of(group: str) -> Iterator[str]:
    """The options of a group: the docstring under a field is its help."""
    kind = GROUPS[group]
    yield from ("", f"{group}: {inspect.getdoc(kind)}")
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    default = flatten(Config())
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            name = f"{group}.{field.target.id}"
            option = name.replace("_", "-")
            usual = "none" if default[name] in (None, []) else json.dumps(default[name]).strip('"')
            text = f"{inspect.cleandoc(ast.literal_eval(below.value))} (default: {usual})"
            yield f"  --{option} {_metavar(TYPES[option])}"
            yield textwrap.fill(" ".join(text.split()), _WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)


def _metavar(kind: Any) -> str:
    """What stands for the value of an option in its help."""
    if typing.get_origin(kind) is Literal:
        return "|".join(typing.get_args(kind))
    names = {int: "INTEGER", float: "NUMBER", bool: "[true|false]", str: "TEXT", NoneType: "none"}
    if typing.get_origin(kind) is tuple:
        return "JSON"
    return names[kind] if kind in names else "|".join(map(_metavar, typing.get_args(kind)))
