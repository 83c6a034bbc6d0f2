"""What is read of a Parquet shard is what was written, whoever reads which stripe and wherever a reading begins again."""

from __future__ import annotations

import base64
import random
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents import parquet
from stream_pretrain.data.documents.document import DocumentReader, Documents, ReadOptions
from stream_pretrain.data.documents.reader import open_reader
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.transport import store, stored_bytes
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.shard_bytes import ShardFile
from stream_pretrain.errors import ContentError, SourceError
from stream_pretrain.units import MIB
from tests.data.shards import EVERY_WINDOW
from tests.integration.http_server import serve


def opened(path: Path, window_bytes: int, block_bytes: int = 8 * MIB) -> DocumentReader:
    shard = Shard(str(path), path.name, path.stat().st_size, None, "parquet", "none")
    return open_reader(shard, ReadOptions("text", window_bytes, MIB, TransportOptions(block_bytes=block_bytes)))


@dataclass(frozen=True)
class Table:
    """Row groups of texts, and how they are written."""

    groups: Sequence[Sequence[str | None]]
    how: dict[str, Any]

    def write(self, path: Path) -> None:
        schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
        with pq.ParquetWriter(path, schema, **self.how) as writer:
            for group in self.groups:
                writer.write_table(pa.table({"id": range(len(group)), "text": list(group)}, schema), row_group_size=1 << 20)

    def rows(self) -> list[tuple[int, str | None]]:
        return list(enumerate(text for group in self.groups for text in group))


TEXTS = st.one_of(st.none(), st.just(" "), st.text("aäé😀 ", max_size=9), st.integers(0, 300).map(lambda n: "x" * n))
HOW = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["none", "snappy", "gzip", "zstd", "lz4", "brotli"]),
        "use_dictionary": st.booleans(),
        "data_page_size": st.sampled_from([1, 64, 1 << 20]),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "write_batch_size": st.sampled_from([1, 7, 1024]),
    }
)
GROUPS = st.lists(st.lists(TEXTS, max_size=30), max_size=5)
# A first window without any text is refused, so the first row has one.
TABLES = st.builds(Table, GROUPS.map(lambda groups: [["a text", *first] for first in groups[:1]] + groups[1:]), HOW)


