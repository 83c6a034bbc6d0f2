"""Units of bytes."""

from __future__ import annotations

KIB, MIB, GIB = 1024, 1024**2, 1024**3
