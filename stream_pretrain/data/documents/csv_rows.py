"""Where the rows of a CSV file end: at LF or CRLF, as its header does. A CR by itself is then text of a cell.

pandas ends a row at any of LF, CRLF and CR, unless it is told a single character. LF is that one for files of both kinds;
what it leaves of a CRLF, a CR behind the last cell, is taken off here.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HEAD_BYTES = 256 * 1024
"""A longer header is not looked at."""

_BLANK_LINES = re.compile(rb"[\r\n]*")

_HEADER = re.compile(rb'(?:"[^"]*"|[^\r\n])*')  # with the line ends in quoted names; two quotes are one in a name


@dataclass(frozen=True)
class CsvRows:
    """How the rows of a file are told apart."""

    options: Mapping[str, Any]
    """For pandas."""
    ends_in_crlf: bool

    def of(self, columns: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
        """The rows of some columns; lines without a cell are none."""
        names = [name.removesuffix("\r") for name in columns] if self.ends_in_crlf else list(columns)
        for values in zip(*columns.values(), strict=True):
            if not (self.ends_in_crlf and _is_blank_line(values)):
                yield dict(zip(names, values, strict=True))


def csv_rows(head: bytes, separator: str, fields: Sequence[str]) -> CsvRows:
    """How to read the rows of a file that begins with these bytes, and its `fields` as they are written.

    A file whose header ends in CR alone, or not at all, is left to pandas.
    """
    head = head.removeprefix(b"\xef\xbb\xbf")
    first = _BLANK_LINES.match(head)
    assert first is not None
    header = _HEADER.match(head, first.end())
    assert header is not None
    end = head[header.end() : header.end() + 2]
    if not (end.startswith(b"\n") or end == b"\r\n"):
        return CsvRows({"sep": separator, "converters": dict.fromkeys(fields, str)}, ends_in_crlf=False)
    crlf = end == b"\r\n"
    last = next(csv.reader(io.StringIO(header[0].decode("utf-8", "replace"), newline=""), delimiter=separator), [""])[-1]
    converters: dict[str, Callable[[str], str]] = {name: _last_cell if name == last else str for name in fields}
    if crlf:
        converters |= {f"{name}\r": _last_cell for name in fields}
    blank = first[0].count(b"\n")
    return CsvRows({"sep": separator, "converters": converters, "lineterminator": "\n", "skiprows": blank}, crlf)


def _last_cell(cell: str) -> str:
    return cell.removesuffix("\r")


def _is_blank_line(values: Sequence[Any]) -> bool:
    """Whether CR is all that a row has: a line that pandas takes for a cell."""
    first, *others = values
    blank = first in ("", "\r") if not others else first == "\r"
    return blank and all(value in ("", None) or value != value for value in others)  # NaN is not itself
