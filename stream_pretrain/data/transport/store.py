"""What every store offers of a file, and the local one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol

from stream_pretrain.errors import SourceError


class Store(Protocol):
    """One file as it is stored. Offsets are stored bytes. Used by one thread at a time; opened by the first read."""

    total: int | None
    """Size of the file, once an answer has said it."""
    seekable: bool
    """Whether skipping costs less than reading what lies between."""

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop) as they arrive, fewer only at the end of the file; b"" as a sign of life while others arrive.

        Raises: what its library raises, TransientError for other faults that may pass, TransportError and SourceError for
        those that do not.
        """

    def duplicate(self) -> Store:
        """The same file, and what is known of it, with a connection of its own: for another thread."""

    def reset(self) -> None:
        """Open the file anew at the next read, over a new connection; libraries under fsspec have pools of their own."""

    def close(self) -> None: ...


class LocalFile:
    seekable = True

    def __init__(self, path: str):
        self.total: int | None = None
        self._path = path
        self._descriptor: int | None = None

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDONLY)
            self.total = os.fstat(self._descriptor).st_size
        assert self.total is not None
        stop = min(stop, self.total)
        while start < stop:
            piece = os.pread(self._descriptor, stop - start, start)
            if not piece:
                raise SourceError(
                    f"{self._path}: changed while it was read (it had {self.total} bytes, now it ends at {start})"
                )
            start += len(piece)
            yield piece

    def duplicate(self) -> Store:
        return LocalFile(self._path)

    def reset(self) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    __del__ = close  # the readers of lanes that are given up, as at the end of a run, are dropped as they are
