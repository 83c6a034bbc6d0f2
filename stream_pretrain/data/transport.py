"""The uncompressed bytes of one shard, in order, from a restart point.

    store        bytes [start, stop) of the file as it lies there, in pieces; knows no retry
    _Compressed  retries below the decompressor, reads one block ahead, buffers
    members      zstd and lz4 frames, gzip members, bz2 and xz streams: restart points lie between them
    ShardBytes   chunks of bounded size, skipping forward
    ShardFile    stored bytes anywhere, for formats that have an index

A fault of transport (network, server) is retried at the byte that is missing and never changes a byte above; a fault of
content (damage, truncation) is a ContentError, met after the same good bytes wherever the pass began.
"""

from __future__ import annotations

import bisect
import bz2
import copy
import errno
import io
import itertools
import logging
import lzma
import os
import random
import re
import socket
import struct
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import fsspec
import requests
import zstandard
from huggingface_hub import get_token, hf_hub_url
from huggingface_hub.errors import OfflineModeIsEnabled

from stream_pretrain.data.http_session import RedirectError, Session, asked_wait, content_range, whole_number
from stream_pretrain.data.read_again import FirstReading, OtherContentError, agreed, say_whole_then
from stream_pretrain.data.store_memory import StoreMemory, compare
from stream_pretrain.data.threads import in_thread
from stream_pretrain.errors import ContentError, SourceError, StreamPretrainError, TransportError
from stream_pretrain.urls import without_secrets

logger = logging.getLogger(__name__)

T = TypeVar("T")

KIB, MIB, GIB = 1024, 1024**2, 1024**3

Compression = Literal["none", "zstd", "gzip", "bz2", "xz", "lz4"]

_ENDINGS: dict[str, Compression] = {
    ".zst": "zstd",
    ".zstd": "zstd",
    ".gz": "gzip",
    ".gzip": "gzip",
    ".bgz": "gzip",
    ".bz2": "bz2",
    ".xz": "xz",
    ".lz4": "lz4",
}
_MAGIC: dict[Compression, bytes] = {
    "zstd": b"\x28\xb5\x2f\xfd",
    "gzip": b"\x1f\x8b",
    "bz2": b"BZh",
    "xz": b"\xfd7zXZ\x00",
    "lz4": b"\x04\x22\x4d\x18",
}
_MEMBER: dict[Compression, str] = {
    "zstd": "zstd frame",
    "gzip": "gzip member",
    "bz2": "bz2 stream",
    "xz": "xz stream",
    "lz4": "lz4 frame",
}

_CHUNK = MIB  # uncompressed bytes that one call of a decoder gives at most
_SMALL = 256 * KIB  # smaller pieces are joined before they are handed on
_SLICE = 64 * KIB  # compressed bytes fed at once; counted from the member's start, so that damage is met at the same byte
_ZSTD_BLOCK = 128 * KIB  # content of one block of a zstd frame, at most
_LOCAL_BLOCK = MIB
BLOCK_BYTES = 8 * MIB
"""Stored bytes that one request asks a remote store for."""
_PIECE = 64 * KIB
_MAX_WINDOW = 2 * GIB
_CONNECT_TIMEOUT = 30.0
_BACKOFF_BASE, _BACKOFF_CAP = 0.5, 60.0


@dataclass(frozen=True)
class Restart:
    """Decompression can start at byte `compressed` of the file, which is byte `uncompressed` of its content."""

    compressed: int = 0
    uncompressed: int = 0


@dataclass(frozen=True)
class TransportOptions:
    """How shards are fetched.

    Units: seconds; `retry_deadline` counts the time without a single new byte, `read_timeout` the silence after which a
    connection is taken for dead.
    """

    storage_options: Mapping[str, Any] = field(default_factory=dict)
    retry_deadline: float = 1800.0
    block_bytes: int = BLOCK_BYTES
    read_timeout: float = 60.0
    memory: StoreMemory = field(default_factory=StoreMemory, compare=False, repr=False)
    """What was learnt of the stores; `Readers` give each stream its own."""


def compression_of(name: str) -> Compression:
    """How a file (a name, path or URL) is compressed, by its ending."""
    path = urllib.parse.urlsplit(name).path if "://" in name else name
    return _ENDINGS.get(os.path.splitext(path)[1].lower(), "none")


