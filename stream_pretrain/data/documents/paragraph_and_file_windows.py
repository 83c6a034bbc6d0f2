"""Windows of text whose document is a paragraph or a file. Offsets and restart points as for lines (line_windows.py).

A paragraph is in the window in whose block the blank line in front of it starts; the first of a shard is in window 0. So a
window is found by reading forward from the first line of its block. It would not be by where paragraphs start: the line before
one may have started long before the block, and only its start shows whether it is blank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stream_pretrain.data.documents.line_windows import LinePass, Window
from stream_pretrain.data.transport.restart_point import RestartPoint

_NOT_BLANK = re.compile(rb"[^ \t\r\x0b\x0c]")  # LF ends the blank line


def paragraphs(content: bytes, offset: int, longest: int) -> Iterator[tuple[int, bytes]]:
    """The paragraphs of a window, with their offsets in the shard. A line of more than `longest` bytes is never blank."""
    start = 0
    for blank in _blank_line(longest, rb"(?:\n|\Z)").finditer(content):
        if blank.start() > start:
            yield offset + start, content[start : blank.start()].removesuffix(b"\n")
        start = blank.end()
    if start < len(content):
        yield offset + start, content[start:]


def one_document(content: bytes, offset: int, longest: int) -> Iterator[tuple[int, bytes]]:  # noqa: ARG001 (as `paragraphs`)
    """The content as one document, unless it is blank."""
    if content and not content.isspace():
        yield offset, content


def _blank_line(longest: int, end: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"(?:(?m:^)|(?<=\A\xef\xbb\xbf))[ \t\r\x0b\x0c]{0,%d}+" % longest + end)


class ParagraphPass(LinePass):
    """A pass over a shard of paragraphs: its windows start at the first blank line and end with the last paragraph."""

    def _window_of(self, block: int, line: int, end: int, restart: RestartPoint) -> Window:
        last = self.buffer.rfind(b"\n", line - self.start, end - 1 - self.start) + 1 + self.start
        last = max(last, line)
        blank_lines = list(_blank_line(self.max_line_bytes, rb"\n").finditer(self.buffer, line - self.start, last - self.start))
        first = line if block == 0 else self.start + blank_lines[0].start() if blank_lines else None
        paragraph = self.start + blank_lines[-1].end() if blank_lines else line  # that `last` belongs to, unless it is blank
        stop, overlong = last, None
        following = self._after_blank(last)
        if following is not None:
            first = last if first is None else first
            paragraph = stop = following
        if first is None:
            return Window(end, b"", restart)
        if following is None or (self._has(following) and self._after_blank(following) is None):
            stop, overlong = self._end_of_paragraph(paragraph, stop)
        content = bytes(memoryview(self.buffer)[first - self.start : stop - self.start])
        return Window(first, content, restart, overlong)

    def _after_blank(self, line: int) -> int | None:
        """Where the line after a blank line starts; None for a line that is not blank."""
        searched = line
        while (found := _NOT_BLANK.search(self.buffer, searched - self.start)) is None:
            searched = self.start + len(self.buffer)
            if searched - line > self.max_line_bytes:
                return None
            if not self._fill():
                return searched
        offset = self.start + found.start()
        return offset + 1 if found[0] == b"\n" and offset - line <= self.max_line_bytes else None

    def _end_of_paragraph(self, paragraph: int, line: int) -> tuple[int, int | None]:
        """Where a paragraph stops, searched from one of its lines on, and its offset where it is too long, and left out."""
        searched = line
        while True:
            newline = self.buffer.find(b"\n", searched - self.start)
            searched = self.start + (len(self.buffer) if newline < 0 else newline + 1)
            if searched - (newline >= 0) - paragraph > self.max_line_bytes:
                # It is not buffered to its end: the next windows, in which no blank line starts, skip it.
                return paragraph, paragraph
            if newline >= 0 and self._after_blank(searched) is not None:
                return searched, None
            if newline < 0 and not self._fill():
                return searched, None


class FilePass(LinePass):
    """A pass over a shard that is one document, in one window."""

    @property
    def blocks(self) -> int:
        return 1

    def read(self, block: int) -> Window | None:
        self.block = block + 1
        if block > 0 or not self._has(0):
            return None
        first = self._first_line()
        if self._has(first + self.max_line_bytes):
            return Window(first, b"", RestartPoint(), overlong=first, stored=self._stored())
        return Window(first, bytes(self.buffer[first:]), RestartPoint(), stored=self._stored())

    def _stored(self) -> tuple[int, int]:
        return 0, self.stream.stored_bytes_before(self.start + len(self.buffer))
