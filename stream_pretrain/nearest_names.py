"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
import os
from pathlib import Path


def did_you_mean(name: object) -> str:
    """A question that ends a message; empty without a name."""
    return f"; did you mean {name}?" if name else ""


def nearest_path(name: Path) -> Path | None:
    """The path on this machine that is spelt much like this one; None where there is none."""
    found = Path()
    for part in name.parts:
        if not os.path.lexists(found / part):
            try:
                near = difflib.get_close_matches(part, os.listdir(found), 1)
            except OSError:  # a folder that cannot be listed has nothing to suggest
                return None
            if not near:
                return None
            part = near[0]
        found /= part
    return found
