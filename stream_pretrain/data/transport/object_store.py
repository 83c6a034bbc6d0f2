"""Files in all other stores, through fsspec."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec

from stream_pretrain.data.transport.identity import identity_of
from stream_pretrain.data.transport.retrying import T, TransientError
from stream_pretrain.data.transport.store import Store
from stream_pretrain.data.transport.store_memory import refuse_replaced
from stream_pretrain.data.transport.threads import in_thread, in_time
from stream_pretrain.errors import SourceError, TransportError
from stream_pretrain.urls import on_web


def filesystem_at(url: str, name: str, storage_options: dict[str, Any]) -> tuple[Any, str]:
    """The filesystem of a URL, and the path in it. Raises: SourceError that calls the URL `name`."""
    try:
        if on_web(url):  # by the same proxies as its files
            client = {"trust_env": True, **storage_options.pop("client_kwargs", {})}
            return fsspec.filesystem("http", client_kwargs=client, **storage_options), url
        filesystem, path = fsspec.url_to_fs(url, **storage_options)
    except ImportError as error:
        missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        package = "smbprotocol" if missing.name == "smbclient" else (missing.name or "").replace("_", "-")
        needed = f"needs a package: pip install {package}" if package else f"needs a package: {error}"
        raise SourceError(f"{name}: {url.partition('://')[0]}:// {needed}") from error
    except (ValueError, TypeError) as error:
        raise SourceError(f"{name}: cannot be opened: {error}; check the URL and --data.storage-options") from error
    return filesystem, path


class FsspecFile:
    """A `Store` through fsspec: one request for a call of pieces(), in a thread that may be abandoned."""

    seekable = True

    def __init__(self, url: str, name: str, storage_options: dict[str, Any], timeout: float, known: dict[str, str]):
        """timeout: seconds that a call may take; known: the identity in earlier responses, by kind."""
        self.total: int | None = None
        self._timeout = timeout
        self._name = name
        self._known = known
        self._url, self._storage_options = url, storage_options
        self._filesystem: Any = None
        self._opened: _Opened | None = None

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        if self._filesystem is None:
            self._filesystem, self._path = filesystem_at(self._url, self._name, self._storage_options)
        if self._opened is None:
            opened = self._in_time(_open, self._filesystem, self._path)
            if (size := opened.info["size"]) is None:
                raise TransportError(f"{self._name}: the store does not say how large the file is")
            refuse_replaced(self._name, self._known, {"size": str(size), **identity_of(opened.info)})
            self.total, self._opened = size, opened
        assert self.total is not None
        stop = min(stop, self.total)
        if start < stop:
            content = self._in_time(self._opened.range, start, stop)
            if len(content) != stop - start:
                raise TransientError(f"asked for {stop - start} bytes, got {len(content)}")
            yield content

    def _in_time(self, call: Callable[..., T], *arguments: Any) -> T:
        """The result of a call to a library without a timeout of its own.

        An abandoned call continues in its thread: it has its arguments, and does not change this object.
        """
        silent = TransientError(f"nothing for {self._timeout:g} s")
        return in_time(in_thread("store", call, *arguments), self._timeout, silent)

    def duplicate(self) -> Store:
        other = copy.copy(self)
        other._opened = None
        return other

    def reset(self) -> None:
        self.close()
        if self._filesystem is not None:
            self._filesystem.invalidate_cache()

    def close(self) -> None:
        if self._opened is not None and self._opened.file is not None:
            self._opened.file.close()
        self._opened = None


@dataclass(frozen=True)
class _Opened:
    """An object as it was when it was opened."""

    filesystem: Any
    path: str
    info: Mapping[str, Any]
    file: Any
    """For S3: requests ranges of the object that was opened, by its ETag; the path may have another one by then."""

    def range(self, start: int, stop: int) -> bytes:
        if self.file is None:
            content: bytes = self.filesystem.cat_file(self.path, start=start, end=stop)
        else:
            self.file.seek(start)
            content = self.file.read(stop - start)
        return content


def _open(filesystem: Any, path: str) -> _Opened:
    if hasattr(filesystem, "call_s3"):
        file = filesystem.open(path, "rb", cache_type="none")
        return _Opened(filesystem, path, file.details, file)
    filesystem.invalidate_cache(path)  # the listing may be from the start of the run
    return _Opened(filesystem, path, filesystem.info(path), None)
