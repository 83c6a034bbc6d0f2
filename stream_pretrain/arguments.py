"""Parses the command line, the YAML files that it names and the environment into a Config.

All give names and values; the command line wins over files, files over the environment. `_value` converts values to the types
of options, whether from the command line, a file or a JSON record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import yaml

from stream_pretrain.config import ALL_GROUPS, FLAGS, GROUPS, NAMES, SYNONYMS, TYPES, Config, fields_of, resolve, suggestion
from stream_pretrain.config.option_types import expected, members, shown
from stream_pretrain.errors import ConfigError
from stream_pretrain.units import DASHES, QUOTES, is_grouped, plain_number


@dataclasses.dataclass(frozen=True)
class Invocation:
    """What a command was given."""

    config: Config
    """The options of a run."""
    own: Mapping[str, Any]
    """The options of single commands, one dataclass a group of `COMMAND_GROUPS`."""
    operands: tuple[str, ...]
    """Arguments that are no options, such as the folder of a run."""
    typed: frozenset[str]
    """Options given on the command line, by dotted name with hyphens."""
    as_json: bool
    """--json: the result is one JSON object on stdout."""
    dry_run: bool
    """--dry-run: what a run with these options would do, and nothing is trained."""
    command: tuple[str, ...] = ()
    """The words of the command line without secrets, to show how a run is begun."""


def parse(arguments: Sequence[str]) -> Config:
    """The options of a run, as `invocation` has them."""
    return invocation(arguments, {}).config


def invocation(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    operands: bool = False,
    takes: Callable[[str], bool] = lambda _: True,
) -> Invocation:
    """What the arguments, the YAML files that they name and the environment give to a command.

    operands: whether the command takes arguments that are no options.
    takes: whether it takes an option, by dotted name: others are not suggested.
    Raises: ConfigError for an option that is unknown (with a suggestion), given twice, without a value or of a wrong type.
    """
    from_files: list[_Option] = []
    from_line: list[_Option] = []
    typed: dict[str, tuple[str, str]] = {}
    taken = [argument for argument in arguments if argument not in ("--json", "--dry-run", "--debug")]
    words = list(_split(taken, operands, takes))
    for name, value in words:
        if name is None:
            continue
        if name == "config":
            from_files += _read_file(value)
            if any(option.name == "model.trust-remote-code" for option in from_files):
                raise ConfigError(
                    f"--config {value}: model.trust-remote-code runs code of a model: give it on the command line only"
                )
        else:
            dotted = NAMES[name]
            if dotted in typed:
                first, was = typed[dotted]
                twice = f"--{name} is given twice" if name == first else f"--{first} and --{name} are the same option"
                several = None if value == was else _several(value, name)
                raise ConfigError(f"{twice}: {several or 'leave one of them out'}")
            typed[dotted] = name, value
            from_line.append(_Option(dotted, value, ""))
    groups: dict[str, dict[str, Any]] = {group: {} for group in ALL_GROUPS}
    fields = fields_of(ALL_GROUPS)
    for option in [*_of_environment(environment), *from_files, *from_line]:
        group, _, name = option.name.replace("-", "_").partition(".")
        where = f"{option.origin}--{option.name}"
        value = _value(option.value, TYPES[option.name], where)
        groups[group][name] = _path(value, fields[f"{group}.{name}"], where)
    given = {option.name.replace("-", "_") for option in from_files + from_line}
    built = {name: ALL_GROUPS[name](**values) for name, values in groups.items()}
    return Invocation(
        config=Config(
            **{name: built[name] for name in GROUPS},
            given=frozenset(name for name in given if name.partition(".")[0] in GROUPS),
        ),
        own={name: options for name, options in built.items() if name not in GROUPS},
        operands=tuple(value for name, value in words if name is None),
        typed=frozenset(typed),
        as_json="--json" in arguments,
        dry_run="--dry-run" in arguments,
    )


@dataclasses.dataclass(frozen=True)
class _Option:
    name: str
    """Dotted, with hyphens."""
    value: Any
    """Text; from a file also None, and records."""
    origin: str
    """Where the option is from, at the begin of an error."""


def _of_environment(environment: Mapping[str, str]) -> Iterator[_Option]:
    for name, option in fields_of(ALL_GROUPS).items():
        variable = option.metadata.get("variable")
        if variable is not None and environment.get(variable):
            yield _Option(name.replace("_", "-"), environment[variable], f"{variable}: ")


def _split(arguments: Sequence[str], operands: bool, takes: Callable[[str], bool]) -> Iterator[tuple[str | None, str]]:
    """The name of an option and its value, from `--name=value`, `--name value` or a bare `--name`; operands have no name."""
    remaining = list(arguments)
    last = ""
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("-") and operands:
            yield None, argument
            continue
        if not argument.startswith("--"):
            raise ConfigError(_unexpected(argument, last))
        name, has_value, value = argument[2:].partition("=")
        name = name.replace("_", "-")
        if name in FLAGS and name != "config":
            raise ConfigError(f"--{name} takes no value")
        is_boolean = name != "config" and TYPES[resolve(name, takes=takes)] is bool
        if not has_value:
            if is_boolean:
                is_next = bool(remaining) and remaining[0].lower() in ("true", "false")
                value = remaining.pop(0) if is_next else "true"
            elif remaining and not remaining[0].startswith("--"):
                value = remaining.pop(0)
        if not value and (name == "config" or not has_value):
            raise ConfigError(f"--{name} needs a value")
        last = name
        yield name, value


def _unexpected(argument: str, last: str) -> str:
    """The error for an argument that is not an option, after the option `last`."""
    if (said := misplaced(argument, last)) is not None:
        return said
    if not last or last == "config":
        return f"unexpected argument {argument}: options are --name=value"
    if TYPES[NAMES[last]] is bool:
        return f"--{last}: {argument!r} is not true or false"
    return (
        f"unexpected argument {argument}: --{last} takes one value; {_several(argument, last) or 'quote one that has spaces'}"
    )


def misplaced(argument: str, last: str = "") -> str | None:
    """The error for an argument that names an option or a file, after the option `last`; None for other arguments."""
    path = Path(argument.removeprefix("@"))
    if path.suffix in (".yaml", ".yml"):
        return f"{argument} is a file of options: give --config {path}"
    if _exists(Path(argument)):
        if last in NAMES and TYPES[NAMES[last]] is not bool:  # not after --config
            return f"--{last} takes one value, but {argument} follows: {_several(argument, last)}"
        return f"{argument} is a file or folder: give --dataset {argument}"
    named = argument.lstrip(f" \u00a0-+{DASHES}")  # +: in other programs
    name = re.split("[=:]", named, maxsplit=1)[0]
    known = name.replace("_", "-") in ({*NAMES, *FLAGS} if name == argument else {*NAMES, *FLAGS, *SYNONYMS})
    if known and (name != argument or not last):
        value = re.sub("^: *", "=", named[len(name) :])
        return f"unexpected argument {argument}: the names of options begin with two hyphens, --{name}{value}"
    return None


def _several(value: str, option: str) -> str | None:
    """What to do where another value of an option is given, if it is one of several paths or datasets."""
    path = Path(value)
    if value and _exists(path):
        pattern = path.parent / f"*{''.join(path.suffixes)}"
        return f"if the shell has expanded a pattern, quote it: '{pattern}'"
    if NAMES[option] in ("data.dataset", "eval.dataset"):
        return f"list several in a file, one a line, and give --{option} @FILE"
    return None


def _exists(path: Path) -> bool:
    with contextlib.suppress(OSError):  # too long for a name
        return path.exists()
    return False


class _Loader(yaml.BaseLoader):
    """Values are text: the types of YAML would turn 0012345 into 5349 and no into false. Duplicate keys are refused."""

    def construct_scalar(self, node: yaml.ScalarNode) -> str | None:  # type: ignore[override]
        """None for a missing value or `~`; quoted, they are text."""
        return None if node.style is None and node.value in ("", "~") else super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise ConfigError(f"{node.start_mark.name}: line {key.start_mark.line + 1}: {name} is given twice")
            seen.add(name)
        return super().construct_mapping(node, deep)


def _read_file(name: str) -> list[_Option]:
    path = Path(name) if _exists(Path(name)) else Path(os.path.expanduser(name))
    if "://" in name:
        raise ConfigError(f"--config {name}: give a file on this machine")
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"--config {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {name} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except (yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split())
        what_to_do = next((f"; {what}" for sign, what in _MISTAKES.items() if sign in said), "")
        raise ConfigError(f"--config {name} is not YAML: {said}{what_to_do}") from error
    if content is None:
        return []
    if not isinstance(content, dict):
        raise ConfigError(f"--config {name}: a mapping of options to values is needed, such as max-steps: 1000")
    options = list(_flatten(content, "", f"{path}: "))
    for name, count in Counter(option.name for option in options).items():
        if count > 1:
            raise ConfigError(f"{path}: {name} is given twice, under different names")
    return options


_MISTAKES = {
    r"'\t'": "indent with spaces, not tabs",
    "that cannot start any token": "quote a value that begins with a sign",
    "alias": "quote a value that begins with a sign",
    "unknown escape": "use single quotes, in which a backslash is nothing special",
    "mapping values are not allowed": "quote a value with a colon in it, and indent all options of a group alike",
    "but found another document": "give each document as a --config of its own",
}
"""What to do, by what the parser says."""


def _flatten(mapping: dict[str, Any], prefix: str, origin: str) -> Iterator[_Option]:
    for key, value in mapping.items():
        if str(key).startswith("--"):
            raise ConfigError(f"{origin}{key}: in a file the name is {key.lstrip('-')}")
        if key == "<<":
            raise ConfigError(f"{origin}{prefix}<<: nothing is merged here: write the options out")
        name = f"{prefix}{key}".replace("_", "-")
        if name in FLAGS:
            raise ConfigError(f"{origin}{name} is for the command line only")
        if name in ALL_GROUPS and value in (None, "null"):
            continue
        if isinstance(value, dict) and name in ALL_GROUPS:
            yield from _flatten(value, f"{name}.", origin)
            continue
        if name in ALL_GROUPS and name not in NAMES:
            raise ConfigError(f"{origin}{name} is a group: give its options below it, or one as {name}.OPTION")
        if isinstance(value, dict) and name not in NAMES:
            raise ConfigError(f"{origin}unknown group {name}{suggestion(name, [*ALL_GROUPS]) or _there_are(GROUPS)}")
        option = resolve(name, origin)
        if isinstance(value, dict | list) and _record_type(TYPES[option]) is None:
            several = _SEVERAL.get(option) or "quote it if that is its text"
            raise ConfigError(f"{origin}{name} takes one value, not a list or mapping; {several}")
        yield _Option(option, value, origin)


def _there_are(names: Iterable[str]) -> str:
    return f"; there are {', '.join(names)}"


_SEVERAL = {
    "data.dataset": "data.sources has several, with weights, @FILE a list in a file",
    "eval.dataset": "eval.sets has several",
}


def _value(value: Any, kind: Any, where: str) -> Any:
    """A value of this type, from text, where whole numbers may be written 1e4, or from JSON.

    Raises: ConfigError that begins with `where`.
    """
    if (record := _record_type(kind)) is not None:
        return _records(value, record, where)
    if typing.get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: a mapping is needed")
        return {name: _value(inner, typing.get_args(kind)[1], f"{where}: {name}") for name, inner in value.items()}
    kinds = members(kind)
    word = value.lower() if isinstance(value, str) else value
    if any(typing.get_origin(member) is Literal and value in typing.get_args(member) for member in kinds):
        return value
    if NoneType in kinds and word in (None, "none", "null"):
        return None
    if bool in kinds and word in ("true", "false"):
        return word == "true"
    if str in kinds and isinstance(value, str):
        return value
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        if int in kinds and (whole := _whole_number(value)) is not None:
            return whole
        with contextlib.suppress(ValueError):
            if float in kinds:
                return float(value)
    is_number = isinstance(value, str) and {int, float} & set(kinds)
    instead = f": give {plain}" if is_number and (plain := plain_number(value, integer=int in kinds)) else ""
    raise ConfigError(f"{where}: {shown(value)} is not {expected(kind)}{instead}")


def _path(value: Any, option: dataclasses.Field[Any], where: str) -> Any:
    """A path with the home folder in place of `~`; other values as they are.

    Raises: ConfigError for quotes and variables, which only a shell would take away or replace.
    """
    is_path, secret = option.metadata.get("is_path"), option.metadata.get("secret")
    if not isinstance(value, str) or not (is_path or secret == "url"):
        return value
    if secret == "keys" and not value.startswith("@"):  # JSON, which may have spaces around it, and is not to be shown
        return value
    if (bare := value.strip(f"{QUOTES} \t\n")) != value and bare and not _exists(Path(value)):
        raise ConfigError(f"{where} {value!r}: the quotes or spaces around it are part of the value: give {bare}")
    if "://" in value:
        return value
    if (variable := re.search(r"\$(\w+|\{\w+\})", value)) is not None and not _names_what_is_there(value):
        raise ConfigError(f"{where} {value}: {variable[0]} is not replaced by its value here: write that in its place")
    if is_path and value.startswith(("~", "@~")) and not _exists(Path(value)):  # an earlier version made such a folder
        at = value[: value.index("~")]
        return f"{at}{os.path.expanduser(value[len(at) :])}"
    return value


def _names_what_is_there(path: str) -> bool:
    """Whether a file or folder is there, or the one that the pattern begins with, `$` and all."""
    folder = os.path.dirname(re.split(r"[*?[]", path, maxsplit=1)[0])
    return _exists(Path(path.removeprefix("@"))) or ("$" in folder and _exists(Path(folder)))


def _whole_number(value: str | float) -> int | None:
    with contextlib.suppress(ValueError):
        if isinstance(value, str):
            return None if is_grouped(value) else int(value)
    with contextlib.suppress(ValueError):
        if float(value).is_integer():
            return int(float(value))
    return None


def _record_type(kind: Any) -> Any:
    """The dataclass of an option with a list of records; None for other options."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None


def _records(value: Any, kind: Any, where: str) -> tuple[Any, ...]:
    """Records from a list of mappings, or from JSON. Raises: ConfigError."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, list) or not all(isinstance(record, dict) for record in value):
        example = ", ".join(f'"{name}": ...' for name in _required(kind))
        raise ConfigError(f"{where}: a list of records is needed, such as [{{{example}}}]")
    return tuple(_record(record, kind, f"{where}: record {number}") for number, record in enumerate(value, start=1))


def _required(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]


def _record(record: dict[str, Any], kind: Any, where: str) -> Any:
    types, fields = typing.get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}
    values = {}
    for key, value in record.items():
        name = key.replace("-", "_")
        if name not in types:
            raise ConfigError(f"{where}: unknown key {key}{suggestion(name, [*types]) or _there_are(types)}")
        values[name] = _path(_value(value, types[name], f"{where}: {key}"), fields[name], f"{where}: {key}")
    if missing := [name for name in _required(kind) if name not in values]:
        raise ConfigError(f"{where}: {missing[0]} is missing")
    return kind(**values)
