"""The terminal as something that may go away, and that text of others must not deceive.

What it does not take is dropped, and stops nothing. Whatever is written there, by a library too, has no secret in it, and no
sign that moves the cursor or forges a line. Where it is no terminal but a file or a pipe, the lines of a run say when they were
written.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from datetime import UTC, datetime
from typing import Any, TextIO, cast

from stream_pretrain.redaction import Secrets, printable

STANDARD = (0, 1, 2)


@contextmanager
def unfailing_stderr() -> Iterator[None]:
    """Let nothing that writes to `sys.stderr` fail, be it a line of progress, a warning or a bar of a library.

    A pipe whose reader is gone, a full disk, a closed terminal: what is written is lost, and the next line is tried anew.
    """
    _occupy_standard_descriptors()
    previous = sys.stderr
    descriptor = 2 if previous is None else _descriptor(previous)  # None where the program began with 2 closed
    if descriptor is None:  # in memory
        yield
        return
    if previous is not None:
        with suppress(OSError):
            previous.flush()
    encoding = "utf-8" if previous is None else previous.encoding
    sys.stderr = io.TextIOWrapper(_Unfailing(descriptor), encoding, "backslashreplace", write_through=True)
    try:
        yield
    finally:
        sys.stderr = previous


@contextmanager
def clear_stderr(secrets: Secrets) -> Iterator[ClearStream]:
    """Let no secret and no escape of a terminal through; messages of this program's logs are one line each."""
    stream = ClearStream(sys.stderr, secrets)
    lines = _Lines()
    logger = logging.getLogger(__package__)
    logger.addHandler(lines)
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)  # a card without metadata is no fault
    shown, logging.raiseExceptions = logging.raiseExceptions, False  # no traceback for a log file of a library on a full disk
    try:
        with redirect_stderr(cast(TextIO, stream)):
            yield stream
    finally:
        logger.removeHandler(lines)
        logging.raiseExceptions = shown


class ClearStream:
    """A stream with text that may be shown; all else is that of the stream below."""

    def __init__(self, stream: TextIO, secrets: Secrets) -> None:
        self._stream = stream
        self.secrets = secrets
        self._has_times = False
        self._begins_line = True

    def begin_log(self) -> None:
        """Put the time in front of every line from here on, unless it is read on a terminal or in memory."""
        self._has_times = _descriptor(self._stream) is not None and not self._stream.isatty()

    def write(self, text: str) -> int:
        shown = printable(self.secrets.hide(text), kept="\n\r\t")
        if self._has_times and shown:
            time = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} "
            begins, self._begins_line = self._begins_line, shown.endswith("\n")
            shown = re.sub(r"(?<=\n)(?=[^\n])", time, shown)
            if begins and not shown.startswith("\n"):
                shown = time + shown
        self._stream.write(shown)
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def say(text: str) -> None:
    """Write one line to stderr, over a line of progress that another object or process may have drawn on the terminal."""
    line = printable(text)
    sys.stderr.write(f"\r{line.ljust(columns_of(sys.stderr) - 1)}\n" if rewrites_lines(sys.stderr) else f"{line}\n")


def rewrites_lines(stream: TextIO) -> bool:
    """Whether a line can be written anew: on a terminal, but on those that say that they cannot do more than print."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def columns_of(terminal: TextIO) -> int:
    """The width of a terminal, 80 where it does not say."""
    with suppress(OSError):  # it was closed
        return os.get_terminal_size(terminal.fileno()).columns or 80  # some terminals say 0
    return 80


def show_traceback(error: BaseException) -> None:
    """Print the traceback of an error; no line of its message can be taken for one of ours."""
    text = printable("".join(traceback.format_exception(error)), kept="\n\t")
    sys.stderr.write(re.sub(r"^(?=error:|warning:)", "  ", text, flags=re.MULTILINE))


class _Unfailing(io.RawIOBase):
    """Bytes to a descriptor that is somebody else's. It is all there is below the text: a buffer would fail at the end."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def write(self, content: bytes) -> int:  # type: ignore[override]
        rest = memoryview(content)
        with suppress(OSError):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        return len(content)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except io.UnsupportedOperation:
        return None


def _occupy_standard_descriptors() -> None:
    """Give those that are closed to nothing: else the next file has the number, and gets what libraries write to it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) in STANDARD:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
