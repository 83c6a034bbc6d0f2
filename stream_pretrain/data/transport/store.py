"""A file where its owner put it: what every store offers, and the local one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol

from stream_pretrain.errors import SourceError


class Store(Protocol):
    """A file where its owner put it."""

    total: int | None
    """Its size, once known."""
    seekable: bool
    """Whether going forward costs less than reading what lies between."""

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop) as they arrive, fewer only at the end of the file; b"" where others arrive on the way to them.

        Raises what its library raises.
        """

    def duplicate(self) -> Store:
        """The same file with a connection of its own, and what is known of it."""

    def reset(self) -> None:
        """After a fault: open the file anew, on a web server by a new connection; fsspec libraries have pools of their own."""

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
        while start < min(stop, self.total):
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
