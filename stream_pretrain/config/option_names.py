"""What an option is called: its dotted name, its short name, its last name where it is its own, and what others call it.

All of them with hyphens, as they are typed.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections import Counter
from functools import cache

from stream_pretrain.config.options import ALIASES, GROUPS

FLAGS = ("config", "debug", "help", "version")
"""Names on a command line that are no options of a run."""

DOTTED = tuple(
    f"{group}.{option.name}".replace("_", "-") for group, options in GROUPS.items() for option in dataclasses.fields(options)
)
SHORT = {short: dotted.replace("_", "-") for short, dotted in ALIASES.items()}

_COUNTS = Counter(dotted.partition(".")[2] for dotted in DOTTED)
LAST = {
    last: dotted
    for dotted in DOTTED
    if _COUNTS[last := dotted.partition(".")[2]] == 1 and last not in (*FLAGS, *GROUPS) and SHORT.get(last) != dotted
}
"""Options by their names without the group, of those that share it with no other. A test holds the list: a new option takes no
such name away."""

NAMES: dict[str, str] = {**{dotted: dotted for dotted in DOTTED}, **LAST, **SHORT}
"""The dotted name by every name that is accepted."""

SYNONYMS: dict[str, str] = {
    synonym: f"{group}.{option.name}".replace("_", "-")
    for group, options in GROUPS.items()
    for option in dataclasses.fields(options)
    for synonym in option.metadata.get("synonyms", ())
}
"""The dotted name by what other programs call the option."""


def usual_name(dotted: str) -> str:
    """The name that an option is called by: its short one, else the last part of the dotted one, where that is its own."""
    return next((name for names in (SHORT, LAST) for name, option in names.items() if option == dotted), dotted)


@cache
def help_texts() -> dict[str, str]:
    """The docstring under each option, in one line, by its dotted name."""
    found = {}
    for group, options in GROUPS.items():
        body = ast.parse(textwrap.dedent(inspect.getsource(options))).body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                found[f"{group}.{field.target.id}".replace("_", "-")] = " ".join(ast.literal_eval(below.value).split())
    return found
