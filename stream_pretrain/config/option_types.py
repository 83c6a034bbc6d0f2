"""The types of options: those of their fields."""

from __future__ import annotations

import numbers
import typing
from types import NoneType, UnionType
from typing import Any, Literal

from stream_pretrain.errors import ConfigError


def members(kind: Any) -> tuple[Any, ...]:
    """The members of a union; else the type alone."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, UnionType) else (kind,)


def expected(kind: Any) -> str:
    """A type in words."""
    return " or ".join(map(_in_words, members(kind)))


def shown(value: Any) -> str:
    """A value in words, without what a mapping or list may hide."""
    names = {dict: "a mapping", list: "a list", tuple: "a tuple of others", NoneType: "nothing"}
    return names.get(type(value), repr(value))


def refuse_other_types(options: Any, where: str) -> None:
    """Refuse what only Python can give: values of another type than their field, and words that are no choice.

    Raises: ConfigError.
    """
    for name, kind in typing.get_type_hints(type(options)).items():
        value, option = getattr(options, name), where + (name.replace("_", "-") if where.endswith(".") else name)
        if not _is_of(value, kind):
            raise ConfigError(f"{option} is {shown(value)}, not {expected(kind)}")
        if typing.get_origin(kind) is tuple:
            for record in value:
                refuse_other_types(record, f"{option}: ")


def _is_of(value: Any, kind: Any) -> bool:
    origin, parameters = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return isinstance(value, str) and value in parameters
    if origin is tuple:
        return isinstance(value, tuple) and all(isinstance(one, parameters[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is_of(one, parameters[1]) for one in value.values())
    if origin is not None:
        return any(_is_of(value, member) for member in members(kind))
    if kind in (int, float):
        return isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
    return isinstance(value, kind)


def _in_words(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        words = typing.get_args(kind)
        return str(words[0]) if len(words) == 1 else f"one of {', '.join(words)}"
    if typing.get_origin(kind) is tuple:
        return f"a tuple of {typing.get_args(kind)[0].__name__}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "none"}
    return names.get(kind, "a mapping")
