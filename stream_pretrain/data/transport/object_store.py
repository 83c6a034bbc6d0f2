"""Files of any other store, through fsspec."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import fsspec

from stream_pretrain.data.transport.identity import identity_of
from stream_pretrain.data.transport.retrying import T, TransientError
from stream_pretrain.data.transport.store import Store
from stream_pretrain.data.transport.store_memory import compare
from stream_pretrain.data.transport.threads import in_thread
from stream_pretrain.errors import SourceError, TransportError


class FsspecFile:
    """Any other store, through fsspec, one range at a time."""

    seekable = True

    def __init__(self, url: str, name: str, storage_options: dict[str, Any], patience: float, known: dict[str, str]):
        """patience: seconds that a call may take; known: what was told of the object before, by kind."""
        self.total: int | None = None
        self._patience = patience
        self._name = name
        self._known = known
        self._described = False
        self._url, self._storage_options = url, storage_options
        self._filesystem: Any = None
        self._opened: Any = None

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        if self._filesystem is None:
            try:
                self._filesystem, self._path = fsspec.core.url_to_fs(self._url, **self._storage_options)
            except (ImportError, ValueError, TypeError) as error:
                raise SourceError(f"{self._name}: fsspec cannot open it with --data.storage-options: {error}") from error
        if not self._described:
            self._within_patience(self._describe)
        assert self.total is not None
        stop = min(stop, self.total)
        if start < stop:
            content = self._within_patience(self._range, start, stop)
            if len(content) != stop - start:
                raise TransientError(f"asked for {stop - start} bytes, got {len(content)}")
            yield content

    def _within_patience(self, call: Callable[..., T], *arguments: Any) -> T:
        """What a library returns that may wait without end, as where headers drip in."""
        answer = in_thread("store", call, *arguments)
        try:
            return answer.result(self._patience)
        except TimeoutError:
            if answer.done():  # its own
                raise
            raise TransientError(f"nothing for {self._patience:g} s") from None

    def _range(self, start: int, stop: int) -> bytes:
        if self._opened is None:
            content: bytes = self._filesystem.cat_file(self._path, start=start, end=stop)
        else:
            self._opened.seek(start)
            content = self._opened.read(stop - start)
        return content

    def again(self) -> Store:
        other = copy.copy(self)
        other._opened, other._described = None, False
        return other

    def reset(self) -> None:
        self.close()
        if self._filesystem is not None:
            self._filesystem.invalidate_cache()

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        self._opened, self._described = None, False

    def _describe(self) -> None:
        if hasattr(self._filesystem, "call_s3"):
            # An open file of S3 asks for each range of the object it was opened for, by its ETag; a path is what it is by then.
            self._opened = self._filesystem.open(self._path, "rb", cache_type="none")
            info = self._opened.details
        else:
            self._filesystem.invalidate_cache(self._path)  # a listing from the start of the run tells nothing of today
            info = self._filesystem.info(self._path)
        if info["size"] is None:
            raise TransportError(f"{self._name}: the store does not say how large the file is")
        compare(self._name, self._known, {"size": str(info["size"]), **identity_of(info)})
        self.total, self._described = info["size"], True
