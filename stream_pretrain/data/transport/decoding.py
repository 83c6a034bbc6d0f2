"""One member of a compressed shard (a zstd or lz4 frame, a gzip member, a bz2 or xz stream) to its content."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import zstandard

from stream_pretrain.data.transport.compression import Compression
from stream_pretrain.data.transport.stored_bytes import StoredBytes
from stream_pretrain.errors import SourceError, StreamPretrainError
from stream_pretrain.units import GIB, KIB, MIB

CHUNK = MIB  # uncompressed bytes that one call of a decoder gives at most

_SMALL = 256 * KIB  # smaller pieces are joined before they are handed on

SLICE = 64 * KIB  # compressed bytes fed at once; counted from the member's start, so that damage is met at the same byte

_ZSTD_BLOCK = 128 * KIB  # content of one block of a zstd frame, at most

_MAX_WINDOW = 2 * GIB

CUT = "it is not finished where the shard ends: the shard was cut short"


class DamageError(Exception):
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


def decoder_of(compression: Compression) -> Callable[[StoredBytes], Iterator[bytes]]:
    """Gives the content of the one member that begins here, in pieces of at most about `CHUNK`, and goes to its end."""
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


def _decode_stream(data: StoredBytes, decoder: _Decoder) -> Iterator[bytes]:
    while not decoder.eof:
        piece = bytes(data.peek(SLICE)) if decoder.needs_input else b""
        if decoder.needs_input and not piece:
            raise DamageError(CUT)
        try:
            content = decoder.decompress(piece, max_length=CHUNK)
        except (zlib.error, lzma.LZMAError, OSError, EOFError, RuntimeError) as error:  # bz2: OSError, lz4: RuntimeError
            raise DamageError(str(error)) from error
        data.advance(len(piece) - len(decoder.unused_data or b"" if decoder.eof else b""))
        if content:
            yield content


def _decode_zstd(data: StoredBytes, decompressor: zstandard.ZstdDecompressor) -> Iterator[bytes]:
    """Feeds whole blocks: one holds at most 128 KiB of content, so that a bomb stays small, and the last one ends the frame.

    Source: RFC 8878, section 3.1.1.
    """
    header = bytes(data.peek(18))
    size = zstandard.frame_header_size(header) if len(header) > 4 else 5
    if len(header) < size:
        raise DamageError(CUT)
    single_segment = bool(header[4] & 0x20)  # else the next byte is the window: exponent and eighths
    window = 0 if single_segment else (8 + (header[5] & 7)) << (7 + (header[5] >> 3))
    if window <= _MAX_WINDOW:  # above, zstandard does not even describe the frame
        try:
            parameters = zstandard.get_frame_parameters(header)
        except zstandard.ZstdError as error:
            raise DamageError(str(error)) from error
        window = parameters.window_size
    if window > _MAX_WINDOW:
        raise DamageError(
            f"it needs {window / GIB:.1f} GiB of memory to decompress, and {_MAX_WINDOW // GIB} GiB is the most that is "
            "supported; compress it anew with --long=31 or less"
        )
    decoder = decompressor.decompressobj(write_size=2 * _ZSTD_BLOCK)
    last = False
    while not last:
        blocks = 0
        while not last and blocks * _ZSTD_BLOCK < CHUNK:
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
            raise DamageError(str(error).removeprefix("zstd decompressor error: ")) from error
        data.advance(len(piece))
        if content:
            yield content
        if not complete:
            raise DamageError(CUT)
        size = 0
    if not decoder.eof:
        raise DamageError("it does not end with its last block")


def joined(pieces: Iterator[bytes]) -> Iterator[bytes]:
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
    except (DamageError, StreamPretrainError):
        if held:
            yield b"".join(held)
        raise
    if held:
        yield b"".join(held)


def skip_skippable(data: StoredBytes) -> bool:
    """Go behind a skippable frame; false where the shard ends inside it."""
    head = bytes(data.peek(8))
    if len(head) < 8:
        return False
    data.seek(data.position + 8 + int.from_bytes(head[4:], "little"))
    return bool(data.peek(1)) or data.position <= data.total
