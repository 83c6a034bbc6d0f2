"""`--help`: the options of a command, or those of a group; what a command declares. No heavy imports."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import pkgutil
import shutil
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from stream_pretrain import commands
from stream_pretrain.config import (
    ALL_GROUPS,
    COMMAND_GROUPS,
    FLAGS,
    NAMES,
    SYNONYMS,
    TYPES,
    fields_of,
    help_texts,
    suggestion,
    usual_name,
)
from stream_pretrain.errors import ConfigError

PROGRAM = "stream-pretrain"
WIDEST = 100


@dataclass(frozen=True)
class Declaration:
    """What a command takes, as the constants of its module say: GROUPS, NEEDED and so on."""

    summary: str
    """First line of the docstring, after the name of the command."""
    groups: tuple[str, ...]
    """Groups of options."""
    needed: tuple[str, ...]
    """Options of a run that it cannot do without, see `validation.NEEDED`."""
    example: str
    """A command line."""
    also: tuple[str, ...] = ()
    """Single options of other groups."""
    operands: str = ""
    """The arguments that are no options, for people; empty for none."""

    def takes(self, option: str) -> bool:
        """Whether it takes an option, by dotted name with hyphens."""
        return option.partition(".")[0] in self.groups or option in self.also

    @property
    def own(self) -> tuple[str, ...]:
        """Groups that no other command takes. A command that has one prints a result, and takes --json."""
        return tuple(group for group in self.groups if group in COMMAND_GROUPS)


def command_names() -> list[str]:
    """Names of the commands."""
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__)]


def declaration_of(command: str) -> Declaration:
    """What a command declares, read from its source: importing it takes seconds."""
    [path] = commands.__path__
    source = ast.parse((Path(path) / f"{command.replace('-', '_')}.py").read_bytes())
    names = {field.name.upper(): field.name for field in dataclasses.fields(Declaration)}
    declared = {
        names[name]: ast.literal_eval(line.value)
        for line in source.body
        if isinstance(line, ast.Assign) and (name := ast.unparse(line.targets[0])) in names
    }
    return Declaration(summary=(ast.get_docstring(source) or "").partition("\n")[0].partition(": ")[2], **declared)


def help_of(command: str, name: str | None) -> str:
    """The help of a command, or of one group or option that it takes. Raises: ConfigError for another name."""
    declared = declaration_of(command)
    if name in declared.groups:
        return "\n".join(_group(name, declared))
    if name is not None:
        hyphenated = name.replace("_", "-")
        option = NAMES.get(hyphenated) or SYNONYMS.get(hyphenated)
        if option is not None and declared.takes(option):
            return "\n".join(_option(option, declared))
        if name in command_names():
            raise ConfigError(f"{name} is a command: see {PROGRAM} {name} --help")
        near = suggestion(hyphenated, [*declared.groups, *(known for known in NAMES if declared.takes(NAMES[known]))])
        raise ConfigError(f"no group or option {name}{near}; the groups are {', '.join(declared.groups)}")
    groups = [line for group in declared.groups for line in ("", *_group(group, declared))]
    others = ["", "options of other groups:", *(line for option in declared.also for line in _option(option, declared))]
    return "\n".join([*_introduction(command, declared), *groups, *(others if declared.also else [])])


def _introduction(command: str, declared: Declaration) -> Iterator[str]:
    named = "[train]" if command == "train" else command
    operands = f" {declared.operands}" if declared.operands else ""
    yield f"usage: {PROGRAM} {named}{operands} [--OPTION VALUE ...]"
    yield from ("", *_wrapped(declared.summary[:1].upper() + declared.summary[1:]))
    yield from ("", "example:", *textwrap.indent(declared.example.strip("\n"), "  ").splitlines(), "")
    yield from _wrapped(f"Commands: {', '.join(command_names())}; without one, train. These are the options of {command}.")
    yield from _wrapped(
        f"Groups: {', '.join(declared.groups)}. Where two names are shown, both are accepted. "
        f"{PROGRAM} {'' if command == 'train' else f'{command} '}--help {declared.groups[0]} shows one group."
    )
    yield ""
    not_taken = "dry-run" if declared.own else "json"
    for flag, (value, text) in FLAGS.items():
        if flag != not_taken:
            yield from (f"  --{flag} {value}".rstrip(), *_wrapped(text, 6))


def _group(group: str, declared: Declaration) -> Iterator[str]:
    yield from _wrapped(f"{group}: {inspect.getdoc(ALL_GROUPS[group])}")
    for field in dataclasses.fields(ALL_GROUPS[group]):
        yield from _option(f"{group}.{field.name}".replace("_", "-"), declared)


def _option(option: str, declared: Declaration) -> Iterator[str]:
    dotted = option.replace("-", "_")
    field = fields_of(ALL_GROUPS)[dotted]
    names = ", ".join(dict.fromkeys((f"--{usual_name(option)}", f"--{option}")))
    other = field.metadata.get("required_or")
    required = f"   required, or {other}" if other and dotted in declared.needed else ""
    yield f"  {names} {_metavar(TYPES[option])}{required}"
    usual = "none" if field.default in (None, ()) else json.dumps(field.default).strip('"')
    variable = field.metadata.get("variable")
    also = f"; or the variable {variable}" if variable else ""
    yield from _wrapped(f"{help_texts()[option]} (default: {usual}{also})", 6)


def _wrapped(text: str, indent: int = 0) -> list[str]:
    width = max(40, min(WIDEST, shutil.get_terminal_size().columns))
    margin = " " * indent
    return textwrap.wrap(text, width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)


def _metavar(kind: Any) -> str:
    """The placeholder for the value of an option."""
    if typing.get_origin(kind) is Literal:
        return "|".join(typing.get_args(kind))
    names = {int: "INTEGER", float: "NUMBER", bool: "[true|false]", str: "TEXT"}
    if typing.get_origin(kind) is tuple:
        return "JSON"
    return names[kind] if kind in names else "|".join(_metavar(part) for part in typing.get_args(kind) if part is not NoneType)
