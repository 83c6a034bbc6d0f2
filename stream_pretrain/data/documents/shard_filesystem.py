"""A shard as a file that `datasets` opens: `shard://NAME`, in a file system with this one file.

`datasets` only parses: it gets the bytes from transport/, retried, decompressed, and checked against the listed size.
"""

from __future__ import annotations

import io
import os
import posixpath
import sys
import urllib.parse
from typing import Any

import fsspec

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.shard_bytes import ShardBytes, ShardFile

PROTOCOL = "shard"


def shard_url(shard: Shard) -> str:
    """The URL for `datasets`: the name without the ending of a compression, since it reads the content."""
    name = shard.name if shard.compression == "none" else posixpath.splitext(shard.name)[0]
    return f"{PROTOCOL}://{urllib.parse.quote(name)}"  # quoted: fsspec gives meanings to signs


class ShardFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A file system with one file, under any name."""

    protocol = PROTOCOL
    cachable = False

    def __init__(self, shard: Shard, transport: TransportOptions, **options: Any):
        super().__init__(**options)
        self.shard = shard
        self.transport = transport

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """From the listing, without a request."""
        size = self.shard.size if self.shard.compression == "none" else None
        return {"name": self._strip_protocol(path), "type": "file", "size": size}

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BufferedReader:  # noqa: ARG002
        assert mode == "rb"
        if self.shard.compression != "none":
            return io.BufferedReader(_Decompressed(self.shard, self.transport))
        # Parsers read little at a time, and each read of a ShardFile is a request.
        stored = ShardFile(self.shard.url, self.shard.size, self.transport, self.shard.identity)
        return io.BufferedReader(stored, self.transport.block_bytes)


fsspec.register_implementation(PROTOCOL, ShardFileSystem, clobber=True)


class _Decompressed(io.RawIOBase):
    """The content of a compressed shard; seeking back reads from its start again."""

    def __init__(self, shard: Shard, transport: TransportOptions):
        self._shard = shard
        self._transport = transport
        self._begin()

    def _begin(self) -> None:
        shard = self._shard
        self._bytes = ShardBytes(shard.url, shard.compression, shard.size, options=self._transport, identity=shard.identity)
        self._rest = memoryview(b"")  # of the last chunk

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._bytes.position - len(self._rest)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self.tell()
        elif whence == os.SEEK_END:
            self._bytes.skip_to(sys.maxsize)
            offset += self._bytes.position
        if offset < self._bytes.position:
            self._bytes.close()
            self._begin()
        self._bytes.skip_to(offset)
        self._rest = memoryview(b"")
        return self.tell()

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(self._bytes.read())
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def close(self) -> None:
        self._bytes.close()
        super().close()
