"""A terminal as a user sees it."""

from __future__ import annotations

import os
import termios
from typing import TextIO

import pytest

pyte = pytest.importorskip("pyte", reason="needs pyte, which comes with: pip install '.[dev]'")


class Screen:
    """A terminal of 80x24 as a user sees it; programs write to `stream`."""

    def __init__(self, master: int, stream: TextIO) -> None:
        self._master, self.stream = master, stream
        self._screen = pyte.HistoryScreen(80, 24, history=10_000, ratio=1.0)
        self._bytes = pyte.ByteStream(self._screen)

    def resize(self, columns: int) -> None:
        """Make it as wide, and empty."""
        termios.tcsetwinsize(self._master, (24, columns))
        self._screen.reset()
        self._screen.resize(24, columns)

    def rows(self) -> list[str]:
        """What it shows after all that was written so far, with the lines that were scrolled out."""
        self.stream.write("\0")  # output arrives in parts and later: this marks its end
        self.stream.flush()
        content = b""
        while not content.endswith(b"\0"):
            content += os.read(self._master, 65536)
        return self._shown(content)

    def until(self, text: str) -> None:
        """Read on until it shows this. Raises: OSError where every process has closed it before."""
        self.stream.close()
        while not any(text in row for row in self._shown(os.read(self._master, 65536))):
            pass

    def to_the_end(self) -> list[str]:
        """All that is written until every process has closed it."""
        self.stream.close()
        content = b""
        try:
            while part := os.read(self._master, 65536):
                content += part
        except OSError:  # on Linux, the last process has closed it
            pass
        return self._shown(content)

    def _shown(self, content: bytes) -> list[str]:
        self._bytes.feed(content.rstrip(b"\0"))
        scrolled = ["".join(line[column].data for column in range(80)).rstrip() for line in self._screen.history.top]
        rows = scrolled + [line.rstrip() for line in self._screen.display]
        while rows and not rows[-1]:
            rows.pop()
        return rows