@given(table=TABLES, window_bytes=st.sampled_from([1, 50, 400, 1 << 20]), stripes=st.integers(1, 4), data=st.data())
def test_lanes_that_begin_again_anywhere_read_each_row_once(
    table: Table, window_bytes: int, stripes: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "s.parquet"
    table.write(path)
    reader = opened(path, window_bytes)
    blocks = {Stripe(0, first, stripes): first for first in range(stripes)}
    for stripe, block in blocks.items():
        reader.follow(stripe, block)
    texts: list[tuple[int, str]] = []
    empty = 0
    while blocks:
        if data.draw(st.integers(0, 9), "0: begin again") == 0:
            for stripe in blocks:
                reader.leave(stripe)
            reader = opened(path, window_bytes)
            for stripe, block in blocks.items():
                reader.follow(stripe, block)
        stripe = data.draw(st.sampled_from(sorted(blocks, key=lambda s: s.first)), "lane")
        found = reader.read(stripe, blocks[stripe], RestartPoint())
        if found is None:
            del blocks[stripe]
            assert reader.leave(stripe) == (not blocks)
            continue
        texts += zip(found.offsets, found.texts, strict=True)
        assert not found.skips
        empty += sum(one.documents for one in found.empty)
        blocks[stripe] += stripes
    assert sorted(texts) == [(row, text) for row, text in table.rows() if text and not text.isspace()]
    assert empty == sum(not text or text.isspace() for _, text in table.rows())


@given(table=TABLES, window_bytes=st.sampled_from([1, 50, 400]), data=st.data())
def test_a_window_is_the_same_whichever_was_read_before(
    table: Table, window_bytes: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "s.parquet"
    table.write(path)
    windows = windows_of(opened(path, window_bytes))
    for block in data.draw(st.lists(st.integers(0, max(0, len(windows) - 1)), max_size=5), "blocks"):
        alone = opened(path, window_bytes)
        alone.follow(EVERY_WINDOW, block)
        assert alone.read(EVERY_WINDOW, block, RestartPoint()) == (windows[block] if windows else None)
        alone.leave(EVERY_WINDOW)


def windows_of(reader: DocumentReader) -> list[Documents]:
    reader.follow(EVERY_WINDOW, 0)
    windows: list[Documents] = []
    while (found := reader.read(EVERY_WINDOW, len(windows), RestartPoint())) is not None:
        windows.append(found)
    reader.leave(EVERY_WINDOW)
    return windows


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """One row group with 24 MiB of text that does not get smaller, and as much again in a column that nobody asks for."""
    texts = [random.Random(number).randbytes(2 * 1024).hex() for number in range(6144)]
    pages_of_1_mib = {"compression": "none", "use_dictionary": False, "write_batch_size": 64}
    pq.write_table(pa.table({"text": texts, "other": texts[::-1]}), tmp_path / "s.parquet", **pages_of_1_mib)
    return tmp_path / "s.parquet"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each request for a part of a shard."""
    sizes: list[int] = []
    fetch = stored_bytes.StoredBytes._fetch

    def counted(
        self: stored_bytes.StoredBytes, store: store.Store, cancelled: threading.Event, start: int, stop: int
    ) -> bytes | bytearray:
        content = fetch(self, store, cancelled, start, stop)
        sizes.append(len(content))
        return content

    monkeypatch.setattr(stored_bytes.StoredBytes, "_fetch", counted)
    return sizes


def test_of_a_row_group_little_more_than_a_window_is_fetched_and_held(large: Path, fetched: list[int]) -> None:
    reader, before = opened(large, window_bytes=MIB, block_bytes=MIB), pa.total_allocated_bytes()
    stripe, held, block = EVERY_WINDOW, 0, 0
    reader.follow(stripe, 0)
    while reader.read(stripe, block, RestartPoint()) is not None:
        held, block = max(held, pa.total_allocated_bytes() - before), block + 1
        if block == 1:
            assert sum(fetched) < 4 * MIB
    reader.leave(stripe)
    assert block == 25
    assert held < 8 * MIB
    assert 24 * MIB < sum(fetched) < 25 * MIB
    assert max(fetched) <= 2 * MIB


def test_lanes_that_keep_step_share_what_is_fetched_of_a_row_group(large: Path, fetched: list[int]) -> None:
    reader = opened(large, window_bytes=MIB, block_bytes=MIB)
    stripes = [Stripe(0, first, 4) for first in (2, 0, 3, 1)]
    for stripe in stripes:
        reader.follow(stripe, stripe.first)
    for turn in range(6):
        for stripe in stripes:
            assert reader.read(stripe, stripe.first + 4 * turn, RestartPoint()) is not None
    for stripe in stripes:
        reader.leave(stripe)
    assert sum(fetched) < 25 * MIB


def served(path: Path, reads: list[tuple[int, int]], expected: list[tuple[int, int]], block_bytes: int) -> list[bytes]:
    """What reads of parts give, of a file on a store that is not local."""
    fsspec.filesystem("memory").pipe_file("/s.parquet", path.read_bytes())
    with closing(ShardFile("memory://s.parquet", None, TransportOptions(block_bytes=block_bytes))) as file:
        file.upcoming = expected
        found = []
        for start, stop in reads:
            file.seek(start)
            found.append(file.read(stop - start))
        return found


@given(data=st.data())
def test_whatever_is_expected_the_bytes_are_those_that_are_asked_for(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytes(range(256)) * 2
    path = tmp_path_factory.getbasetemp() / "s.bytes"
    path.write_bytes(content)
    parts = st.tuples(st.integers(0, 600), st.integers(0, 200)).map(lambda part: (part[0], part[0] + part[1]))
    expected = sorted(data.draw(st.lists(parts, max_size=3)))
    reads = data.draw(st.lists(parts, max_size=4))
    # As a reader does that goes on where it was, or where it was expected to.
    reads += [(stop, stop + 50) for _, stop in reads[-1:]] + expected
    block_bytes = data.draw(st.integers(1, 100))
    assert served(path, reads, expected, block_bytes) == [content[start:stop] for start, stop in reads]


def test_the_part_that_is_read_next_is_on_its_way_and_fetched_once(large: Path, fetched: list[int]) -> None:
    size = large.stat().st_size
    expected = [(100, 2 * MIB), (3 * MIB, 5 * MIB)]
    content = large.read_bytes()
    reads = [(100, MIB), (MIB, MIB + 300), (MIB + 300, 2 * MIB), (3 * MIB, 4 * MIB), (4 * MIB, 5 * MIB)]
    assert served(large, reads, expected, MIB) == [content[start:stop] for start, stop in reads]
    assert fetched == [1, MIB - 100, MIB, MIB, MIB]
    assert size > 24 * MIB


def test_a_damaged_page_is_noticed_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    texts = [f"the text of document {i}" for i in range(200)]
    Table([texts], {"compression": "none", "use_dictionary": False, "write_page_checksum": True}).write(path)
    path.write_bytes(path.read_bytes().replace(b"document 150", b"document 15X"))
    reader = opened(path, MIB)
    reader.follow(EVERY_WINDOW, 0)
    with pytest.raises(ContentError, match=r"^s.parquet: row group 0 is damaged \(.*CRC checksum"):
        reader.read(EVERY_WINDOW, 0, RestartPoint())
    reader.leave(EVERY_WINDOW)


def windows(path: Path) -> list[Documents]:
    reader = opened(path, MIB)
    reader.follow(EVERY_WINDOW, 0)
    found = []
    while (window := reader.read(EVERY_WINDOW, len(found), RestartPoint())) is not None:
        found.append(window)
    reader.leave(EVERY_WINDOW)
    return found


def test_a_footer_that_would_end_the_process_is_damage(tmp_path: Path) -> None:
    """Arrow translates no exception of a chunk that Python asks for."""
    path = tmp_path / "s.parquet"
    Table([["a text"], ["another"]], {}).write(path)
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    damaged = []
    for bit in range(27 * 8, 31 * 8):  # whether a column is repeated, and its name
        flipped = bytearray(content)
        flipped[footer + bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with suppress(ContentError):
            windows(path)
            continue
        damaged.append(bit)
    assert set(damaged) >= {224, *range(232, 239)}, "of which each ends a process that asks for the chunk"


def test_a_column_whose_name_is_damaged_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    Table([["a text"]], {"store_schema": False}).write(path)
    path.write_bytes(path.read_bytes().replace(b"text", b"te\xf8t"))
    with pytest.raises(ContentError, match=r"^s\.parquet: .*UnicodeDecodeError"):
        windows(path)


@pytest.mark.parametrize(
    ("plaintext_footer", "said"),
    [
        (True, r"its footer is damaged, or the text is encrypted \(OSError: Cannot decrypt ColumnMetadata"),
        (False, "is encrypted, which is not supported: decrypt it"),
    ],
)
def test_an_encrypted_file_says_so(plaintext_footer: bool, said: str, tmp_path: Path) -> None:
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(encryption.KmsClient):  # type: ignore[misc, name-defined]
        def wrap_key(self, key: bytes, _: str) -> bytes:
            return base64.b64encode(key)

    configuration = encryption.EncryptionConfiguration("a", column_keys={"b": ["text"]}, plaintext_footer=plaintext_footer)
    factory = encryption.CryptoFactory(lambda _: Keys())
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), configuration)
    Table([["a text"]], {"encryption_properties": properties}).write(tmp_path / "s.parquet")
    with pytest.raises(ContentError, match=f"^s.parquet: {said}"):
        windows(tmp_path / "s.parquet")


def test_a_lack_of_memory_is_no_damage_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 4294967296 failed")

    Table([["a text"]], {}).write(tmp_path / "s.parquet")
    monkeypatch.setattr(parquet._RowPass, "_enter", refuse)
    with pytest.raises(SourceError, match=r"^s\.parquet: there is too little memory to decompress it \(malloc of") as caught:
        windows(tmp_path / "s.parquet")
    assert not isinstance(caught.value, ContentError), "which --data.on-bad-shard skip would pass over"


def test_the_rows_before_the_damage_of_a_row_group_are_read_by_every_lane_and_after_every_start(large: Path) -> None:
    content = bytearray(large.read_bytes())
    column = pq.read_metadata(large).row_group(0).column(0)
    middle = column.data_page_offset + column.total_compressed_size // 2
    content[middle : middle + 4096] = b"\xff" * 4096
    large.write_bytes(content)

    def met(stripe: Stripe, first: int) -> int:
        reader, block = opened(large, window_bytes=MIB), first
        reader.follow(stripe, first)
        with suppress(ContentError):
            while reader.read(stripe, block, RestartPoint()) is not None:
                block += stripe.count
        with pytest.raises(ContentError, match=r"^s.parquet: row group 0 is damaged \("):
            reader.read(stripe, block, RestartPoint())
        reader.leave(stripe)
        return block

    assert met(EVERY_WINDOW, 0) == 12
    assert [met(EVERY_WINDOW, block) for block in (5, 12)] == [12, 12]
    assert [met(Stripe(0, first, 4), first) for first in range(4)] == [12, 13, 14, 15]


def test_neighbouring_row_groups_are_one_window_as_long_as_they_fit_into_it(tmp_path: Path) -> None:
    def groups(*rows: int) -> list[list[int]]:
        Table([["x" * 100] * count for count in rows], {"compression": "none", "use_dictionary": False}).write(
            tmp_path / "s.parquet"
        )
        return [window.offsets for window in windows_of(opened(tmp_path / "s.parquet", 4_000))]

    assert groups(10, 10, 10, 10, 10) == [[*range(30)], [*range(30, 50)]]
    assert groups(60, 10, 10) == [[*range(30)], [*range(30, 60)], [*range(60, 80)]], "a large one is cut as it was by itself"
    assert groups(0, 0, 10, 0) == [[*range(10)]]
    assert groups(35, 0, 35) == [[*range(35)], [*range(35, 70)]]


def test_the_row_groups_of_a_window_are_fetched_from_a_store_at_once(tmp_path: Path) -> None:
    table = pa.table({"id": range(400), "text": [f"{i} " * 20 for i in range(400)]})
    pq.write_table(table, tmp_path / "s.parquet", row_group_size=10, write_page_checksum=True)
    with serve(tmp_path) as server:
        path = tmp_path / "s.parquet"
        shard = Shard(server.url("s.parquet"), "s.parquet", path.stat().st_size, None, "parquet", "none")
        options = ReadOptions("text", 8_000, MIB, TransportOptions(block_bytes=8 * MIB))
        windows = windows_of(open_reader(shard, options))
        assert len(windows) > 2
        assert windows == windows_of(opened(path, 8_000))
        assert len(server.log()) == 1 + len(windows), "one for the end of the file"
        small = replace(options, transport=TransportOptions(block_bytes=500))
        assert windows_of(open_reader(shard, small)) == windows, "windows larger than a block are fetched group by group"
        server.inject("s.parquet", {"do": "none", "times": 2}, {"do": "flip", "at": 5_000})
        assert windows_of(open_reader(shard, options)) == windows, "what the network has changed is fetched once more"
