"""JSON that a run has stored, checked against the type that it is to have, since anything may have happened to a file."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal

from stream_pretrain.errors import CheckpointError

_LARGEST = 2**63


def stored(kind: Any, value: Any, where: str) -> Any:
    """The value as what it stands for: dataclasses from objects, tuples from lists; numbers are those of 64 bits.

    Raises: CheckpointError that names the place, for what is of another type.
    """
    origin, parameters = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in parameters:
            return None
        [kind] = [member for member in parameters if member is not types.NoneType]
        return stored(kind, value, where)
    if origin is Literal and isinstance(value, str) and value in parameters:
        return value
    if origin in (list, tuple) and isinstance(value, list):
        return origin(stored(parameters[0], item, f"{where}[{number}]") for number, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: stored(parameters[1], item, f"{where}.{name}") for name, item in value.items()}
    if kind is Any or (kind is int and type(value) is int and -_LARGEST <= value < _LARGEST):
        return value
    if kind in (str, bool) and type(value) is kind:
        return value
    if kind is float and type(value) in (int, float):
        return value
    shown = repr(value)
    raise _unusable(f"{where} is {shown if len(shown) <= 40 else shown[:40] + '…'}")


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _unusable(f"{where} is not a JSON object")
    fields, kinds = {field.name: field for field in dataclasses.fields(kind)}, typing.get_type_hints(kind)
    for name in value:
        if name not in fields:
            raise CheckpointError(f"{where} has {name!r}, which this version does not know: use the version it is from")
    for name, field in fields.items():
        if name not in value and field.default is field.default_factory is dataclasses.MISSING:
            raise _unusable(f"{where} lacks {name}")
    return kind(**{name: stored(kinds[name], item, f"{where}.{name}") for name, item in value.items()})


def _unusable(what: str) -> CheckpointError:
    return CheckpointError(f"{what}: that is not what a run writes; use another checkpoint")