class ShardBytes:
    """The uncompressed bytes of one shard, in order, from a restart point.

    Opened by the first read. `position` is the offset of the next byte that read() returns; `restart` belongs to the chunk
    that read() returned last and is a pure function of the shard and that chunk's offset, wherever the pass began.

    Raises: ContentError where the shard is damaged, after all bytes before the damage that could be had were returned;
    TransportError where the bytes cannot be had; SourceError where the file was replaced.
    """

    def __init__(
        self,
        url: str,
        compression: Compression,
        size: int | None,
        restart: Restart = Restart(),
        options: TransportOptions | None = None,
        identity: str | None = None,
    ):
        """identity: what the shard was pinned by, `KIND:VALUE`; compared where its store tells a value of that kind."""
        self.position = restart.uncompressed
        self.restart = restart
        self._begin = restart
        self._name = without_secrets(url)
        self._compression = compression
        self._size = size
        self._data = _Compressed(url, self._name, size, restart.compressed, options or TransportOptions(), identity)
        self._decoded = restart.uncompressed  # bytes that have left the decoder, counted from the shard's start
        self._chunks = self._plain() if compression == "none" else self._members()
        self._pending: tuple[Restart, bytes] | None = None
        self._frames: list[Restart] | None = None  # of the seek table; empty: the shard has none
        self._member = restart  # where the frame, member or stream begins that is being read
        self._read_again_at: int | None = None
        self._error: StreamPretrainError | None = None

    @property
    def compressed_bytes_read(self) -> int:
        """Bytes that came from the store, repeated ones included."""
        return self._data.bytes_read

    def read(self) -> bytes:
        """The next chunk, of one frame or member; b"" at the end of the shard."""
        following = self._pending or self._next()
        self._pending = None
        self.position = self._decoded
        if following is None:
            return b""
        self.restart, chunk = following
        return chunk

    def skip_to(self, offset: int) -> None:
        """Make the next read() start at this uncompressed offset; forward only, past the end means at the end.

        Damage on the way is passed over where a seek table tells how, since not every pass comes by it.
        """
        assert offset >= self.position, "bytes are only skipped forward"
        if self._compression == "zstd":
            self._jump(offset)
        elif self._compression == "none" and offset > self._decoded:
            known = self._data.known_total
            self._decoded = offset if known is None else max(self._decoded, min(offset, known))
            self._data.seek(self._decoded)
        pending, self._pending = self._pending, None
        while self._decoded < offset:
            try:
                following = self._next()
            except ContentError:
                if not self._pass_over_damage(offset):
                    raise
                pending = None
                continue
            if following is None:
                break
            pending = following
        if (left := self._decoded - offset) > 0:
            assert pending is not None
            restart, chunk = pending
            self._pending = (restart, chunk[-left:])
        self.position = min(offset, self._decoded)

    def expect(self, offset: int) -> None:
        """Say where skip_to() will go next, behind what was read: in a plain shard, it is fetched meanwhile."""
        if self._compression == "none":
            self._data.expect(offset)

    def close(self) -> None:
        """Let go of the file or connection."""
        self._data.close()

    def _next(self) -> tuple[Restart, bytes] | None:
        if self._error is not None:
            raise self._error
        try:
            return next(self._chunks, None)
        except StreamPretrainError as error:
            self._error = error  # a finished generator would look like the end of the shard
            raise

    def _plain(self) -> Iterator[tuple[Restart, bytes]]:
        head = bytes(self._data.peek(_HEAD))
        if self._data.position == 0 and (found := _binary_format(head)):
            raise ContentError(f"{self._name}: looks like {found}, but its name says plain text; name it after its format")
        while piece := bytes(self._data.peek(_CHUNK, least=1)):
            start = Restart(self._decoded, self._decoded)
            self._data.advance(len(piece))
            self._decoded += len(piece)
            yield start, piece
        self._decoded = min(self._decoded, self._data.total)
        self._check_size()

    def _members(self) -> Iterator[tuple[Restart, bytes]]:
        data, magic, decode = self._data, _MAGIC[self._compression], _decoder_of(self._compression)
        while head := bytes(data.peek(_HEAD)):
            start = self._member = Restart(data.position, self._decoded)
            if self._compression in ("gzip", "xz") and head[0] == 0 and start.compressed > 0:
                padding = bytes(data.peek(_SLICE))  # tar and tape tools pad with zeros
                data.advance(len(padding) - len(padding.lstrip(b"\0")))
                continue
            if self._compression in ("zstd", "lz4") and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:
                if not _skip_skippable(data):
                    if self._reads_again(start):
                        continue
                    raise self._damaged(start, _CUT, "skippable frame")
                continue
            if not head.startswith(magic):
                if self._reads_again(start):
                    continue
                if magic.startswith(head):
                    raise self._damaged(start, _CUT)
                raise ContentError(
                    f"{self._name}: no {_MEMBER[self._compression]} begins at compressed byte {start.compressed} "
                    f"(uncompressed {start.uncompressed}); what is there looks like {_looks_like(head)}"
                )
            if self._read_again_at == start.compressed:
                self._say_whole(start, f"no {_MEMBER[self._compression]} began there")
            if self._frames:
                at = bisect.bisect_left(self._frames, start.compressed, key=lambda frame: frame.compressed)
                listed = self._frames[min(at, len(self._frames) - 1)]
                if listed.compressed == start.compressed and listed != start:
                    raise self._damaged(start, f"the seek table says it begins at uncompressed byte {listed.uncompressed}")
            try:
                for chunk in self._content(start, decode):
                    self._decoded += len(chunk)
                    yield start, chunk
            except _DamageError as damage:
                raise self._damaged(start, damage.reason) from damage.__cause__
        self._check_size()

    def _content(self, start: Restart, decode: Callable[[_Compressed], Iterator[bytes]]) -> Iterator[bytes]:
        """The content of the member that begins here; of a damaged one, its store is asked once more."""
        data = self._data
        if data.is_local:
            yield from _joined(decode(data))
            return
        first = FirstReading()
        try:
            yield from first.of(_joined(self._before_another(decode)))
            return
        except _DamageError as damage:
            reason = damage.reason
        data.read_again(start.compressed)
        try:
            yield from first.rest_of(_joined(decode(data)))
        except OtherContentError as error:
            raise TransportError(
                f"{self._name}: the {_MEMBER[self._compression]} that begins at compressed byte {start.compressed} was damaged "
                f"on its way ({reason}): read again, its first {first.size} bytes, which were given out already, are others; "
                "check the network, a proxy or the memory of this machine; the same command goes on from the last checkpoint"
            ) from error
        self._say_whole(start, reason)

    def _before_another(self, decode: Callable[[_Compressed], Iterator[bytes]]) -> Iterator[bytes]:
        """The content of the member that begins here, with damage where nothing that makes sense stands behind it."""
        yield from decode(self._data)
        head = bytes(self._data.peek(8))
        magic = _MAGIC[self._compression]
        padded = head[:1] == b"\0" and self._compression in ("gzip", "xz")
        skippable = head[1:4] == b"\x2a\x4d\x18" and self._compression in ("zstd", "lz4")
        if head and not (head.startswith(magic) or padded or skippable):
            raise _DamageError(f"no {_MEMBER[self._compression]} begins where it ends")

    def _reads_again(self, start: Restart) -> bool:
        """Ask the store once more for what begins here and is damaged; false where that was done, or is of no use."""
        if self._data.is_local or self._read_again_at == start.compressed:
            return False
        self._read_again_at = start.compressed
        if start.compressed == 0:
            self._data.forget()  # it may have been another file, such as a page of a proxy
        self._data.read_again(start.compressed)
        return True

    def _say_whole(self, start: Restart, reason: str) -> None:
        self._read_again_at = None
        member = f"the {_MEMBER[self._compression]} that begins at compressed byte {start.compressed}"
        say_whole_then(self._name, member, reason)

    def _damaged(self, start: Restart, reason: str, what: str | None = None) -> ContentError:
        known = (self._data.known_total, self._size)
        sizes = "" if None in known or known[0] == known[1] else f" (the shard has {known[0]} bytes, {known[1]} are listed)"
        return ContentError(
            f"{self._name}: the {what or _MEMBER[self._compression]} that begins at compressed byte {start.compressed} "
            f"(uncompressed {start.uncompressed}) cannot be decompressed from uncompressed byte {self._decoded} on: "
            f"{reason}{sizes}"
        )

    def _check_size(self) -> None:
        if self._data.total < self._begin.compressed:
            raise SourceError(
                f"{self._name}: has {self._data.total} bytes, but reading was to go on at byte {self._begin.compressed}: "
                "it was replaced since the run began"
            )
        if self._size is not None and self._data.total != self._size:
            raise ContentError(_other_size(self._name, self._data.total, self._size))

    def _jump(self, offset: int) -> None:
        """Go to the frame of the seek table that holds `offset`, where that saves reading."""
        if offset - self._decoded <= _CHUNK or not self._data.can_jump():
            return
        frame = self._frame_of(offset)
        if frame is not None and frame.uncompressed > self._decoded:
            self._data.seek(frame.compressed)
            self._decoded = frame.uncompressed
            self._chunks = self._members()

    def _pass_over_damage(self, offset: int) -> bool:
        """Go to the frame that holds `offset`, where there is a seek table and it is not the damaged one."""
        frame = self._frame_of(offset) if self._compression == "zstd" else None
        if frame is None or frame.compressed <= self._member.compressed:
            return False
        self._data.begin_at(frame.compressed)
        self._decoded = frame.uncompressed
        self._chunks, self._error = self._members(), None
        return True

    def _frame_of(self, offset: int) -> Restart | None:
        """Where the frame begins that the seek table has `offset` in; None without a table."""
        if self._frames is None:
            # The sizes of what frames hold are covered by no checksum, and the wrong one would be taken for the right place.
            read = partial(_read_seek_table, self._data)
            self._frames = read() if self._data.is_local else agreed(read)
            if self._frames is None:
                raise TransportError(f"{self._name}: its seek table is another one each time it is read; check the network")
        at = bisect.bisect_right(self._frames, offset, key=lambda frame: frame.uncompressed) - 1
        return self._frames[at] if at >= 0 else None


