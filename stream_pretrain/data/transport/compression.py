"""The compressions that a shard can have, one record each. A new one is a record here, and its decoder."""

from __future__ import annotations

import bz2
import lzma
import os
import re
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from stream_pretrain.data.transport.decoders import MOST_MEMORY, Decoder, GzipMember, lz4_frame, zstd_frames
from stream_pretrain.units import MIB

Compression: TypeAlias = str
"""A name in `CODECS`, or "none"."""


@dataclass(frozen=True)
class Codec:
    """A compression. A shard is a sequence of members, each of which can be decompressed alone."""

    endings: tuple[str, ...]
    """Of file names, in lower case."""
    magic: bytes
    """The first bytes of a member."""
    member: str
    """What messages call a member."""
    expansion: float
    """Uncompressed bytes per compressed byte of typical text: estimates the windows of a shard."""
    memory: int
    """The most bytes that a decoder holds for a file written at the usual levels: zstd up to 19, xz up to 6."""
    command: str
    """Writes the content of a file to its standard output."""
    decoders: Callable[[], Callable[[], Decoder]]
    """For one shard: what makes the decoder of each of its members."""
    is_zero_padded: bool = False
    """Zeros may follow a member, as tar and tape tools write them."""
    has_skippable_frames: bool = False
    """Frames without content between members, as in RFC 8878, section 3.1.2."""
    has_seek_table: bool = False


CODECS: Mapping[Compression, Codec] = {
    "zstd": Codec(
        endings=(".zst", ".zstd"),
        magic=b"\x28\xb5\x2f\xfd",
        member="zstd frame",
        expansion=3.5,
        memory=9 * MIB,
        command="zstd -dc",
        decoders=zstd_frames,
        has_skippable_frames=True,
        has_seek_table=True,
    ),
    "gzip": Codec(
        endings=(".gz", ".gzip", ".bgz"),
        magic=b"\x1f\x8b",
        member="gzip member",
        expansion=3.0,
        memory=MIB // 4,
        command="gzip -dc",
        decoders=lambda: GzipMember,
        is_zero_padded=True,
    ),
    "bz2": Codec(
        endings=(".bz2",),
        magic=b"BZh",
        member="bz2 stream",
        expansion=4.0,
        memory=4 * MIB,
        command="bzip2 -dc",
        decoders=lambda: bz2.BZ2Decompressor,
    ),
    "xz": Codec(
        endings=(".xz",),
        magic=b"\xfd7zXZ\x00",
        member="xz stream",
        expansion=4.0,
        memory=9 * MIB,
        command="xz -dc",
        decoders=lambda: partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, memlimit=MOST_MEMORY),
        is_zero_padded=True,
    ),
    "lz4": Codec(
        endings=(".lz4",),
        magic=b"\x04\x22\x4d\x18",
        member="lz4 frame",
        expansion=2.0,
        memory=9 * MIB,
        command="lz4 -dc",
        decoders=lambda: lz4_frame,
        has_skippable_frames=True,
    ),
}


def compression_of(name: str) -> Compression:
    """How a file (a name, path or URL) is compressed, by its ending."""
    path = urllib.parse.urlsplit(name).path if "://" in name else name
    ending = os.path.splitext(path)[1].lower()
    return next((compression for compression, codec in CODECS.items() if ending in codec.endings), "none")


def expansion_of(compression: Compression) -> float:
    """Uncompressed bytes per stored byte of typical text."""
    return CODECS[compression].expansion if compression in CODECS else 1.0


LFS_POINTER = "a Git LFS pointer in place of the data (run `git lfs pull`, or give the URL of the data)"
HTML, XML = "an HTML page", "an XML answer of a server"
PARQUET_MAGIC = b"PAR1"


def binary_format(head: bytes) -> str | None:
    """What a file is that certainly is no text, by its first bytes: compressed, or a pointer in place of the data."""
    if head.startswith(b"version https://git-lfs"):
        return LFS_POINTER
    if re.match(rb"BZh[1-9]1AY&SY", head):
        return "bz2"
    if head[257:262] == b"ustar":
        return "a tar archive"
    magics = {name: codec.magic for name, codec in CODECS.items() if name != "bz2"}  # its three letters may begin a text
    magics |= {"zip": b"PK\x03\x04", "Parquet": PARQUET_MAGIC}
    return next((name for name, magic in magics.items() if head.startswith(magic)), None)


def looks_like(head: bytes) -> str:
    """What a file, or the rest of one, is by its first bytes, in words."""
    if found := binary_format(head):
        return found
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return HTML
    if start.startswith(b"<?xml"):
        return XML
    if not head.strip(b"\0"):
        return "only zero bytes"
    if start[:1] in (b"{", b"["):
        return "plain JSON text"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head) and head.isascii():
        return "plain text"
    return f"no known format (bytes {head[:8].hex(' ')})"
