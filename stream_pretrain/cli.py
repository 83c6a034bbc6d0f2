"""The command line: argv and YAML files to a Config, a Config to a command. The only module that prints or exits.

    --config FILE.yaml ──┐
                         ├──> --group.option=value ... ──> tyro ──> Config ──> validate ──> commands/NAME.py
    argv ────────────────┘

Both are brought into one form, the files in front, so that one parser checks them and the command line wins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import importlib.metadata
import io
import json
import os
import pkgutil
import sys
import typing
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import yaml

from stream_pretrain import commands
from stream_pretrain.config import ALIASES, Config, secrets_of, validate
from stream_pretrain.errors import ConfigError, StreamPretrainError
from stream_pretrain.names import escaped
from stream_pretrain.redaction import HIDDEN, Secrets, printable, redacted_options, redacted_sources, redacted_url
from stream_pretrain.terminal import ClearStream, clear_stderr, show_traceback, unfailing_stderr
from stream_pretrain.training.launcher import tell_launcher

PROGRAM = "stream-pretrain"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, what the command returns, 1 run error, 2 usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        # The client of Weights & Biases records what is there.
        sys.argv[1:] = map(escaped, _without_secrets(arguments))
    with unfailing_stderr(), clear_stderr(Secrets.of(_values(arguments), [], os.environ)) as stderr:
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
            raise ConfigError(f"unknown command {command}{_suggest(command, _commands(), '')}; see {PROGRAM} --help")
    if "--help" in options or "-h" in options:
        _print_help()
        return 0
    if "--version" in options:
        print(importlib.metadata.version("stream_pretrain"))
        return 0
    config = parse(options)
    stderr.secrets = secrets_of(config, os.environ)
    validate(config)
    from stream_pretrain.training.preemption import stop_on_signals

    with stop_on_signals() as stop:  # before torch is imported, which takes seconds
        module = importlib.import_module(f"{commands.__name__}.{command.replace('-', '_')}")
        code: int = module.run(config, [PROGRAM, *_without_secrets(arguments)], stop)
    return code


def parse(arguments: Sequence[str]) -> Config:
    """The Config of the arguments and of the YAML files they name.

    Raises:
        ConfigError: an option is unknown (with the nearest name), lacks its value, or has one that is not of its type.
    """
    from_files: list[_Option] = []
    from_line: list[_Option] = []
    for name, value in _split(arguments):
        if name == "config":
            from_files += _read_file(Path(value))
            if any(option.name == "model.trust-remote-code" for option in from_files):
                raise ConfigError(
                    f"--config {value}: model.trust-remote-code is only taken from the command line, since it runs what a "
                    "model brings: give --model.trust-remote-code there"
                )
        else:
            from_line.append(_Option(_resolve(name, ""), value, ""))
    given = [f"--{option.name}={_normalize(option)}" for option in from_files + from_line]
    config = _parse_quietly(given)
    if config is None:
        wrong = next(
            option for option, argument in zip(from_files + from_line, given, strict=True) if _parse_quietly([argument]) is None
        )
        raise ConfigError(f"{wrong.origin}--{wrong.name}: {wrong.value!r} is not {_expected(_TYPES[wrong.name])}")
    return config


@dataclasses.dataclass(frozen=True)
class _Option:
    name: str
    """Dotted, with hyphens."""
    value: str
    origin: str
    """What an error message begins with: the file the option is from."""


def _option_types() -> dict[str, Any]:
    """The type of every option, by its dotted name with hyphens."""
    groups = typing.get_type_hints(Config)
    return {
        f"{group}.{name}".replace("_", "-"): kind
        for group, options in groups.items()
        for name, kind in typing.get_type_hints(options).items()
    }


_TYPES = _option_types()
_GROUPS = {name.split(".")[0] for name in _TYPES}
_DOTTED = {alias: name.replace("_", "-") for alias, name in ALIASES.items()}


def _split(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names and values of `--name=value`, `--name value` and, for booleans, the bare `--name`."""
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("--"):
            raise ConfigError(f"unexpected argument {argument}: options are --name=value")
        name, has_value, value = argument[2:].partition("=")
        name = name.replace("_", "-")
        if name == "debug" and not has_value:
            continue
        if not has_value:
            if name != "config" and _TYPES[_resolve(name, "")] is bool:
                is_next = bool(remaining) and remaining[0].lower() in ("true", "false")
                value = remaining.pop(0) if is_next else "true"
            elif remaining and not remaining[0].startswith("--"):
                value = remaining.pop(0)
            else:
                raise ConfigError(f"--{name} needs a value")
        yield name, value


