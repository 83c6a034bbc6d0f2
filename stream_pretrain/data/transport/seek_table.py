"""The seek table at the end of a zstd shard."""

from __future__ import annotations

import itertools
import struct

from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.stored_bytes import StoredBytes
from stream_pretrain.units import KIB


def read_seek_table(data: StoredBytes) -> list[RestartPoint]:
    """Where the frames start, and where the last one ends; empty where the shard has no table that fits it.

    Source: zstd/contrib/seekable_format/zstd_seekable_compression_format.md.
    """
    tail = data.read_at(max(0, data.total - 64 * KIB), data.total)
    if len(tail) < 9:
        return []
    frames, descriptor, magic = struct.unpack("<IBI", tail[-9:])
    entry = 12 if descriptor & 0x80 else 8
    size = 8 + frames * entry + 9
    if magic != 0x8F92EAB1 or size > data.total:
        return []
    if size > len(tail):
        tail = data.read_at(data.total - size, data.total)
    table = tail[-size:]
    if struct.unpack_from("<II", table) != (0x184D2A5E, size - 8):
        return []
    sizes = [struct.unpack_from("<II", table, 8 + index * entry) for index in range(frames)]
    compressed = list(itertools.accumulate((one[0] for one in sizes), initial=0))
    uncompressed = list(itertools.accumulate((one[1] for one in sizes), initial=0))
    return list(map(RestartPoint, compressed, uncompressed)) if compressed[-1] == data.total - size else []
