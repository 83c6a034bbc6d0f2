"""The stored bytes of a file: retried, prefetched and buffered."""

from __future__ import annotations

import logging
import re
import threading
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from huggingface_hub import get_token, hf_hub_url

from stream_pretrain.data.transport.http import HttpFile, http_headers
from stream_pretrain.data.transport.http_session import LEAST_BYTES
from stream_pretrain.data.transport.local_file import LocalFile
from stream_pretrain.data.transport.object_store import FsspecFile
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.retrying import Retrying
from stream_pretrain.data.transport.store import Store
from stream_pretrain.data.transport.threads import in_thread
from stream_pretrain.units import KIB
from stream_pretrain.urls import is_remote

logger = logging.getLogger(__name__)

LOCAL_BLOCK = 64 * KIB
"""Bytes of a file of this machine that are read at once."""

_NEVER = threading.Event()


@dataclass(frozen=True)
class _ReadAhead:
    """A block that a thread fetches. Until it is there, the thread alone uses the store it comes from."""

    start: int
    cancelled: threading.Event
    block: Future[bytes | bytearray]


class StoredBytes:
    """The stored bytes of one file, with a buffer.

    Offsets and counts are stored (compressed) bytes. `position` is the next byte of peek(); the buffer holds it at `_index`.
    Of a remote file that is read in order, the next block is fetched ahead.

    Used by one thread. A read-ahead has a thread of its own, at most one at a time, and the store is that thread's until its
    block is there; abandoning the block leaves it the store, and continues with a duplicate.

    Raises, wherever it reads: DeadlineError after `retry_deadline` seconds without LEAST_BYTES new ones; TransportError at once
    where trying again cannot help; SourceError where the file was replaced.
    """

    def __init__(
        self, url: str, name: str, size: int | None, start: int, options: TransportOptions, identity: str | None = None
    ):
        self.position = start
        self._name = name
        self._deadline = options.retry_deadline
        self._memory = options.memory
        self._cancelled = options.cancelled or _NEVER
        self._url = url
        self._open = partial(open_store, url, name, size, options, identity)
        self._store = self._open()
        self.is_local = isinstance(self._store, LocalFile)
        self._block_bytes = min(options.block_bytes, LOCAL_BLOCK) if self.is_local else options.block_bytes
        self._buffer: bytes | bytearray = b""
        self._index = 0
        self._previous_end: int | None = None
        self._ahead: _ReadAhead | None = None

    @property
    def known_total(self) -> int | None:
        """Size of the file, once a response has it."""
        return self._store.total

    @property
    def total(self) -> int:
        """Size of the file; known where its end was met, and after a read from a seekable store."""
        assert self._store.total is not None
        return self._store.total

    def peek(self, count: int, least: int | None = None) -> memoryview:
        """The next `count` bytes, not consumed; fewer only at the end of the file, or where `least` are enough."""
        wanted = count if least is None else least
        while len(self._buffer) - self._index < wanted and self._refill():
            pass
        return memoryview(self._buffer)[self._index : self._index + count]

    def advance(self, count: int) -> None:
        """Consume `count` of the bytes that were peeked; a negative count returns bytes that a decoder did not use."""
        self.position += count
        self._index += count
        assert 0 <= self._index <= len(self._buffer)

    def skip_to(self, offset: int) -> None:
        """Move forward to this byte; the bytes between are transferred only if they are requested already."""
        assert offset >= self.position
        if self._ahead is not None and 0 <= offset - self._ahead.start < self._block_bytes:
            self._buffer, self._index, self.position = b"", 0, self._ahead.start
            self._refill()
        if offset - self.position <= len(self._buffer) - self._index:
            self.advance(offset - self.position)
        else:
            self._buffer, self._index, self.position = b"", 0, offset

    def prefetch(self, offset: int) -> None:
        """Fetch the block at the byte that skip_to() will move to next, where it is not in the buffer."""
        known = self._store.total
        beyond = offset > self.position + len(self._buffer) - self._index
        if not self.is_local and self._store.seekable and beyond and known is not None and offset < known:
            self._cancel()
            self._read_ahead(offset, offset + self._block_bytes)

    def seek(self, offset: int) -> None:
        """Move to any byte; a read-ahead is cancelled."""
        self._cancel()
        self._buffer, self._index, self.position = b"", 0, offset

    def reopen(self) -> None:
        """Forget the identity of the file, which may be that of another one, and open it again."""
        self._cancel()
        self._store.close()
        self._memory.forget(self._url)
        self._store = self._open()

    def reread_from(self, offset: int) -> None:
        """Move to this byte, and request it over a new connection."""
        self.seek(offset)
        self._store.reset()

    def can_jump(self) -> bool:
        """Whether skipping far ahead can be cheaper than reading on."""
        self.peek(1)
        return self._store.seekable and self.position + len(self._buffer) - self._index < self.total

    def read_at(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), like os.pread: position, buffer and read-ahead stay as they are."""
        if self._ahead is not None:
            self._ahead.block.exception()  # one request at a time; what it raised is raised when its bytes are needed
        return bytes(self._fetch_now(start, stop))

    def read_range(self, start: int, stop: int, upcoming: tuple[int, int] | None) -> bytes:
        """Bytes [start, stop); the range `upcoming` is fetched ahead for the next call. Not to be mixed with peek()."""
        content = self._fetched_ahead(start) or b""
        if len(content) < stop - start:
            self._cancel()
            content += self._fetch_now(start + len(content), stop)
        if len(content) > stop - start:  # more was fetched ahead than is requested
            rest: Future[bytes | bytearray] = Future()
            rest.set_result(content[stop - start :])
            self._ahead = _ReadAhead(stop, threading.Event(), rest)
        elif upcoming is not None and not self.is_local:
            self._read_ahead(*upcoming)
        return bytes(content[: stop - start])

    def close(self) -> None:
        self._cancel()
        self._store.close()

    def _refill(self) -> bool:
        """Fetch the block after the buffer; false at the end of the file."""
        start = self.position + len(self._buffer) - self._index
        block = self._fetched_ahead(start)
        if block is None:
            self._cancel()
            block = self._fetch_now(start, start + self._block_bytes)
        # After a jump, little may be read: only the second block in a row is followed by a read-ahead.
        end = start + len(block)
        is_last = not block or (self._store.total is not None and end >= self._store.total)
        if not self.is_local and not is_last and self._previous_end == start:
            self._read_ahead(end, end + self._block_bytes)
        self._previous_end = end
        rest = memoryview(self._buffer)[self._index :]
        self._buffer = b"".join((rest, block)) if rest else block
        self._index = 0
        return bool(block)

    def _fetch_now(self, start: int, stop: int) -> bytes | bytearray:
        if self._store.total is not None and start >= self._store.total:
            return b""
        return self._received(partial(self._fetch, self._store, self._cancelled, start, stop))

    def _fetched_ahead(self, start: int) -> bytes | bytearray | None:
        """The block that was fetched ahead from this byte on, if one was."""
        if self._ahead is None or self._ahead.start != start:
            return None
        ahead, self._ahead = self._ahead, None
        return self._received(ahead.block.result)

    def _received(self, fetch: Callable[[], bytes | bytearray]) -> bytes | bytearray:
        """What `fetch` returns, with the waiting time counted."""
        started = time.perf_counter()
        block = fetch()
        self._memory.seconds_waiting += time.perf_counter() - started
        return block

    def _read_ahead(self, start: int, stop: int) -> None:
        cancelled = threading.Event()
        # As arguments: when the thread gets to run, this block may have been abandoned, with its store.
        self._ahead = _ReadAhead(start, cancelled, in_thread("read ahead", self._fetch, self._store, cancelled, start, stop))

    def _cancel(self) -> None:
        """Abandon the read-ahead without waiting for it: its server may be stalled."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and not ahead.block.done():
            store, self._store = self._store, self._store.duplicate()
            ahead.cancelled.set()
            ahead.block.add_done_callback(lambda _: store.close())

    def _fetch(self, store: Store, cancelled: threading.Event, start: int, stop: int) -> bytes | bytearray:
        """Bytes [start, stop), fewer only at the end of the file, or once cancelled."""
        received: bytes | bytearray = b""
        retrying = Retrying(self._name, self._deadline, reached=self._memory.reached, pause=cancelled.wait)
        retrying.byte = start
        counted = 0  # of `received`, as progress
        for attempt in retrying:
            if cancelled.is_set():
                break
            with attempt:
                if attempt.tries:
                    store.reset()
                for piece in store.pieces(start + len(received), stop):
                    if received and isinstance(received, bytes):  # a single piece, as of a local file, is not copied
                        received = bytearray(received)
                    received += piece
                    self._memory.reached = retrying.reached = True
                    if not piece or len(received) >= counted + LEAST_BYTES:
                        retrying.progress()
                        counted = len(received)
                    retrying.byte = start + len(received)
                    if cancelled.is_set():
                        break
        return received