# --- members: frames, gzip members, streams -------------------------------------------------------------------------

_CUT = "it is not finished where the shard ends: the shard was cut short"
_HEAD = 512


def _other_size(name: str, found: int | None, listed: int) -> str:
    return f"{name}: has {found} bytes, but {listed} are listed: it was cut short or replaced"


class ShardFile(io.RawIOBase):
    """The stored bytes of one shard as a file that is read anywhere, for formats that have an index of their own.

    Every read is one range, fetched with the retries of ShardBytes, and raises as that does.
    """

    def __init__(self, url: str, size: int | None, options: TransportOptions, identity: str | None = None):
        self.expected: Sequence[tuple[int, int]] = ()
        """Parts that will be read from their beginnings on, in this order: a block of them is fetched ahead."""
        self._name = without_secrets(url)
        self._data = _Compressed(url, self._name, size, 0, options, identity)
        self._block_bytes = options.block_bytes
        self._at = 0
        if size is None:
            self._data.apart(0, 1)  # the first answer says how large the file is
            size = self._data.known_total
        if size is None:
            raise TransportError(f"{self._name}: the server does not say how large the file is")
        self._size = size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._size, self._at + size)
        content = self._data.part(self._at, stop, self._following(stop)) if self._at < stop else b""
        self._at += len(content)
        if self._data.known_total not in (None, self._size):
            raise ContentError(_other_size(self._name, self._data.known_total, self._size))
        return content

    def _following(self, stop: int) -> tuple[int, int] | None:
        """What of the expected parts is read next behind a read that ends here."""
        for begin, end in self.expected:
            if end > stop:
                start = max(begin, stop)
                return start, min(end, start + self._block_bytes)
        return None

    def close(self) -> None:
        self._data.close()
        super().close()


class _DamageError(Exception):
    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class _Decoder(Protocol):
    """What bz2, lzma and lz4 have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes | None: ...

    def decompress(self, data: bytes, /, max_length: int) -> bytes: ...


class _GzipMember:
    """One gzip member with the interface of bz2 and lzma; zlib checks CRC and length."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, /, max_length: int) -> bytes:
        return self._inflate.decompress(data or self._inflate.unconsumed_tail, max_length)


def _lz4_frame() -> _Decoder:
    try:
        import lz4.frame
    except ImportError as error:
        raise SourceError("reading .lz4 shards needs the extra lz4: pip install 'stream_pretrain[lz4]'") from error
    decoder: _Decoder = lz4.frame.LZ4FrameDecompressor()
    return decoder


def _decoder_of(compression: Compression) -> Callable[[_Compressed], Iterator[bytes]]:
    """Gives the content of the one member that begins here, in pieces of at most about `_CHUNK`, and goes to its end."""
    match compression:
        case "zstd":
            decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
            return lambda data: _decode_zstd(data, decompressor)
        case "gzip":
            return lambda data: _decode_stream(data, _GzipMember())
        case "bz2":
            return lambda data: _decode_stream(data, bz2.BZ2Decompressor())
        case "xz":
            return lambda data: _decode_stream(data, lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_WINDOW))
        case _:
            return lambda data: _decode_stream(data, _lz4_frame())


def _decode_stream(data: _Compressed, decoder: _Decoder) -> Iterator[bytes]:
    while not decoder.eof:
        piece = bytes(data.peek(_SLICE)) if decoder.needs_input else b""
        if decoder.needs_input and not piece:
            raise _DamageError(_CUT)
        try:
            content = decoder.decompress(piece, max_length=_CHUNK)
        except (zlib.error, lzma.LZMAError, OSError, EOFError, RuntimeError) as error:  # bz2: OSError, lz4: RuntimeError
            raise _DamageError(str(error)) from error
        data.advance(len(piece) - len(decoder.unused_data or b"" if decoder.eof else b""))
        if content:
            yield content


