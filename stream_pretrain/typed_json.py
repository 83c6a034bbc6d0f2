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


def from_json(kind: Any, value: Any, where: str) -> Any:
    """The value as `kind`: dataclasses from objects, tuples from lists, integers of 64 bits.

    where: the file and the place in it, for the error. Raises: CheckpointError for a value of another type.
    """
    try:
        return _reader(kind)(value)
    except _WrongError as error:
        raise CheckpointError(f"{where}{error.place} {error.what}") from error


class _WrongError(Exception):
    """What is wrong, and where in the value."""

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(what, place)
        self.what, self.place = what, place

    def inside(self, place: str) -> _WrongError:
        return _WrongError(self.what, place + self.place)


_Reader = Callable[[Any], Any]


@cache  # every field of every shard is read
def _reader(kind: Any) -> _Reader:
    origin, parameters = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _record(kind)
    if origin in (typing.Union, types.UnionType):
        return _union([_reader(member) for member in parameters if member is not types.NoneType], types.NoneType in parameters)
    if origin is Literal:
        return _scalar(lambda value: value in parameters, str)
    if origin in (list, tuple):
        return _items(origin, _reader(parameters[0]))
    if origin is dict:
        return _values(_reader(parameters[1]))
    if kind is Any:
        return lambda value: value
    if kind is int:
        return _scalar(lambda value: -(2**63) <= value < 2**63, int)
    if kind is float:
        return _scalar(math.isfinite, float)
    assert kind in (str, bool), kind
    return _scalar(lambda _: True, kind)


def _scalar(is_right: Callable[[Any], bool], kind: type) -> _Reader:
    def read(value: Any) -> Any:
        if type(value) is kind and is_right(value):
            return value
        raise _wrong(value)

    return read


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
        if type(value) is not list:
            raise _wrong(value)
        found: list[Any] = []
        try:
            for item in value:
                found.append(read(item))
        except _WrongError as error:
            raise error.inside(f"[{len(found)}]") from error
        return container(found)

    return read_all


def _values(read: _Reader) -> _Reader:
    def read_all(value: Any) -> Any:
        if type(value) is not dict:
            raise _wrong(value)
        found: dict[str, Any] = {}
        for name, item in value.items():
            try:
                found[name] = read(item)
            except _WrongError as error:
                raise error.inside(f".{name}") from error
        return found

    return read_all


def _record(kind: Any) -> _Reader:
    hints = typing.get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}
    needed = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]

    def read(value: Any) -> Any:
        if type(value) is not dict:
            raise _wrong(value)
        found = {}
        for name, item in value.items():
            if name not in readers:
                raise _WrongError("is not known to this version: use the version that wrote it", f".{name}")
            try:
                found[name] = readers[name](item)
            except _WrongError as error:
                raise error.inside(f".{name}") from error
        for name in needed:
            if name not in found:
                raise _WrongError("is missing: use another checkpoint", f".{name}")
        return kind(**found)

    return read


def _wrong(value: Any) -> _WrongError:
    shown = repr(value)
    shown = shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}…"
    return _WrongError(f"is {shown}, which no run writes: use another checkpoint")
