"""Names of an option: dotted, short, without its group where that is unique, and in other programs. All with hyphens."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
import typing
from collections import ChainMap, Counter
from functools import cache
from typing import Any

from stream_pretrain.config.command_options import COMMAND_GROUPS
from stream_pretrain.config.options import GROUPS, fields_of

FLAGS = {
    "config": ("FILE.yaml", "Options from a YAML file, by nested, dotted or short names; the command line overrides them."),
    "help": ("[GROUP|OPTION]", "Show all options, those of one group, or one."),
    "dry-run": ("", "Show where the run would begin or resume, and what `inspect` shows; nothing is trained or written."),
    "version": ("", "Print the version."),
    "debug": ("", "Show the traceback of an error."),
    "json": ("", "Print the result as one JSON object."),
}
"""The flags of the command line, which are not options of a run: the placeholder for the value of each, and its help."""

ALL_GROUPS = ChainMap(COMMAND_GROUPS, GROUPS)
"""The groups of options of a run, and those of single commands."""

_FIELDS = {name.replace("_", "-"): option for name, option in fields_of(ALL_GROUPS).items()}
DOTTED = tuple(_FIELDS)
TYPES: dict[str, Any] = {
    f"{group}.{name}".replace("_", "-"): kind
    for group, options in ALL_GROUPS.items()
    for name, kind in typing.get_type_hints(options).items()
}
"""The type of every option, by its dotted name."""
SHORT: dict[str, str] = {short: dotted for dotted, option in _FIELDS.items() if (short := option.metadata.get("short"))}
"""Short names of common options."""

_COUNTS = Counter(dotted.partition(".")[2] for dotted in DOTTED)
LAST = {
    last: dotted
    for dotted in DOTTED
    if _COUNTS[last := dotted.partition(".")[2]] == 1 and last not in (*FLAGS, *ALL_GROUPS) and SHORT.get(last) != dotted
}
"""Options by their name without the group, where that is unique. A test has the list: no new option may make one ambiguous."""

NAMES: dict[str, str] = {**{dotted: dotted for dotted in DOTTED}, **LAST, **SHORT}
"""Dotted names by every accepted name."""

SYNONYMS: dict[str, str] = {
    synonym: dotted for dotted, option in _FIELDS.items() for synonym in option.metadata.get("synonyms", ())
}
"""Dotted names by names in other programs."""


def usual_name(dotted: str) -> str:
    """The name to show for an option: the short one, else the one without the group, else the dotted one."""
    return next((name for names in (SHORT, LAST) for name, option in names.items() if option == dotted), dotted)


@cache
def help_texts() -> dict[str, str]:
    """The help of each option by its dotted name: the docstring under the field, in one line."""
    found = {}
    for group, options in ALL_GROUPS.items():
        body = ast.parse(textwrap.dedent(inspect.getsource(options))).body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                found[f"{group}.{field.target.id}".replace("_", "-")] = " ".join(ast.literal_eval(below.value).split())
    return found
