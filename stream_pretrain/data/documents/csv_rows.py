"""Where the rows of a CSV file end: at LF or CRLF, as its header does. A lone CR is text of a cell.

pandas ends a row at LF, CRLF or CR, unless it is given one character. It is given LF; the CR that CRLF then leaves in the
last cell of a row is removed here.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HEAD_BYTES = 256 * 1024
"""Bytes at the start of a file in which its header is searched."""

_BLANK_LINES = re.compile(rb"[\r\n]*")

_HEADER = re.compile(rb'(?:"[^"]*"|[^\r\n])*')  # with the line ends in quoted names; two quotes are one in a name


@dataclass(frozen=True)
class CsvRows:
    """How the rows of a file are separated."""

    options: Mapping[str, Any]
    """For pandas."""
    ends_in_crlf: bool

    def of(self, columns: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
        """The rows of a table in columns. A blank line is no row; in a file of one column, it is an empty cell."""
        names = [name.removesuffix("\r") for name in columns] if self.ends_in_crlf else list(columns)
        for values in zip(*columns.values(), strict=True):
            cells = list(values)
            if self.ends_in_crlf:
                last = next((i for i in reversed(range(len(cells))) if not _is_empty(cells[i])), 0)
                if last == 0 and cells[0] == "\r" and len(cells) > 1:
                    continue
                cells[last] = _without_cr(cells[last])
            yield dict(zip(names, cells, strict=True))


def csv_rows(head: bytes, separator: str, fields: Sequence[str]) -> CsvRows:
    """How to read the rows of a file that starts with these bytes, its `fields` as text.

    Where the header ends in CR alone, or not at all, pandas decides.
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
    names = next(csv.reader(io.StringIO(header[0].decode("utf-8", "replace"), newline=""), delimiter=separator), [""])
    converters: dict[str, Callable[[str], Any]] = {
        name: _without_cr if name == names[-1] and not crlf else str for name in fields
    }
    if crlf:
        converters |= {f"{name}\r": str for name in fields}
    options = {
        "sep": separator,
        "converters": converters,
        "lineterminator": "\n",
        "skiprows": first[0].count(b"\n"),
        "skip_blank_lines": len(names) > 1,
    }
    return CsvRows(options, crlf)


def _without_cr(cell: Any) -> Any:
    return cell.removesuffix("\r") if isinstance(cell, str) else cell


def _is_empty(cell: object) -> bool:
    """Whether a cell is missing or empty, in any representation of pandas."""
    return cell in ("", None) or cell != cell  # NaN is not itself
