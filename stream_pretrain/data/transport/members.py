"""The members of a compressed shard: decoded one by one, skipped where they hold no content."""

from __future__ import annotations

import lzma
import re
import zlib
from collections.abc import Iterator

import xxhash
import zstandard

from stream_pretrain.data.transport.decoders import DamageError, Decoder
from stream_pretrain.data.transport.stored_bytes import StoredBytes
from stream_pretrain.errors import StreamPretrainError
from stream_pretrain.units import KIB, MIB

CHUNK = MIB  # uncompressed bytes that one call of a decoder gives at most

_SMALL = 256 * KIB  # uncompressed bytes; smaller pieces are joined

SLICE = 64 * KIB  # compressed bytes fed at once, from the start of the member on, so that damage is always met at the same byte

CUT = "it is not finished where the shard ends: the shard was cut short"


def decode(data: StoredBytes, decoder: Decoder) -> Iterator[bytes]:
    """The content of the member that starts here, in pieces of at most about `CHUNK` bytes; `data` is then at its end.

    Raises: DamageError, after all good content; MemoryError.
    """
    taken = xxhash.xxh3_128()
    while not decoder.eof:
        needs_input = decoder.needs_input
        piece = data.peek(SLICE) if needs_input else b""
        taken.update(piece)
        try:
            content = [decoder.decompress(piece, max_length=CHUNK)]
        # bz2 raises OSError, lz4 RuntimeError
        except (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError, RuntimeError) as error:
            if re.search("not enough memory|allocation", str(error), re.IGNORECASE):  # as zstandard and lz4 say it
                raise MemoryError(str(error)) from error
            raise DamageError(str(error).removeprefix("zstd decompressor error: "), stored=taken.digest()) from error
        data.advance(len(piece) - len(decoder.unused_data or b"" if decoder.eof else b""))
        if content[0]:
            yield content.pop()  # not kept here: a lane may wait long before it reads on
        if needs_input and not piece and not decoder.eof:
            raise DamageError(CUT, stored=taken.digest())


def joined(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Small pieces joined; those before an error are returned first."""
    held: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            del piece
            if size >= _SMALL:
                yield _all_of(held)
                size = 0
    except (DamageError, StreamPretrainError):
        if held:
            yield _all_of(held)
        raise
    if held:
        yield _all_of(held)


def _all_of(held: list[bytes]) -> bytes:
    """All pieces joined; the list is emptied."""
    content = held[0] if len(held) == 1 else b"".join(held)
    held.clear()
    return content


def is_skippable(head: bytes) -> bool:
    """Whether a skippable frame of zstd or lz4 starts with these bytes."""
    return head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50


def skip_skippable(data: StoredBytes) -> bool:
    """Skip a skippable frame; false where the shard ends inside it."""
    head = bytes(data.peek(8))
    if len(head) < 8:
        return False
    data.skip_to(data.position + 8 + int.from_bytes(head[4:], "little"))
    return bool(data.peek(1)) or data.position <= data.total