def _decode_zstd(data: _Compressed, decompressor: zstandard.ZstdDecompressor) -> Iterator[bytes]:
    """Feeds whole blocks: one holds at most 128 KiB of content, so that a bomb stays small, and the last one ends the frame.

    Source: RFC 8878, section 3.1.1.
    """
    header = bytes(data.peek(18))
    size = zstandard.frame_header_size(header) if len(header) > 4 else 5
    if len(header) < size:
        raise _DamageError(_CUT)
    single_segment = bool(header[4] & 0x20)  # else the next byte is the window: exponent and eighths
    window = 0 if single_segment else (8 + (header[5] & 7)) << (7 + (header[5] >> 3))
    if window <= _MAX_WINDOW:  # above, zstandard does not even describe the frame
        try:
            parameters = zstandard.get_frame_parameters(header)
        except zstandard.ZstdError as error:
            raise _DamageError(str(error)) from error
        window = parameters.window_size
    if window > _MAX_WINDOW:
        raise _DamageError(
            f"it needs {window / GIB:.1f} GiB of memory to decompress, and {_MAX_WINDOW // GIB} GiB is the most that is "
            "supported; compress it anew with --long=31 or less"
        )
    decoder = decompressor.decompressobj(write_size=2 * _ZSTD_BLOCK)
    last = False
    while not last:
        blocks = 0
        while not last and blocks * _ZSTD_BLOCK < _CHUNK:
            block = bytes(data.peek(size + 3)[size:])
            if len(block) < 3:
                break
            word = int.from_bytes(block, "little")
            last, run_length = bool(word & 1), word >> 1 & 3 == 1
            size += 3 + (1 if run_length else word >> 3)
            blocks += 1
        if last and parameters.has_checksum:
            size += 4
        piece = data.peek(size)
        complete = blocks > 0 and len(piece) == size
        try:
            content = decoder.decompress(piece)
        except zstandard.ZstdError as error:
            raise _DamageError(str(error).removeprefix("zstd decompressor error: ")) from error
        data.advance(len(piece))
        if content:
            yield content
        if not complete:
            raise _DamageError(_CUT)
        size = 0
    if not decoder.eof:
        raise _DamageError("it does not end with its last block")


