"""Content as every codec compresses it, and what may stand between the frames of zstd."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from typing import Any

import lz4.frame
import zstandard

from stream_pretrain.data.transport.compression import Compression


def zstd_frame(content: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(content)


COMPRESS: dict[Compression, Callable[[bytes], bytes]] = {
    "none": bytes,
    "zstd": lambda content: zstd_frame(content, write_checksum=True),
    "gzip": lambda content: gzip.compress(content, 1, mtime=0),
    "bz2": lambda content: bz2.compress(content, 1),
    "xz": lambda content: lzma.compress(content, preset=0),
    "lz4": lambda content: lz4.frame.compress(content, content_checksum=True),
}


COMPRESSED: list[Compression] = ["zstd", "gzip", "bz2", "xz", "lz4"]


def skippable(content: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A50, len(content)) + content


def seek_table(frames: list[tuple[int, int]]) -> bytes:
    entries = b"".join(struct.pack("<II", compressed, uncompressed) for compressed, uncompressed in frames)
    content = entries + struct.pack("<IBI", len(frames), 0, 0x8F92EAB1)
    return struct.pack("<II", 0x184D2A5E, len(content)) + content
