"""The compressions a shard can have: their endings, magic bytes and members."""

from __future__ import annotations

import os
import re
import urllib.parse
from typing import Literal

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

MAGIC: dict[Compression, bytes] = {
    "zstd": b"\x28\xb5\x2f\xfd",
    "gzip": b"\x1f\x8b",
    "bz2": b"BZh",
    "xz": b"\xfd7zXZ\x00",
    "lz4": b"\x04\x22\x4d\x18",
}

MEMBER: dict[Compression, str] = {
    "zstd": "zstd frame",
    "gzip": "gzip member",
    "bz2": "bz2 stream",
    "xz": "xz stream",
    "lz4": "lz4 frame",
}


def compression_of(name: str) -> Compression:
    """How a file (a name, path or URL) is compressed, by its ending."""
    path = urllib.parse.urlsplit(name).path if "://" in name else name
    return _ENDINGS.get(os.path.splitext(path)[1].lower(), "none")


def binary_format(head: bytes) -> str | None:
    """What certainly is no text: a compressed file, or a pointer in place of the data."""
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in place of the data (run `git lfs pull`, or give the URL of the data)"
    if re.match(rb"BZh[1-9]1AY&SY", head):
        return "bz2"
    magics: list[tuple[str, bytes]] = [*MAGIC.items(), ("zip", b"PK\x03\x04"), ("Parquet", b"PAR1")]
    return next((name for name, magic in magics if name != "bz2" and head.startswith(magic)), None)


def looks_like(head: bytes) -> str:
    """In words, what a file or the rest of one begins with."""
    if found := binary_format(head):
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
