"""A bit that something on the way changes: once, the documents are the same; always, the shard is damaged."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import lz4.frame
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from stream_pretrain.data.corpus.file_formats import BY_ENDING
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.document import ReadOptions
from stream_pretrain.data.documents.reader import windows_of
from stream_pretrain.data.transport.compression import compression_of
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.errors import ContentError, TransportError
from tests.corpora import documents, json_lines
from tests.data.compressed import seek_table
from tests.integration.http_server import Server, serve

COUNT = 1200
LINES = json_lines(documents(COUNT))
CUTS = range(0, len(LINES), 100_003)
PARTS = [LINES[start : start + 100_003] for start in CUTS]


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def seekable() -> bytes:
    frames = [zstd(part) for part in PARTS]
    return b"".join(frames) + seek_table([(len(frame), len(part)) for frame, part in zip(frames, PARTS, strict=True)])


def parquet(path: Path) -> None:
    table = pa.table({"text": documents(COUNT)})
    pq.write_table(table, path, row_group_size=500, write_page_checksum=True, use_dictionary=False, data_page_size=20_000)


SHARDS: dict[str, Callable[[], bytes]] = {
    "one.jsonl.zst": lambda: zstd(LINES),
    "many.jsonl.zst": lambda: b"".join(map(zstd, PARTS)),
    "seekable.jsonl.zst": seekable,
    "members.jsonl.gz": lambda: b"".join(gzip.compress(part, mtime=0) for part in PARTS),
    "one.jsonl.gz": lambda: gzip.compress(LINES, mtime=0),
    "streams.jsonl.bz2": lambda: b"".join(map(bz2.compress, PARTS)),
    "streams.jsonl.xz": lambda: b"".join(map(lzma.compress, PARTS)),
    "frames.jsonl.lz4": lambda: b"".join(lz4.frame.compress(part, content_checksum=True) for part in PARTS),
    "pages.parquet": bytes,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flipped")
    for name, content in SHARDS.items():
        (folder / name).write_bytes(content())
    parquet(folder / "pages.parquet")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serve(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def _as_it_is(server: Server) -> None:
    server.forget()


def read(server: Server, name: str, window_bytes: int = 64 * 1024) -> list[str]:
    file_format = next(value.read_as for ending, value in BY_ENDING.items() if ending in name)
    shard = Shard(server.url(name), name, None, None, file_format, compression_of(name))
    options = TransportOptions(block_bytes=1 << 20, retry_deadline=5.0)
    texts: list[str] = []
    for window in windows_of(shard, ReadOptions("text", window_bytes, 1 << 20, options)):
        assert not window.skips
        texts += window.texts
    return texts


def places(size: int) -> list[int]:
    """Bytes all over a shard, its first and its last ones among them."""
    inside = random.Random(0)
    return [0, 2, 5, *(inside.randrange(size) for _ in range(8)), size - 3]


@pytest.mark.parametrize("name", SHARDS)
def test_a_bit_that_is_flipped_once_changes_no_document(
    name: str, server: Server, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = (folder / name).stat().st_size
    for at in places(size):
        server.inject(name, {"do": "flip", "at": at})
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert read(server, name) == documents(COUNT), at
        assert len(caplog.messages) <= 1
        assert all("intact at the next" in message for message in caplog.messages)
        server.forget()


@pytest.mark.parametrize("name", SHARDS)
def test_a_bit_that_is_always_flipped_is_damage(name: str, server: Server, folder: Path) -> None:
    at = (folder / name).stat().st_size * 2 // 5
    server.inject(name, {"do": "flip", "at": at, "times": 50})
    with pytest.raises(ContentError, match=name):
        read(server, name)


@pytest.mark.parametrize("name", SHARDS)
def test_bits_that_are_flipped_elsewhere_at_the_next_reading_change_no_document(
    name: str, server: Server, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = (folder / name).stat().st_size
    early, late = size // 5, size * 3 // 5
    for places in ((early, late), (late, early)):
        server.forget()
        server.inject(name, *({"do": "flip", "at": at} for at in places))
        caplog.clear()
        assert read(server, name) == documents(COUNT), places
        assert all("intact at the next" in message for message in caplog.messages)


def test_bits_that_are_flipped_elsewhere_at_each_reading_are_a_fault_of_the_network(server: Server, folder: Path) -> None:
    size = (folder / "one.jsonl.zst").stat().st_size
    server.inject("one.jsonl.zst", *({"do": "flip", "at": size * tenth // 10} for tenth in (6, 3, 8, 5)))
    with pytest.raises(TransportError, match="damaged in transit at each of 4 readings") as caught:
        read(server, "one.jsonl.zst")
    assert "\n" not in str(caught.value)


def test_a_reading_that_is_damaged_before_what_was_given_out_decides_nothing(server: Server, folder: Path) -> None:
    content = random.Random(2).randbytes(3_000_000).hex().encode()
    stored = b"".join(
        zstandard.ZstdCompressor(write_checksum=True).compress(content[at : at + 5_000_000]) for at in (0, 5_000_000)
    )
    (folder / "large.jsonl.zst").write_bytes(stored)
    options = TransportOptions(block_bytes=500_000)
    last = [{"do": "none"}] * 4 + [{"do": "flip", "at": 2_100_000}]
    server.inject("large.jsonl.zst", *last, {"do": "flip", "at": 100_000})
    with closing(ShardBytes(server.url("large.jsonl.zst"), "zstd", len(stored), options=options)) as shard:
        assert b"".join(iter(shard.read, b"")) == content


@pytest.mark.parametrize("name", [name for name in SHARDS if "jsonl" in name])
def test_the_damage_of_a_shard_in_a_store_is_met_as_in_a_folder(name: str, server: Server, folder: Path) -> None:
    damaged = bytearray((folder / name).read_bytes())
    damaged[len(damaged) * 3 // 5] ^= 1
    (folder / f"damaged-{name}").write_bytes(damaged)
    met = []
    for url in (str(folder / f"damaged-{name}"), server.url(f"damaged-{name}")):
        with closing(ShardBytes(url, compression_of(name), None)) as shard:
            chunks: list[bytes] = []
            with pytest.raises(ContentError) as caught:
                chunks.extend(iter(shard.read, b""))
            met.append((b"".join(chunks), str(caught.value).removeprefix(url)))
    assert met[0] == met[1]


def test_documents_that_were_given_out_before_the_damage_was_met_are_not_silently_replaced(
    server: Server, folder: Path
) -> None:
    """In one large member, damage that only its checksum tells is met long after the bytes that are wrong."""
    content = random.Random(1).randbytes(3_000_000).hex().encode()
    stored = gzip.compress(content, 0, mtime=0)  # nothing but the checksum tells of a flipped bit
    (folder / "large.jsonl.gz").write_bytes(stored)
    for at, was_given in ((1000, True), (3_500_000, True), (len(stored) - 1000, False)):
        server.forget()
        server.inject("large.jsonl.gz", {"do": "flip", "at": at})
        with closing(ShardBytes(server.url("large.jsonl.gz"), "gzip", len(stored))) as shard:
            if not was_given:
                assert b"".join(iter(shard.read, b"")) == content
                continue
            began = time.strftime("%Y-%m-%d %H:%M:%S")
            with pytest.raises(TransportError, match=r"was damaged in transit .* run the same command") as caught:
                list(iter(shard.read, b""))
            said = re.search(
                r"differs from uncompressed byte (\d+) on.* since (.{19}): delete the checkpoints", str(caught.value)
            )
            assert said is not None
            assert at - 1024**2 < int(said[1]) <= at, "the place is exact to a MiB"
            assert began <= said[2] <= time.strftime("%Y-%m-%d %H:%M:%S")


BEHIND = {"rubbish": b"garbage behind it", "a magic number that is cut": b"\x1f"}


@pytest.mark.parametrize("behind", BEHIND)
def test_what_is_always_behind_a_member_is_not_said_to_be_whole_when_it_is_read_again(
    behind: str, server: Server, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = gzip.compress(LINES, mtime=0)
    (folder / "more.jsonl.gz").write_bytes(stored + BEHIND[behind])
    chunks: list[bytes] = []
    with (
        closing(ShardBytes(server.url("more.jsonl.gz"), "gzip", None)) as shard,
        pytest.raises(ContentError, match=rf"compressed byte {len(stored)} \(uncompressed {len(LINES)}\)"),
    ):
        chunks.extend(iter(shard.read, b""))
    assert b"".join(chunks) == LINES
    assert caplog.messages == []


def test_a_seek_table_is_believed_when_it_is_the_same_twice(server: Server, folder: Path) -> None:
    parts = [random.Random(part).randbytes(300_000) for part in range(12)]
    frames = [zstd(part) for part in parts]
    table = seek_table([(len(frame), len(part)) for frame, part in zip(frames, parts, strict=True)])
    stored = b"".join(frames) + table
    (folder / "table.jsonl.zst").write_bytes(stored)
    size_of_the_third = len(stored) - len(table) + 8 + 2 * 8 + 4
    server.inject("table.jsonl.zst", {"do": "none"}, {"do": "flip", "at": size_of_the_third})
    options = TransportOptions(block_bytes=64 * 1024)
    with closing(ShardBytes(server.url("table.jsonl.zst"), "zstd", len(stored), options=options)) as shard:
        shard.skip_to(3_000_005)
        assert shard.read() == parts[10][5:]
