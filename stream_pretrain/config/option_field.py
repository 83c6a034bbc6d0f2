"""What is known of an option beside its type and its default, all of it said where the option is declared."""

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
) -> Any:
    """A field of a group of options; a plain field is an option without any of these.

    short: a second name, without its group.
    synonyms: what other programs call it, with spaces between: not accepted, but answered by the name of this option.
    required_or: the run needs this option, or the one named here.
    variable: of the environment, which counts where the option is not given.
    bounds: of a number; a fraction is from 0 to 1. None and a word, such as auto, are not checked.
    may_change: at a resume; what may not decides which rows a step sees, or what is learnt from them.
    secret: what may have a secret in it: a URL, or storage options.
    """
    metadata = {
        "short": short,
        "synonyms": tuple(synonyms.split()),
        "required_or": required_or,
        "variable": variable,
        "bounds": bounds,
        "may_change": may_change,
        "secret": secret,
    }
    return dataclasses.field(default=default, metadata=metadata)
