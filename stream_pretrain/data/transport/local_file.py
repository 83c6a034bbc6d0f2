"""Files of this machine, compared with what was pinned when they are opened, and whenever they have changed since."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator

from stream_pretrain.data.transport.store import Store
from stream_pretrain.errors import SourceError, TransportError

_ENDS = 64 * 1024
"""Bytes at each end of a file that identify it."""


def open_file(path: str) -> tuple[int, os.stat_result]:
    """A descriptor of a file. Raises: TransportError for what is not there, and for what is no file; OSError."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
        if kind != stat.S_IFREG:  # a pipe would be waited for
            what = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}.get(kind, "a device")
            raise TransportError(f"{path}: is {what}, not a file, which can be read more than once: leave it out")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        if os.path.islink(path):
            target = os.readlink(path)
            raise TransportError(f"{path}: is a link to {target}, which is not there: restore or remove it") from error
        raise TransportError(f"{path}: is not there: restore it, or leave it out") from error
    except PermissionError as error:
        raise TransportError(f"{path}: this user may not read it: change its permissions (chmod), or leave it out") from error
    return descriptor, os.fstat(descriptor)


def ends_of(descriptor: int, size: int) -> str:
    """`SIZE:HASH` of the first and last bytes of a file, which changes with most changes of its content."""
    first = _read(descriptor, 0, min(size, _ENDS))
    last = first if size <= _ENDS else _read(descriptor, size - _ENDS, size)
    return f"{size}:{hashlib.sha256(first + last).hexdigest()}"


def _read(descriptor: int, start: int, stop: int) -> bytes:
    """Raises: OSError where bytes are missing, also EIO: a file system that is mounted over a network may answer short."""
    content = b""
    while piece := os.pread(descriptor, stop - start - len(content), start + len(content)):
        content += piece
    if len(content) < stop - start:
        raise OSError(errno.EIO, f"ends at {start + len(content)} of {stop} bytes")
    return content


class LocalFile:
    """A `Store` on this machine."""

    seekable = True

    def __init__(self, path: str, pinned: str | None = None):
        """pinned: its `ends_of` when the run began."""
        self.total: int | None = None
        self._path = path
        self._pinned = pinned
        self._descriptor: int | None = None
        self._compared: tuple[int, int] | None = None  # size and time of the last change when it was compared

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Raises: SourceError for a file that is not the pinned one, or no longer there; what `os` raises otherwise."""
        if self._descriptor is None:
            self._descriptor, found = open_file(self._path)
            self.total, self._compared = found.st_size, None
        if self._pinned is not None:
            self._refuse_changed(self._descriptor, self._pinned)
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

    def _refuse_changed(self, descriptor: int, pinned: str) -> None:
        now = os.fstat(descriptor)
        state = now.st_size, now.st_mtime_ns
        if state == self._compared:
            return
        if ends_of(descriptor, now.st_size) != pinned:
            was, now_is = pinned.partition(":")[0], str(now.st_size)
            how = "its first or last bytes are others" if was == now_is else f"it had {was} bytes, and has {now_is}"
            raise SourceError(f"{self._path}: was changed since the run began ({how}); restore it or start a new run")
        self._compared = state

    def duplicate(self) -> Store:
        return LocalFile(self._path, self._pinned)

    def reset(self) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    __del__ = close  # the readers of lanes that are given up, as at the end of a run, are dropped as they are
