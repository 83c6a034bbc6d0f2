"""`--help`: all options, or those of a group. No heavy imports."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import pkgutil
import shutil
import textwrap
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from stream_pretrain import commands
from stream_pretrain.arguments import TYPES, suggestion
from stream_pretrain.config import GROUPS, Config, flatten, help_texts, usual_name
from stream_pretrain.errors import ConfigError

PROGRAM = "stream-pretrain"
WIDEST = 100

EXAMPLE = """\
  stream-pretrain --dataset 'data/*.jsonl.zst' --model bert-base-uncased \\
      --max-steps 10000 --output-dir runs/first"""

FLAGS = {
    "--config FILE.yaml": "Options from a file, nested, dotted or short; the command line overrides them.",
    "--help [GROUP]": "Show all options, or those of one group.",
    "--version": "Print the version.",
    "--debug": "Show the traceback of an error.",
}


def command_names() -> list[str]:
    """Names of the commands."""
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__)]


def groups_of(command: str) -> Sequence[str]:
    """The groups of options of a command, read from its source: importing it takes seconds."""
    [path] = commands.__path__
    source = ast.parse((Path(path) / f"{command.replace('-', '_')}.py").read_bytes())
    [groups] = [
        ast.literal_eval(line.value)
        for line in source.body
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "GROUPS"
    ]
    return tuple(groups)


def help_of(command: str, group: str | None) -> str:
    """The help of a command, or of one group of its options. Raises: ConfigError for another group."""
    groups = groups_of(command)
    if group is not None:
        if group not in groups:
            raise ConfigError(f"no group {group}{suggestion(group, groups, '')}; --help takes {', '.join(groups)}")
        return "\n".join(_group(group))
    return "\n".join([*_introduction(command, groups), *(line for group in groups for line in ("", *_group(group)))])


def _introduction(command: str, groups: Sequence[str]) -> Iterator[str]:
    yield f"usage: {PROGRAM} [COMMAND] [--OPTION VALUE ...]"
    yield from ("", "example:", EXAMPLE, "")
    yield from _wrapped(f"Commands: {', '.join(command_names())}; without one, train. These are the options of {command}.")
    yield from _wrapped(
        f"Groups: {', '.join(groups)}. Where two names are shown, both are accepted. "
        f"{PROGRAM} --help {groups[0]} shows one group."
    )
    yield ""
    for flag, text in FLAGS.items():
        yield from (f"  {flag}", *_wrapped(text, 6))


def _group(group: str) -> Iterator[str]:
    yield from _wrapped(f"{group}: {inspect.getdoc(GROUPS[group])}")
    default = flatten(Config())
    for field in dataclasses.fields(GROUPS[group]):
        name = f"{group}.{field.name}"
        option = name.replace("_", "-")
        names = ", ".join(dict.fromkeys((f"--{usual_name(option)}", f"--{option}")))
        other = field.metadata.get("required_or")
        yield f"  {names} {_metavar(TYPES[option])}" + (f"   required, or {other}" if other else "")
        usual = "none" if default[name] in (None, []) else json.dumps(default[name]).strip('"')
        variable = field.metadata.get("variable")
        also = f"; or the variable {variable}" if variable else ""
        yield from _wrapped(f"{help_texts()[option]} (default: {usual}{also})", 6)


def _wrapped(text: str, indent: int = 0) -> list[str]:
    width = max(40, min(WIDEST, shutil.get_terminal_size().columns))
    return textwrap.wrap(text, width, initial_indent=" " * indent, subsequent_indent=" " * indent)


def _metavar(kind: Any) -> str:
    """The placeholder for the value of an option."""
    if typing.get_origin(kind) is Literal:
        return "|".join(typing.get_args(kind))
    names = {int: "INTEGER", float: "NUMBER", bool: "[true|false]", str: "TEXT"}
    if typing.get_origin(kind) is tuple:
        return "JSON"
    return names[kind] if kind in names else "|".join(_metavar(part) for part in typing.get_args(kind) if part is not NoneType)