def _values(arguments: Sequence[str]) -> list[str]:
    """The words of a command line that may be values: what follows `=`, and what stands alone."""
    return [argument.partition("=")[2] if argument.startswith("--") else argument for argument in arguments]


def _without_secrets(arguments: Sequence[str]) -> list[str]:
    """The arguments with `…` in place of secrets, as they may be recorded and shown."""
    shown: list[str] = []
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            shown.append(f"{name}={_redacted(name, value)}" if equals else name)
        else:
            shown.append(_redacted(name, argument))
    return shown


def _redacted(argument: str, value: str) -> str:
    name = argument.removeprefix("--").replace("_", "-")
    if name == "data.storage-options":
        return redacted_options(value)
    if name != "data.sources":
        return redacted_url(value)
    try:
        records = json.loads(value)
        redacted = redacted_sources(records)
    except (ValueError, TypeError, AttributeError):  # an error that is told as soon as the options are read
        return HIDDEN
    return value if redacted == records else json.dumps(redacted, ensure_ascii=False)


class _Loader(yaml.BaseLoader):
    """Values are text: YAML's own types would turn 0012345 into 5349 and no into false. No key is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise ConfigError(f"{node.start_mark.name}: line {key.start_mark.line + 1}: {name} is given twice")
            seen.add(name)
        return super().construct_mapping(node, deep)


def _read_file(path: Path) -> list[_Option]:
    """The options of a YAML file."""
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return []
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: a mapping of options to values is needed")
    options = list(_flatten(content, "", f"{path}: "))
    for name, count in Counter(option.name for option in options).items():
        if count > 1:
            raise ConfigError(f"{path}: {name} is given twice, under different names")
    return options


def _flatten(mapping: dict[str, Any], prefix: str, origin: str) -> Iterator[_Option]:
    for key, value in mapping.items():
        name = f"{prefix}{key}".replace("_", "-")
        if name in _GROUPS and value in ("", "~", "null"):
            continue
        if isinstance(value, dict) and name in _GROUPS:
            yield from _flatten(value, f"{name}.", origin)
            continue
        if isinstance(value, dict) and name not in {*_TYPES, *_DOTTED}:
            raise ConfigError(f"{origin}unknown group {name}{_suggest(name, sorted(_GROUPS), '')}")
        option = _resolve(name, origin)
        if _record_type(option) is not None:
            value = json.dumps(value)
        if not isinstance(value, str):
            raise ConfigError(f"{origin}{name} takes one value, not a list or mapping; quote it if that is its text")
        yield _Option(option, value if value not in ("", "~") else "null", origin)


def _resolve(name: str, origin: str) -> str:
    """The dotted name of an option or alias."""
    dotted = _DOTTED.get(name, name)
    if dotted in _TYPES:
        return dotted
    raise ConfigError(f"{origin}unknown option --{name}{_suggest(name, [*_DOTTED, *_TYPES], '--')}")


def _suggest(name: str, known: Sequence[str], prefix: str) -> str:
    """The nearest valid name: one that ends with it, else one spelt alike."""
    nearest = [option for option in known if option.endswith(f".{name}")] or difflib.get_close_matches(name, known, 1, 0.5)
    if not nearest:  # a misspelt option without its group
        spelt = {option.rpartition(".")[2]: option for option in known}
        nearest = [spelt[last] for last in difflib.get_close_matches(name, spelt, 1)]
    return f"; did you mean {prefix}{nearest[0]}?" if nearest else ""


def _normalize(option: _Option) -> str:
    """The value as the parser takes it: any case of true, false and none, and whole numbers such as 1e4."""
    record = _record_type(option.name)
    if record is not None:
        return json.dumps([dataclasses.asdict(made) for made in _records(option, record)])
    value, kinds = option.value, _kinds(_TYPES[option.name])
    if bool in kinds and value.lower() in ("true", "false"):
        return value.capitalize()
    if NoneType in kinds and value.lower() in ("none", "null"):
        return "None"
    if int in kinds:
        with contextlib.suppress(ValueError):
            if float(value).is_integer() and not value.strip().lstrip("+-").isdigit():
                return str(int(float(value)))
    return value


def _record_type(name: str) -> Any:
    """The dataclass of an option that is a list of records; None for other options."""
    kind = _TYPES[name]
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None


def _records(option: _Option, kind: Any) -> list[Any]:
    """The records of an option whose value is a JSON list of objects. Raises ConfigError for what is not one."""
    where = f"{option.origin}--{option.name}"
    try:
        value = json.loads(option.value)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, list) or not all(isinstance(record, dict) for record in value):
        raise ConfigError(f"{where}: a list of records is needed, such as [{{{_example(kind)}}}]")
    return [_record(record, kind, f"{where}: record {number}") for number, record in enumerate(value, start=1)]


def _example(kind: Any) -> str:
    return ", ".join(f'"{name}": ...' for name in _required(kind))


def _required(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]


def _record(record: dict[str, Any], kind: Any, where: str) -> Any:
    types = typing.get_type_hints(kind)
    values = {}
    for key, value in record.items():
        name = key.replace("-", "_")
        if name not in types:
            raise ConfigError(f"{where}: unknown key {key}{_suggest(name, list(types), '')}")
        values[name] = _value(value, types[name], f"{where}: {key}")
    if missing := [name for name in _required(kind) if name not in values]:
        raise ConfigError(f"{where}: {missing[0]} is missing")
    return kind(**values)


def _value(value: Any, kind: Any, where: str) -> Any:
    """A value of a record, which is text where it comes from a YAML file."""
    if typing.get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: a mapping is needed")
        return {name: _value(inner, typing.get_args(kind)[1], f"{where}: {name}") for name, inner in value.items()}
    kinds = _kinds(kind)
    if NoneType in kinds and (value is None or (isinstance(value, str) and value.lower() in ("", "~", "null", "none"))):
        return None
    if any(typing.get_origin(member) is Literal and value in typing.get_args(member) for member in kinds):
        return value
    with contextlib.suppress(ValueError):
        if str in kinds and isinstance(value, str):
            return value
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            if int in kinds and float(value).is_integer():
                return int(float(value))
            if float in kinds:
                return float(value)
    shown = f"a {'mapping' if isinstance(value, dict) else 'list'}" if isinstance(value, dict | list) else repr(value)
    raise ConfigError(f"{where}: {shown} is not {_expected(kind)}")


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The members of a union."""
    return typing.get_args(kind) if typing.get_origin(kind) not in (None, Literal) else (kind,)