def open_store(url: str, name: str, size: int | None, options: TransportOptions, identity: str | None) -> Store:
    """The store of a URL, which connects at the first read. Raises SourceError for options that it does not have."""
    storage_options = dict(options.storage_options)
    known = options.memory.known_of(url, identity)
    if not is_remote(url):
        return LocalFile(url.removeprefix("file://"), known.get("ends"))
    scheme = url.split("://")[0]
    if scheme in ("http", "https"):
        return HttpFile(url, name, http_headers(storage_options), size, options, known)
    if scheme == "hf" and (found := _HUB_FILE.fullmatch(url)):
        kind, repository, revision, path = found.groups()
        resolve = hf_hub_url(
            repository,
            path,
            repo_type={"datasets": "dataset", "spaces": "space"}.get(kind, "model"),
            revision=urllib.parse.unquote(revision or "main"),
            endpoint=storage_options.get("endpoint"),
        )
        token = storage_options.get("token") or get_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # At a commit, a file stays the same; how the Hub stores it, which decides the ETag, may change in the months of a run.
        return HttpFile(resolve, name, headers, size, options, {})
    return FsspecFile(url, name, storage_options, max(options.retry_deadline, options.read_timeout), known)


_HUB_FILE = re.compile(r"hf://(?!buckets/)(?:(datasets|spaces|models)/)?([^/@]+/[^/@]+)(?:@((?:refs/\w+/)?[^/]+))?/(.+)")
