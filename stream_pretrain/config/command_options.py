"""Options of single commands, which are not options of a run; declared like those."""

from __future__ import annotations

from typing import Any

COMMAND_GROUPS: dict[str, Any] = {}
"""The dataclass of each group of options that one command alone takes."""