def _joined(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Small pieces joined; what came before an error is handed on first."""
    held: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size >= _SMALL:
                yield held[0] if len(held) == 1 else b"".join(held)
                held, size = [], 0
    except (_DamageError, StreamPretrainError):
        if held:
            yield b"".join(held)
        raise
    if held:
        yield b"".join(held)


def _skip_skippable(data: _Compressed) -> bool:
    """Go behind a skippable frame; false where the shard ends inside it."""
    head = bytes(data.peek(8))
    if len(head) < 8:
        return False
    data.seek(data.position + 8 + int.from_bytes(head[4:], "little"))
    return bool(data.peek(1)) or data.position <= data.total


def _read_seek_table(data: _Compressed) -> list[Restart]:
    """Where the frames start, and where the last one ends; empty where there is no table that fits the shard.

    Source: zstd/contrib/seekable_format/zstd_seekable_compression_format.md.
    """
    tail = data.apart(max(0, data.total - 64 * KIB), data.total)
    if len(tail) < 9:
        return []
    frames, descriptor, magic = struct.unpack("<IBI", tail[-9:])
    entry = 12 if descriptor & 0x80 else 8
    size = 8 + frames * entry + 9
    if magic != 0x8F92EAB1 or size > data.total:
        return []
    if size > len(tail):
        tail = data.apart(data.total - size, data.total)
    table = tail[-size:]
    if struct.unpack_from("<II", table) != (0x184D2A5E, size - 8):
        return []
    sizes = [struct.unpack_from("<II", table, 8 + index * entry) for index in range(frames)]
    compressed = list(itertools.accumulate((one[0] for one in sizes), initial=0))
    uncompressed = list(itertools.accumulate((one[1] for one in sizes), initial=0))
    return list(map(Restart, compressed, uncompressed)) if compressed[-1] == data.total - size else []


def _binary_format(head: bytes) -> str | None:
    """What certainly is no text: a compressed file, or a pointer in place of the data."""
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in place of the data (run `git lfs pull`, or give the URL of the data)"
    if re.match(rb"BZh[1-9]1AY&SY", head):
        return "bz2"
    magics: list[tuple[str, bytes]] = [*_MAGIC.items(), ("zip", b"PK\x03\x04"), ("Parquet", b"PAR1")]
    return next((name for name, magic in magics if name != "bz2" and head.startswith(magic)), None)


def _looks_like(head: bytes) -> str:
    """In words, what a file or the rest of one begins with."""
    if found := _binary_format(head):
        return found
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if start.startswith(b"<?xml"):
        return "an XML answer of a server"
    if not head.strip(b"\0"):
        return "only zero bytes"
    if start[:1] in (b"{", b"["):
        return "plain JSON text"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head) and head.isascii():
        return "plain text"
    return f"no known format (bytes {head[:8].hex(' ')})"


# --- compressed bytes: retry, read-ahead, buffer --------------------------------------------------------------------


class _TransientError(Exception):
    """A fault of transport that may pass; `wait` is how long the server asked to wait, in seconds."""

    def __init__(self, cause: str, wait: float | None = None, *, at_once: bool = False):
        super().__init__(cause)
        self.wait = wait
        self.at_once = at_once

    def wait_after(self, tries: int) -> float:
        """Seconds until the next try: growing exponentially, with jitter, and at least what the server asked for."""
        if self.at_once and tries == 0:
            return 0.0
        # not the module's generator: its state belongs to the training
        growing = random.SystemRandom().uniform(0.5, 1.0) * min(_BACKOFF_CAP, _BACKOFF_BASE * 2.0 ** min(tries, 10))
        return growing if self.wait is None else max(self.wait, growing)


def answered(ask: Callable[[], T], name: str, deadline: float) -> T:
    """What `ask` returns; asked again for up to `deadline` seconds while a network or server fails as may pass.

    Raises: TransportError at the deadline, or at once where asking again cannot help, or where nobody answers: that is not
    waited for, since nothing has begun and the name may be a slip of the pen.
    """
    tries, began = 0, time.monotonic()
    while True:
        try:
            return ask()
        except StreamPretrainError:
            raise
        except _TransientError as passing:
            fault = passing
        except Exception as error:
            if _nobody_answers(error):
                raise _unanswered(name, error) from error
            fault = _fault(error, name)
        wait = fault.wait_after(tries)
        tries += 1
        if time.monotonic() + wait - began > deadline:
            raise TransportError(
                f"{name}: no good answer for {time.monotonic() - began:.0f} s ({fault}), "
                f"and the next try would be in {wait:.0f} s; "
                f"check the network and the server, or raise --data.retry-deadline (now {deadline:g} s)"
            ) from fault
        logger.warning("%s: %s; asking again in %.1f s", name, fault, wait)
        time.sleep(wait)


def _unanswered(name: str, error: BaseException) -> TransportError:
    return TransportError(f"{name}: no server answers ({in_words(error)}); check the network and the name")


def _nobody_answers(error: BaseException) -> bool:
    """Whether a connection was refused, or nobody knows the name of the server."""
    return any(isinstance(cause, (ConnectionRefusedError, socket.gaierror)) for cause in causes(error))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_busy(status: int) -> bool:
    """Whether a server that answers so may answer otherwise later."""
    return status in (408, 425, 429) or status >= 500


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error of any library."""
    response = getattr(error, "response", None)
    for holder in (error, response):
        for key in ("status_code", "status", "code"):
            if isinstance(value := getattr(holder, key, None), int):
                return value
    behind = getattr(error.__cause__, "response", None)  # what s3fs has of botocore
    return behind.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(behind, dict) else None


@dataclass(frozen=True)
class _ReadAhead:
    """A block on its way, with the store it comes from; nobody else uses that meanwhile."""

    start: int
    cancelled: threading.Event
    block: Future[bytes | bytearray]


class _Compressed:
    """The bytes of the file as it lies in the store, behind a buffer."""

    def __init__(
        self, url: str, name: str, size: int | None, start: int, options: TransportOptions, identity: str | None = None
    ):
        self.position = start
        self.bytes_read = 0
        self._name = name
        self._deadline = options.retry_deadline
        self._memory = options.memory
        self._url = url
        self._open = partial(_store, url, name, size, options, identity)
        self._store = self._open()
        self.is_local = isinstance(self._store, _LocalFile)
        self._block_bytes = min(options.block_bytes, _LOCAL_BLOCK) if self.is_local else options.block_bytes
        self._buffer: bytes | bytearray = b""
        self._index = 0  # where `position` is in the buffer
        self._previous_end: int | None = None
        self._ahead: _ReadAhead | None = None

    @property
    def known_total(self) -> int | None:
        """Size of the file, where the store has told it."""
        return self._store.total

    @property
    def total(self) -> int:
        """Size of the file; to be asked where its end was met, or of a store that can jump."""
        assert self._store.total is not None
        return self._store.total

    def peek(self, count: int, least: int | None = None) -> memoryview:
        """The next `count` bytes without going on; fewer only at the end of the shard, or where `least` are enough."""
        wanted = count if least is None else least
        while len(self._buffer) - self._index < wanted and self._refill():
            pass
        return memoryview(self._buffer)[self._index : self._index + count]

    def advance(self, count: int) -> None:
        """Go on by this much of what was peeked; a decoder's unused input is given back by a negative count."""
        self.position += count
        self._index += count
        assert 0 <= self._index <= len(self._buffer)

    def seek(self, offset: int) -> None:
        """Go on at this byte; what lies between is not transferred unless it is already on its way."""
        assert offset >= self.position
        if self._ahead is not None and 0 <= offset - self._ahead.start < self._block_bytes:
            self._buffer, self._index, self.position = b"", 0, self._ahead.start
            self._refill()
        if offset - self.position <= len(self._buffer) - self._index:
            self.advance(offset - self.position)
        else:
            self._buffer, self._index, self.position = b"", 0, offset

    def expect(self, offset: int) -> None:
        """Say which byte will be gone to next, so that the block there is on its way while others are worked on."""
        known = self._store.total
        beyond = offset > self.position + len(self._buffer) - self._index
        if not self.is_local and self._store.seekable and beyond and known is not None and offset < known:
            self._cancel()
            self._read_ahead(offset, offset + self._block_bytes)

    def begin_at(self, offset: int) -> None:
        """Go on at this byte, be it before or behind."""
        self._cancel()
        self._buffer, self._index, self.position = b"", 0, offset

    def forget(self) -> None:
        """What was told of the file so far was perhaps not told of it."""
        self._cancel()
        self._store.close()
        self._memory.forget(self._url)
        self._store = self._open()

    def read_again(self, offset: int) -> None:
        """Go back to this byte, and ask the store for it by a new connection."""
        self.begin_at(offset)
        self._store.reset()

    def can_jump(self) -> bool:
        """Whether going far forward can be cheaper than reading on."""
        self.peek(1)
        return self._store.seekable and self.position + len(self._buffer) - self._index < self.total

    def apart(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), leaving position and buffer as they are."""
        started = time.perf_counter()
        if self._ahead is not None:
            self._ahead.block.exception()  # one request at a time; its outcome is looked at when its bytes are needed
        content = bytes(self._fetched(start, stop))
        self._memory.seconds_waiting += time.perf_counter() - started
        return content

    def part(self, start: int, stop: int, following: tuple[int, int] | None) -> bytes:
        """Bytes [start, stop); those from `following[0]` to `following[1]` are on their way then, for the next call."""
        started = time.perf_counter()
        content: bytes | bytearray = b""
        if self._ahead is not None and self._ahead.start == start:
            ahead, self._ahead = self._ahead, None
            content = self._counted(ahead.block.result())
        if len(content) < stop - start:
            self._cancel()
            content += self._fetched(start + len(content), stop)
        if len(content) > stop - start:  # less was asked for than was expected
            rest: Future[bytes | bytearray] = Future()
            rest.set_result(content[stop - start :])
            self._ahead = _ReadAhead(stop, threading.Event(), rest)
        elif following is not None and not self.is_local:
            self._read_ahead(*following)
        self._memory.seconds_waiting += time.perf_counter() - started
        return bytes(content[: stop - start])

    def close(self) -> None:
        self._cancel()
        self._store.close()

    def _refill(self) -> bool:
        started = time.perf_counter()
        start = self.position + len(self._buffer) - self._index
        if self._ahead is not None and self._ahead.start == start:
            ahead, self._ahead = self._ahead, None
            block = self._counted(ahead.block.result())
        else:
            self._cancel()
            block = self._fetched(start, start + self._block_bytes)
        # After a jump nobody knows how far reading goes on: only a second block in a row is followed by a read-ahead.
        end = start + len(block)
        if (
            not self.is_local
            and block
            and self._previous_end == start
            and (self._store.total is None or end < self._store.total)
        ):
            self._read_ahead(end, end + self._block_bytes)
        self._previous_end = end
        rest = memoryview(self._buffer)[self._index :]
        self._buffer = b"".join((rest, block)) if rest else block
        self._index = 0
        self._memory.seconds_waiting += time.perf_counter() - started
        return bool(block)

    def _fetched(self, start: int, stop: int) -> bytes | bytearray:
        return self._counted(self._fetch(self._store, threading.Event(), start, stop))

    def _counted(self, block: bytes | bytearray) -> bytes | bytearray:
        self.bytes_read += len(block)
        return block

    def _read_ahead(self, start: int, stop: int) -> None:
        cancelled = threading.Event()
        # By its arguments: when the thread gets to run, this block may have been let go of, with its store.
        self._ahead = _ReadAhead(start, cancelled, in_thread("read ahead", self._fetch, self._store, cancelled, start, stop))

    def _cancel(self) -> None:
        """Let go of the block that is on its way, without waiting for it: its server may be the one that stalls."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and not ahead.block.done():
            store, self._store = self._store, self._store.again()
            ahead.cancelled.set()
            ahead.block.add_done_callback(lambda _: store.close())

    def _fetch(self, store: _Store, cancelled: threading.Event, start: int, stop: int) -> bytes | bytearray:
        """Bytes [start, stop), fewer only at the end of the file, or once cancelled. The one place where anything is retried.

        Raises: TransportError after `retry_deadline` seconds without a new byte, or at once where trying again cannot help.
        """
        received = bytearray()
        tries, progress = 0, time.monotonic()
        while not cancelled.is_set():
            try:
                for piece in store.pieces(start + len(received), stop):
                    received += piece
                    self._memory.answered = True
                    tries, progress = 0, time.monotonic()
                    if cancelled.is_set():
                        break
                return received
            except _TransientError as passing:
                fault = passing
            except StreamPretrainError:
                raise
            except Exception as error:
                if _nobody_answers(error) and not self._memory.answered:
                    raise _unanswered(self._name, error) from error
                fault = _fault(error, self._name)
            at = start + len(received)
            store.reset()
            wait = fault.wait_after(tries)
            tries += 1
            if time.monotonic() + wait - progress > self._deadline:
                raise TransportError(
                    f"{self._name}: nothing from compressed byte {at} on for {time.monotonic() - progress:.0f} s ({fault}), "
                    f"and the next try would be in {wait:.0f} s; "
                    f"check the network and the server, or raise --data.retry-deadline (now {self._deadline:g} s)"
                ) from fault
            logger.warning("%s: %s at compressed byte %d; trying again in %.1f s", self._name, fault, at, wait)
            cancelled.wait(wait)
        return received


def in_words(error: BaseException) -> str:
    """What a library raised, in one line, without the queries of URLs: a signed one opens the file to anybody."""
    return re.sub(r"\?[^\s'\")>]+=[^\s'\")>]+", "?...", f"{type(error).__name__}: {' '.join(str(error).split())}")


def _fault(error: Exception, name: str) -> _TransientError:
    """What a library raised, as a fault that may pass. Raises TransportError where trying again cannot help."""
    words = in_words(error)
    status = _status(error)
    if isinstance(error, OfflineModeIsEnabled):
        raise TransportError(
            f"{name}: HF_HUB_OFFLINE is set, so the Hub is not asked: unset it, or give a file or folder that is here"
        ) from error
    if any(getattr(cause, "errno", None) in (errno.EMFILE, errno.ENFILE) for cause in causes(error)):
        raise TransportError(
            f"{name}: this process may not open more files ({words}): "
            "raise `ulimit -n`, or give fewer --lanes or more --workers"
        ) from error
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        raise TransportError(f"{name}: not found ({words}); {_CHECK_ID}") from error
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in type(error).__name__:
        raise TransportError(f"{name}: access refused ({words}); {_CHECK_TOKEN}") from error
    python_says = type(error).__module__ == "builtins" and not isinstance(error, (OSError, EOFError))
    if python_says:
        raise error
    if isinstance(error, (ValueError, IsADirectoryError, NotADirectoryError, requests.TooManyRedirects)):
        raise TransportError(f"{name}: cannot be read ({words})") from error
    headers = getattr(getattr(error, "response", None), "headers", None)
    return _TransientError(words, wait=None if headers is None else asked_wait(headers))


_CHECK_ID = "check the id, path and revision; what is private looks like this to a token without access (HF_TOKEN)"
_ASK_FOR_ACCESS = "the dataset is gated: ask for access on its page on the Hub, and give the token of that account in HF_TOKEN"
_CHECK_TOKEN = "check the token or keys: HF_TOKEN for the Hub, else the store's own or --data.storage-options"


# --- stores: local files, HTTP, fsspec ------------------------------------------------------------------------------


class _Store(Protocol):
    """A file where its owner put it."""

    total: int | None
    """Its size, once known."""
    seekable: bool
    """Whether going forward costs less than reading what lies between."""

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop) as they arrive, fewer only at the end of the file. Raises what its library raises."""

    def again(self) -> _Store:
        """The same file with a connection of its own, and what is known of it."""

    def reset(self) -> None:
        """After a fault: connect afresh."""

    def close(self) -> None: ...


def _store(url: str, name: str, size: int | None, options: TransportOptions, identity: str | None) -> _Store:
    storage_options = dict(options.storage_options)
    known = options.memory.of(url, identity)
    scheme = url.split("://")[0] if "://" in url else "file"
    if scheme == "file":
        return _LocalFile(url.removeprefix("file://"))
    if scheme in ("http", "https"):
        return _HttpFile(url, name, _http_headers(storage_options), size, options.read_timeout, options.memory, known)
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
        # At a commit, a file stays the same; how the Hub stores it, which its ETag comes of, may change in the months of a run.
        return _HttpFile(resolve, name, headers, size, options.read_timeout, options.memory, {})
    return _FsspecFile(url, name, storage_options, max(options.retry_deadline, options.read_timeout), known)


def identity_of(info: Mapping[str, Any]) -> dict[str, str]:
    """The surest of what fsspec tells of an object that changes with its content, by its kind; no time of change is that."""
    told = {
        "md5": info.get("md5Hash"),
        "crc32c": info.get("crc32c"),
        "sha": info.get("sha"),
        "etag": bare_etag(info.get("ETag") or info.get("etag")),
    }
    return dict([(kind, str(value)) for kind, value in told.items() if value][:1])


_ASKED_AT_ONCE = 16


def told_by_servers(urls: Sequence[str], options: TransportOptions) -> list[tuple[int | None, str | None]]:
    """Size of each file on a web server, and `KIND:VALUE` that it is known again by. All are asked for their first byte.

    Raises: TransportError for the first that cannot be had.
    """
    headers = _http_headers(dict(options.storage_options))
    found: list[tuple[int | None, str | None]] = [(None, None)] * len(urls)
    given_up = threading.Event()

    def ask_for_some(first: int) -> None:
        with Session(headers) as session:
            for number in range(first, len(urls), _ASKED_AT_ONCE):
                if given_up.is_set():
                    return
                url, name = urls[number], without_secrets(urls[number])
                ask = partial(_told, url, name, headers, options, session)
                told = answered(ask, name, options.retry_deadline)
                kind = next((kind for kind in ("etag", "size") if kind in told), None)
                found[number] = int(told["size"]) if "size" in told else None, f"{kind}:{told[kind]}" if kind else None

    asking = [in_thread("ask servers", ask_for_some, first) for first in range(min(_ASKED_AT_ONCE, len(urls)))]
    try:
        for done in as_completed(asking):
            done.result()
    finally:
        given_up.set()
    return found


def _told(url: str, name: str, headers: Mapping[str, str], options: TransportOptions, session: Session) -> dict[str, str]:
    """What a server tells of a file, by kind. Not by HEAD: a URL that is signed for GET refuses it."""
    file = _HttpFile(url, name, headers, None, options.read_timeout, options.memory, {}, session)
    try:
        next(file.pieces(0, 1), None)
    finally:
        file.reset_body()
    return file.known


_HUB_FILE = re.compile(r"hf://(?!buckets/)(?:(datasets|spaces|models)/)?([^/@]+/[^/@]+)(?:@((?:refs/\w+/)?[^/]+))?/(.+)")


def _http_headers(storage_options: dict[str, Any]) -> dict[str, str]:
    headers = storage_options.pop("headers", {})
    if storage_options:
        raise SourceError(f"--data.storage-options: http(s) knows only headers, not {', '.join(sorted(storage_options))}")
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise SourceError('--data.storage-options: headers are an object of strings, like {"Authorization": "Bearer ..."}')
    return dict(headers)


class _LocalFile:
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

    def again(self) -> _Store:
        return _LocalFile(self._path)

    def reset(self) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    __del__ = close  # the readers of lanes that are given up, as at the end of a run, are dropped as they are


class _HttpFile:
    """One ranged GET per call. A redirect's target is used again until it fails: signed URLs expire, a Hub counts requests.

    A server that ignores Range sends everything: that body is kept open and read forward from call to call.
    """

    def __init__(
        self,
        url: str,
        name: str,
        headers: Mapping[str, str],
        size: int | None,
        read_timeout: float,
        memory: StoreMemory,
        known: dict[str, str],
        session: Session | None = None,
    ):
        """known: what was told of the file before, by kind; `session` is used, and not closed, in place of an own one."""
        self.total: int | None = None
        self.seekable = True
        self.known = known
        self._memory = memory
        self._url = url
        self._name = name
        self._size = size
        self._own = headers
        self._headers = {**headers, "Accept-Encoding": "identity"}
        self._timeout = (_CONNECT_TIMEOUT, read_timeout)
        self._session = session
        self._target: tuple[str, Mapping[str, str | bytes]] | None = None  # where the last redirect led
        self._response: requests.Response | None = None  # its body is being read
        self._at = 0  # offset in the file of the body's next byte
        self._end: int | None = None  # where the body must end
        self._rest = b""  # read from the body, and not yet asked for

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        while start < self._bound(stop):
            if self._response is None or self._at > start or (self._end is not None and self._end <= start):
                self.reset_body()
                self._request(start, self._bound(stop))
                continue
            piece = self._rest or self._response.raw.read1(_PIECE, decode_content=False)
            self._rest = b""
            if not piece and self._end is None:
                self.total = self._end = self._at
            if not piece and self._at != self._end:
                raise _TransientError(f"the answer ended at byte {self._at} of {self._end}")
            wanted = self._bound(stop) - self._at
            useful, self._rest = piece[max(0, start - self._at) : wanted], piece[wanted:]
            self._at += min(len(piece), wanted)
            if self._at == self._end:
                self.reset_body()
            if useful:
                start += len(useful)
                yield useful

    def again(self) -> _Store:
        other = copy.copy(self)
        other._session, other._response, other._rest = None, None, b""
        return other

    def reset(self) -> None:
        self.reset_body()
        self._target = None

    def reset_body(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response, self._rest = None, b""

    def close(self) -> None:
        self.reset_body()
        if self._session is not None:
            self._session.close()

    def _bound(self, stop: int) -> int:
        return stop if self.total is None else min(stop, self.total)

    def _request(self, start: int, stop: int) -> None:
        """Open the body that holds byte `start`; nothing is opened where the file ends before it."""
        if self._session is None:
            self._session = Session(self._own)
        url, headers = self._target or (self._url, self._headers)
        ranged = {**headers, "Range": f"bytes={start}-{stop - 1}"}
        try:
            response = self._session.open(url, ranged, self._timeout)
        except RedirectError as error:
            raise TransportError(f"{self._name}: {error}; check the URL, a login or a proxy") from error
        except ValueError as error:
            if isinstance(error, requests.exceptions.InvalidHeader) and error.request is not None:
                raise _TransientError(in_words(error)) from error  # of the answer, such as two lengths
            raise TransportError(
                f"{self._name}: cannot be asked for ({in_words(error)}); check the URL, and where its server redirects to"
            ) from error
        self._response = response
        if _is_busy(response.status_code):
            raise _TransientError(f"HTTP {response.status_code}", wait=asked_wait(response.headers))
        if response.status_code >= 400 and response.status_code != 416 and self._target is not None:
            raise _TransientError(f"HTTP {response.status_code} from the address it had redirected to", at_once=True)
        first, end, known_total = content_range(response.headers.get("Content-Range", ""))
        if response.status_code == 416 and known_total is not None:
            self._remember(response, known_total)
            self.reset_body()
            if start < known_total:
                raise _TransientError(f"HTTP 416 for bytes {start}-{stop - 1} of {known_total}")
            return
        if response.status_code in (401, 403):
            gated = response.headers.get("X-Error-Code") == "GatedRepo"
            raise TransportError(
                f"{self._name}: access refused (HTTP {response.status_code}); {_ASK_FOR_ACCESS if gated else _CHECK_TOKEN}"
            )
        if response.status_code in (404, 410):
            raise TransportError(f"{self._name}: not found (HTTP {response.status_code}); {_CHECK_ID}")
        if response.status_code not in (200, 206):
            raise TransportError(f"{self._name}: the server answers HTTP {response.status_code} to a GET with Range")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise TransportError(
                f"{self._name}: the server answers with an HTML page in place of the shard; check the URL, a login or a proxy"
            )
        encoding = response.headers.get("Content-Encoding", "").lower().removeprefix("x-")
        # Of a compressed file many servers say so what it is; all else is an encoding of the server's own.
        if encoding in ("gzip", "deflate", "br", "zstd") and encoding != compression_of(self._name):
            raise TransportError(
                f"{self._name}: the server sends it encoded (Content-Encoding: {encoding}) though asked for it as it is; "
                "turn that off there, or name the file after its compression"
            )
        coding = response.headers.get("Transfer-Encoding", "").lower()
        if coding != "chunked" and re.search(
            "chunked|gzip|deflate|compress", coding
        ):  # their frames would be taken for the file
            raise _TransientError(f"Transfer-Encoding {coding[:40]!r}")
        if response.status_code == 200:
            known_total = self._total_of_whole(response)
            self._at, self._end = 0, known_total
            if self.seekable:
                self._memory.say_that_range_is_ignored(urllib.parse.urlsplit(response.url).netloc)
            self.seekable = False
        else:
            if first is None or end is None or not first <= start < end:
                raise TransportError(
                    f"{self._name}: asked for bytes {start}-{stop - 1}, the server answers with "
                    f"Content-Range {response.headers.get('Content-Range', 'missing')!r}; its Range support is broken"
                )
            if known_total is not None and known_total < end:
                raise _TransientError(f"Content-Range {response.headers['Content-Range'][:80]!r}")
            known_total = next((size for size in (known_total, self.total, self._size) if size is not None), None)
            if known_total is None:
                raise TransportError(f"{self._name}: the server does not say how large the file is (Content-Range .../*)")
            self._at, self._end = first, end
        self._remember(response, known_total)
        if response.history:
            self._target = (response.url, dict(response.request.headers))

    def _total_of_whole(self, response: requests.Response) -> int | None:
        """Bytes of a body that is the whole file; None where the encoding of the body itself tells its end."""
        if (length := _length(response)) is not None:
            return length
        known = self.total if self.total is not None else self._size
        if known is not None or response.raw.chunked:
            return known
        assert self._session is not None
        headers = {name: value for name, value in response.request.headers.items() if name != "Range"}
        asked = self._session.head(response.url, headers=headers, timeout=self._timeout)
        if _is_busy(asked.status_code):
            raise _TransientError(f"HTTP {asked.status_code}", wait=asked_wait(asked.headers))
        length = _length(asked) if asked.status_code == 200 else None
        if length is None:
            raise TransportError(
                f"{self._name}: the server does not say how large the file is, so a connection that breaks would look like "
                "its end; serve it with Content-Length"
            )
        return length

    def _remember(self, response: requests.Response, total: int | None) -> None:
        # Not the time of the last change: a file that is written anew with the same content is the same.
        told = {"size": None if total is None else str(total), "etag": bare_etag(response.headers.get("ETag"))}
        compare(self._name, self.known, {kind: value for kind, value in told.items() if value})
        self.total = total if total is not None else self.total


def _length(response: requests.Response) -> int | None:
    """What an answer tells as the length of its body."""
    told = response.headers.get("Content-Length")
    if told is None:
        return None
    length = whole_number(told)
    if length is None:
        raise _TransientError(f"Content-Length {told[:40]!r}")
    return length


def bare_etag(etag: str | None) -> str | None:
    """An ETag without its quotes, and without the mark of a weak one, which one answer may have and another not."""
    return etag if etag is None else etag.removeprefix("W/").strip('"')


class _FsspecFile:
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
                raise _TransientError(f"asked for {stop - start} bytes, got {len(content)}")
            yield content

    def _within_patience(self, call: Callable[..., T], *arguments: Any) -> T:
        """What a library returns that may wait without end, as where headers drip in."""
        answer = in_thread("store", call, *arguments)
        try:
            return answer.result(self._patience)
        except TimeoutError:
            if answer.done():  # its own
                raise
            raise _TransientError(f"nothing for {self._patience:g} s") from None

    def _range(self, start: int, stop: int) -> bytes:
        if self._opened is None:
            content: bytes = self._filesystem.cat_file(self._path, start=start, end=stop)
        else:
            self._opened.seek(start)
            content = self._opened.read(stop - start)
        return content

    def again(self) -> _Store:
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
