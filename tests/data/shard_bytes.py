"""The bytes of a shard, written and read by tests."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from stream_pretrain.data.transport.compression import Compression, compression_of
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.errors import ContentError

MIB = 1024**2


ENDING = {"none": "", "zstd": ".zst", "gzip": ".gz", "bz2": ".bz2", "xz": ".xz", "lz4": ".lz4"}


def words(count: int, seed: int = 0) -> bytes:
    """Text that compresses about as text does."""
    chosen = random.Random(seed)
    return b" ".join(b"%x" % chosen.getrandbits(16) for _ in range(count))


def write(folder: Path, content: bytes, compression: Compression = "zstd") -> Path:
    path = folder / f"shard.jsonl{ENDING[compression]}"
    path.write_bytes(content)
    return path


BEGIN = RestartPoint()


def shard(path: Path, restart: RestartPoint = BEGIN, size: int | None = None) -> ShardBytes:
    return ShardBytes(str(path), compression_of(str(path)), size, restart)


def chunks_of(bytes_of_shard: ShardBytes) -> list[tuple[RestartPoint, bytes]]:
    chunks = []
    while chunk := bytes_of_shard.read():
        chunks.append((bytes_of_shard.restart, chunk))
    return chunks


def content_before_error(path: Path, error: type[Exception] = ContentError, size: int | None = None) -> tuple[bytes, str]:
    """What is returned before the error, and its message; asserts that the error stays."""
    content = b""
    with closing(shard(path, size=size)) as opened:
        try:
            while chunk := opened.read():
                content += chunk
        except error as caught:
            message = str(caught)
        else:
            pytest.fail(f"{path} was read to its end")
        with pytest.raises(error):
            opened.read()
        assert "\n" not in message
        return content, message


def zstd_stream(content: bytes) -> bytes:
    """A frame without its content size: its sixth byte declares the window."""
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    return compressor.compress(content) + compressor.flush()
