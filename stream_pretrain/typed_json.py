"""JSON that a run wrote, checked against the type it must have: a file may hold anything by now."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, Literal

from stream_pretrain.errors import CheckpointError

_MOST_SHOWN = 40
_INT64 = range(-(2**63), 2**63)


def from_json(kind: Any, value: Any, where: str) -> Any:
    """The value as `kind`: dataclasses from objects, tuples from lists, integers of 64 bits.

    where: the file and the place in it, for the error. Raises: CheckpointError for a value of another type.
    """
    try:
        return _reader(kind)(value)
    except _WrongError as error:
        place = f" {error.place.removeprefix('.')}" if where.endswith(":") and error.place else error.place
        raise CheckpointError(f"{where}{place} {error.what}") from error


class _WrongError(Exception):
    """What is wrong, and where in the value."""

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(what, place)
        self.what, self.place = what, place


_Reader = Callable[[Any], Any]


@cache  # every field of every shard is read
def _reader(kind: Any) -> _Reader:
    origin, parameters = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _record(kind)
    if origin in (typing.Union, types.UnionType):
        return _union([_reader(member) for member in parameters if member is not types.NoneType], types.NoneType in parameters)
    if origin is Literal:
        return lambda value: _checked(str, value, parameters.__contains__)
    if origin in (list, tuple):
        return _items(origin, _reader(parameters[0]))
    if origin is dict:
        read = _reader(parameters[1])
        return lambda value: {name: _inside(f".{name}", read, item) for name, item in _checked(dict, value).items()}
    if kind is Any:
        return lambda value: value
    if kind is int:
        return lambda value: _checked(int, value, _INT64.__contains__)
    if kind is float:
        return lambda value: _checked(float, value, math.isfinite)
    assert kind in (str, bool), kind
    return lambda value: _checked(kind, value)


def _union(members: list[_Reader], may_be_none: bool) -> _Reader:
    *others, last = members

    def read(value: Any) -> Any:
        if value is None and may_be_none:
            return None
        for member in others:
            with suppress(_WrongError):
                return member(value)
        return last(value)

    return read


def _items(container: Any, read: _Reader) -> _Reader:
    def read_all(value: Any) -> Any:
        items = _checked(list, value)
        return container(_inside(f"[{number}]", read, item) for number, item in enumerate(items))

    return read_all


def _record(kind: Any) -> _Reader:
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    readers = {field.name: _reader(hints[field.name]) for field in fields}
    missing = dataclasses.MISSING
    needed = [field.name for field in fields if field.default is missing and field.default_factory is missing]

    def read(value: Any) -> Any:
        for name in _checked(dict, value):
            if name not in readers:
                raise _WrongError("is not known to this version: use the version that wrote it", f".{name}")
        for name in needed:
            if name not in value:
                raise _WrongError("is missing: use another checkpoint", f".{name}")
        return kind(**{name: _inside(f".{name}", readers[name], item) for name, item in value.items()})

    return read


def _checked(kind: type, value: Any, is_right: Callable[[Any], bool] | None = None) -> Any:
    if type(value) is kind and (is_right is None or is_right(value)):
        return value
    shown = repr(value)
    shown = shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}…"
    raise _WrongError(f"is {shown}, which no run writes: use another checkpoint")


def _inside(place: str, read: _Reader, value: Any) -> Any:
    """A part of a value; an error names its place."""
    try:
        return read(value)
    except _WrongError as error:
        raise _WrongError(error.what, place + error.place) from error
