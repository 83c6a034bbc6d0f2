"""The terminal as something that may go away: what it does not take is dropped, and stops nothing."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

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
