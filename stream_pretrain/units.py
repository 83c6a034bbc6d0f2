"""Units of bytes, and numbers, lists and tables as people read them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

KIB, MIB, GIB = 1024, 1024**2, 1024**3

_UNITS = {"%": 0.01, "k": 1e3, "m": 1e6, "g": 1e9, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def human_count(number: float) -> str:
    """A number in at most four characters and a letter: 950, 1.2k, 34M."""
    return _scaled(number, ("", "k", "M", "G", "T"))


def human_bytes(number: float) -> str:
    """Bytes in decimal units: 950 B, 1.2 kB, 34 MB."""
    return _scaled(number, (" B", " kB", " MB", " GB", " TB", " PB"))


def human_duration(seconds: float) -> str:
    """Seconds in the two units that matter: 0.2 s, 45 s, 3m05s, 3h12m, 2d04h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    minutes = whole // 60
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    return f"{minutes // 1440}d{minutes % 1440 // 60:02}h"


def first_of(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list, and how many more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Cells of a table in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()


def without_unit(value: str, *, integer: bool) -> str | None:
    """A number with commas or a unit in plain form, 10k as 10000 (integer) or 15% as 0.15; None for anything else."""
    match = re.fullmatch(r"(\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?) ?(%|[kmg](?:i?b)?)?", value.strip(), re.IGNORECASE)
    if match is None or not (match[2] or "," in match[1]) or (match[2] == "%") is integer:
        return None
    return f"{float(match[1].replace(',', '')) * _UNITS.get((match[2] or '').lower(), 1):.12g}"


def _scaled(number: float, units: tuple[str, ...]) -> str:
    power = 0
    while abs(number) >= 999.5 and power + 1 < len(units):
        number, power = number / 1000, power + 1
    decimals = 1 if power > 0 and abs(number) < 9.95 else 0
    return f"{number:.{decimals}f}{units[power]}"