def _expected(kind: Any) -> str:
    """A type in words."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "none"}
    return " or ".join(
        f"one of {', '.join(typing.get_args(member))}"
        if len(typing.get_args(member)) > 1
        else typing.get_args(member)[0]
        if typing.get_args(member)
        else names[member]
        for member in _kinds(kind)
    )


def _parse_quietly(arguments: Sequence[str]) -> Config | None:
    """The Config, or None where the parser refuses; what it would draw around its reason is dropped."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            return _tyro(arguments, console_outputs=False)
        except SystemExit:
            return None


def _tyro(arguments: Sequence[str], **options: Any) -> Config:
    """The parser, which takes a list of records as one JSON argument."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        if info.type_origin is not tuple or not dataclasses.is_dataclass(typing.get_args(info.type)[0]):
            return None
        kind: Any = typing.get_args(info.type)[0]
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="JSON",
            instance_from_str=lambda texts: tuple(kind(**record) for record in json.loads(texts[0])),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: [json.dumps([dataclasses.asdict(record) for record in value])],
        )

    with registry:
        config: Config = tyro.cli(Config, args=arguments, config=(tyro.conf.FlagConversionOff,), **options)
    return config


def _commands() -> list[str]:
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__)]


def _print_help() -> None:
    width = max(map(len, _DOTTED))
    description = [
        f"Commands: {', '.join(_commands())}; without one, train.",
        "",
        "Short names:",
        *(f"  --{alias:{width}}  --{dotted}" for alias, dotted in _DOTTED.items()),
        "",
        "  --config FILE.yaml  options from a file, nested or dotted; the command line overrides them",
        "  --version           print the version",
        "  --debug             show the traceback of an error",
    ]
    with contextlib.suppress(SystemExit):
        _tyro(["--help"], prog=f"{PROGRAM} [COMMAND]", description="\n".join(description))
