"""Units of bytes, and numbers, lists and tables as people read them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

KIB, MIB, GIB = 1024, 1024**2, 1024**3

_UNITS = {"": 1, "%": 0.01, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_COMMAS = r"[1-9]\d{0,2}(?:,\d{3})+"
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
QUOTES = "\"'\u201c\u201d\u201e\u2018\u2019\u201a\u00ab\u00bb"
"""Those of a keyboard, and what text processors make of them."""


def human_count(number: float) -> str:
    """A number in at most four characters and a letter: 950, 1.2k, 34M."""
    return _scaled(number, ("", "k", "M", "G", "T"))


def human_bytes(number: float) -> str:
    """Bytes in decimal units: 950 B, 1.2 kB, 34 MB."""
    return _scaled(number, (" B", " kB", " MB", " GB", " TB", " PB"))


def counted(number: int, what: str, plural: str = "s") -> str:
    """A number of things: 1 document, 2,000 documents."""
    return f"{number:,} {what}{'' if number == 1 else plural}"


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


def is_grouped(value: str) -> bool:
    """Whether a number has points where the language of a text may have them between thousands: 10.000."""
    return re.fullmatch(r"[1-9]\d{0,2}(\.\d{3})+", value) is not None


def plain_number(value: str, *, integer: bool) -> str | None:
    """A number without a unit, commas or typography: 10k as 10000 (integer), 15% as 0.15; None for anything else."""
    text = re.sub(f"[{DASHES}]", "-", value.strip(f" ,;{QUOTES}"))
    if integer and is_grouped(text):
        return text.replace(".", "")
    if not integer and not re.fullmatch(_COMMAS, text):
        text = re.sub(r"^(-?\d+),(?=\d)", r"\1.", text)
    match = re.fullmatch(rf"({_COMMAS}|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?) ?(%|[kmgt]i?b?)?", text, re.IGNORECASE)
    if match is None:
        return None
    unit = (match[2] or "").lower().removesuffix("b")
    number = float(match[1].replace(",", "")) * _UNITS[unit]
    fits = number.is_integer() and unit != "%" if integer else unit in ("", "%")
    return f"{number:.15g}" if fits else None


def _scaled(number: float, units: tuple[str, ...]) -> str:
    power = 0
    while abs(number) >= 999.5 and power + 1 < len(units):
        number, power = number / 1000, power + 1
    decimals = 1 if power > 0 and abs(number) < 9.95 else 0
    return f"{number:.{decimals}f}{units[power]}"
