"""The declaration of an option: everything about it beside its type stands at its field."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Bounds = Literal["positive", "not negative", "fraction"]
Secret = Literal["url", "keys"]


def option(
    default: Any = dataclasses.MISSING,
    *,
    short: str | None = None,
    synonyms: str = "",
    required_or: str | None = None,
    variable: str | None = None,
    bounds: Bounds | None = None,
    may_change: bool = False,
    secret: Secret | None = None,
    is_path: bool = False,
) -> Any:
    """A field of a group of options; a plain field is an option without any of these.

    short: a second name, without the group.
    synonyms: names in other programs, separated by spaces; not accepted, but the error suggests this option.
    required_or: the run needs this option or the one named here.
    variable: environment variable that is used where the option is not given.
    bounds: of a number; a fraction is from 0 to 1. None and words such as auto are not checked.
    may_change: at a resume; other options are fixed: they decide which rows a step sees, or what is learnt from them.
    secret: the kind of value that may contain a secret: a URL, or storage options.
    is_path: whether the value may be a path, or @ and a path: a `~` is the home folder. A dataset knows that by itself.
    """
    metadata = {
        "short": short,
        "synonyms": tuple(synonyms.split()),
        "required_or": required_or,
        "variable": variable,
        "bounds": bounds,
        "may_change": may_change,
        "secret": secret,
        "is_path": is_path,
    }
    return dataclasses.field(default=default, metadata=metadata)
