"""The reader of Parquet, by slices of row groups; small neighbours are joined."""

from __future__ import annotations

import bisect
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.document import DocumentReader, Documents, ReadOptions
from stream_pretrain.data.documents.filters import nothing_usable, usable_documents
from stream_pretrain.data.documents.parquet_columns import text_columns
from stream_pretrain.data.documents.parquet_footer import look_at_chunks
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.documents.text_fields import NOT_UTF8, BadDocumentError, text_getter
from stream_pretrain.data.documents.windows import Windows
from stream_pretrain.data.transport.compression import PARQUET_MAGIC, looks_like
from stream_pretrain.data.transport.decoders import no_memory
from stream_pretrain.data.transport.readings import (
    Readings,
    digest_of,
    read_until_decided,
    wrong_content,
)
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.retrying import in_words
from stream_pretrain.data.transport.shard_bytes import ShardFile
from stream_pretrain.errors import ContentError
from stream_pretrain.units import MIB
from stream_pretrain.urls import is_remote

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


_ENCRYPTED_MAGIC = b"PARE"
"""Of a Parquet file whose footer is encrypted."""


class ParquetDocuments(DocumentReader):
    """Rows of a Parquet shard. A window is a slice of a row group, which can only be read from its start, or all of several
    neighbours that are no larger than a window together. Offsets are rows.

    Only the columns of the text are read, in batches smaller than a window.
    """

    def __init__(self, shard: Shard, options: ReadOptions) -> None:
        self.shard = shard
        self.options = options
        self.windows = ParquetWindows(shard, options)
        self.text_of = text_getter(options.text_field, options.text_template)

    def follow(self, stripe: Stripe, block: int) -> None:
        self.windows.follow(stripe, block)

    def leave(self, stripe: Stripe) -> bool:
        return self.windows.leave(stripe)

    def read(self, stripe: Stripe, block: int, restart: RestartPoint) -> Documents | None:
        self.windows.open_footer()
        window = self.windows.read(stripe, block, restart)
        if window is None:
            return None
        names = window.table.column_names
        rows = enumerate(zip(*window.table.columns, strict=True), window.row)
        documents = usable_documents(rows, lambda row: self._text_of(names, row), RestartPoint(), self.options)
        begin, end = window.row, window.row + window.table.num_rows
        documents = replace(
            documents,
            stored=self.windows.stored_bytes_of(begin, end),
            content_bytes=self.windows.text_bytes_before(end) - self.windows.text_bytes_before(begin),
        )
        if block == 0 and nothing_usable(documents):
            bad = documents.skips[0]
            raise ContentError(f"{self.shard.name}: no document in its first window; row {bad.offset}: {bad.reason}")
        return documents

    def offset_of(self, block: int) -> int:
        return self.windows.slices[block].row if self.windows.is_cut else 0

    def documents_from(self, stripe: Stripe, block: int) -> int | None:
        return sum(window.count for window in self.windows.slices[block :: stripe.count]) if self.windows.is_cut else None

    def _text_of(self, names: Sequence[str], row: tuple[pa.Scalar, ...]) -> str:
        try:
            value = {name: cell.as_py() for name, cell in zip(names, row, strict=True)}
        except UnicodeDecodeError:
            raise BadDocumentError(NOT_UTF8) from None
        return self.text_of(value)


@dataclass(frozen=True)
class _Rows:
    """The rows of a window, with the columns of the text."""

    row: int
    """Number of the first one in the shard."""
    table: pa.Table


@dataclass(frozen=True)
class _Slice:
    """A window of a Parquet shard: rows [first, first + count) of a row group, or all of several."""

    groups: range
    first: int
    count: int
    row: int
    """Number of its first row in the shard."""
    batch: int
    """Rows of the groups that are read at once."""

    @property
    def place(self) -> str:
        """The groups, in messages."""
        first, last = self.groups[0], self.groups[-1]
        return f"row group {first}" if first == last else f"row groups {first} to {last}"


class ParquetWindows(Windows[_Rows]):
    """The windows of a Parquet shard, for every lane of this process that reads a stripe of it."""

    BATCHES = 4
    """Batches per window, so that not much more than a window is held."""

    def __init__(self, shard: Shard, options: ReadOptions) -> None:
        super().__init__(shared=True, most_kept=options.most_kept)
        self.shard = shard
        self.options = options
        self.size = shard.size
        self.is_remote = is_remote(shard.url)
        self.is_cut = False
        """Whether the footer was read, which says what the windows are."""

    def open_footer(self) -> None:
        """Read the footer, and cut the shard into windows, at the first call."""
        if self.is_cut:
            return
        self.opened = time.time()
        if self.is_remote:
            self.metadata = read_until_decided(self.read_metadata, self.shard.name, "the end of the file")
        else:
            self.metadata = self.read_metadata()
        self.slices = self._cut()
        self.is_cut = True

    def read_metadata(self) -> pq.FileMetaData:
        """The footer of the file."""
        import pyarrow.parquet as pq

        with closing(self._bytes()) as file:
            try:
                with self.damage("is no whole Parquet file"):
                    metadata = pq.read_metadata(file)
            except ContentError as error:
                file.seek(0)
                head = file.read(64)
                if not head or head.startswith(PARQUET_MAGIC):
                    raise
                if head.startswith(_ENCRYPTED_MAGIC):
                    raise ContentError(f"{self.shard.name}: is encrypted, which is not supported: decrypt it") from error
                raise ContentError(f"{self.shard.name}: is no Parquet file: it looks like {looks_like(head)}") from error
            self.size = file.seek(0, os.SEEK_END)
        return metadata

    def open_pass(self, stripe: Stripe, block: int, restart: RestartPoint) -> _RowPass:  # noqa: ARG002
        return _RowPass(self, stripe, block)

    def passes_block(self, passed: int, block: int, restart: RestartPoint) -> bool:  # noqa: ARG002
        return block < len(self.slices) and self.slices[passed].groups == self.slices[block].groups

    def open(self) -> tuple[ShardFile, pq.ParquetFile]:
        """The file, opened for a pass of its own."""
        import pyarrow.parquet as pq

        file = self._bytes()
        buffer_size = max(MIB // 2, self.options.transport.block_bytes // len(self.options.fields))
        # With a buffer, Arrow fetches a column of a row group piece by piece, and all at once without.
        return file, pq.ParquetFile(
            file, metadata=self.metadata, buffer_size=buffer_size, pre_buffer=False, page_checksum_verification=True
        )

    def stored_bytes_of(self, begin: int, end: int) -> tuple[int, int]:
        """Stored bytes before some rows and up to their end, as if all rows had the same size."""
        rows, size = max(1, self.metadata.num_rows), self.size or 0
        return size * begin // rows, size * end // rows

    def text_bytes_before(self, row: int) -> int:
        """Uncompressed bytes of the text before a row, as if the rows of a row group had the same size."""
        group = bisect.bisect_right(self.rows_to, row) - 1
        if group == len(self.rows_to) - 1:
            return self.text_to[-1]
        rows, size = (to[group + 1] - to[group] for to in (self.rows_to, self.text_to))
        return self.text_to[group] + size * (row - self.rows_to[group]) // rows

    def parts_from(self, block: int) -> list[tuple[int, int]]:
        """The ranges of bytes that will be read for a block: of its row groups, and of the next one that any lane needs."""
        if len(self.options.fields) > 1:
            return []  # Arrow alternates between columns
        groups = self.slices[block].groups
        later_groups = (
            self.slices[later].groups[0]
            for later in range(block + 1, len(self.slices))
            if self.slices[later].groups[0] >= groups.stop and any(stripe.has(later) for stripe in self.next_of)
        )
        return [self._part(number, self.columns[0]) for number in (*groups, *itertools.islice(later_groups, 1))]

    def span(self, groups: range) -> tuple[int, int]:
        """Where the text of some row groups is in the file, including other columns between them."""
        starts, stops = zip(*(self._part(group, column) for group in groups for column in self.columns), strict=True)
        return min(starts), max(stops)

    def _part(self, group: int, column: int) -> tuple[int, int]:
        """Where a column of a row group is in the file."""
        chunk = self.metadata.row_group(group).column(column)
        start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
        return start, start + chunk.total_compressed_size

    def _bytes(self) -> ShardFile:
        return ShardFile(self.shard.url, self.size, self.options.transport, self.shard.identity)

    def _cut(self) -> list[_Slice]:
        metadata = self.metadata
        with self.damage("its footer is damaged, or the text is encrypted"):
            try:
                self.columns = text_columns(metadata, self.options.fields, numbers=self.options.text_template is not None)
            except ContentError as error:
                raise ContentError(f"{self.shard.name}: {error}") from error
            look_at_chunks(metadata, self.paths())
            row_groups = map(metadata.row_group, range(metadata.num_row_groups))
            groups_of_text: list[tuple[int, int]] = [
                (group.num_rows, sum(group.column(column).total_uncompressed_size for column in self.columns))
                for group in row_groups
            ]
        self.rows_to = [0, *itertools.accumulate(rows for rows, _ in groups_of_text)]
        self.text_to = [0, *itertools.accumulate(size for _, size in groups_of_text)]
        slices, row = [], 0
        for groups, rows, size in _joined(groups_of_text, self.options.window_bytes):
            parts = max(1, min(rows, -(-size // self.options.window_bytes)))
            edges = [rows * part // parts for part in range(parts + 1)]
            batch = max(1, rows // (parts * self.BATCHES))
            slices += [_Slice(groups, first, stop - first, row + first, batch) for first, stop in itertools.pairwise(edges)]
            row += rows
        return slices

    def paths(self) -> list[str]:
        """The columns of the text, as Arrow calls them."""
        return [self.metadata.schema.column(column).path for column in self.columns]

    @contextmanager
    def damage(self, what: str) -> Iterator[None]:
        """Turn an error of Arrow into one that names the shard and the place. A name that is not UTF-8 is damage, too.

        Raises: ContentError; SourceError for a lack of memory, which is no property of the shard.
        """
        import pyarrow as pa

        try:
            yield
        except MemoryError as error:  # of Arrow, too
            raise no_memory(self.shard.name, error) from error
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ContentError(f"{self.shard.name}: {what} ({in_words(error)})") from error


def text_bytes(shard: Shard, options: ReadOptions) -> int:
    """Uncompressed bytes of the text of a shard, from its footer. Raises: as reading it does."""
    windows = ParquetWindows(shard, options)
    windows.open_footer()
    return windows.text_to[-1]


def _joined(row_groups: Sequence[tuple[int, int]], window_bytes: int) -> list[tuple[range, int, int]]:
    """The row groups with their rows and the uncompressed bytes of their text; neighbours that fit into a window are joined."""
    joined: list[tuple[range, int, int]] = []
    for number, (rows, size) in enumerate(row_groups):
        if joined and joined[-1][2] + size <= window_bytes:
            groups, rows_before, size_before = joined.pop()
            joined.append((range(groups.start, number + 1), rows_before + rows, size_before + size))
        else:
            joined.append((range(number, number + 1), rows, size))
    return joined


class _RowPass:
    """A pass over row groups: each, or those that are joined, is read from its start."""

    def __init__(self, windows: ParquetWindows, stripe: Stripe, block: int) -> None:
        self.windows = windows
        self.stripe = stripe
        self.block = block
        self.source, self.file = windows.open()
        self.groups: range | None = None
        self.batches: Iterator[pa.RecordBatch] = iter(())
        self.given: list[int] = []  # blocks of the groups that were returned
        self.readings: Readings | None = None
        self.held: list[pa.RecordBatch] = []  # the last batches of the groups, up to...
        self.stop = 0  # ...this row of them

    @property
    def blocks(self) -> int:
        return len(self.windows.slices)

    def close(self) -> None:
        self.file.close(force=True)

    def read(self, block: int) -> _Rows | None:
        assert block >= self.block
        self.block = block + 1
        if block >= len(self.windows.slices):
            return None
        if not self.windows.is_remote:
            return self._read(block)
        window = self.windows.slices[block]
        if self.readings is None or window.groups != self.groups:
            self.given = []
            self.readings = Readings(self.windows.shard.name, window.place, "row")
        try:
            rows = self._read(block)
        except ContentError as damage:
            again = partial(self._read_again, block, self.readings, str(damage))
            rows = read_until_decided(again, self.windows.shard.name, window.place, str(damage))
        self.given.append(block)
        self.readings.record(digest_of(_content(rows)), rows.row)
        return rows

    def _read_again(self, block: int, readings: Readings, damage: str) -> _Rows:
        """Read a damaged row group once more."""
        same = self.windows.read_metadata().equals(self.windows.metadata)
        self.close()
        self.source, self.file = self.windows.open()
        self.groups = None
        if not same:
            raise wrong_content(self.windows.shard.name, "the end of the file", damage, "row 0", self.windows.opened)
        for number, given in enumerate(self.given):
            if not readings.was_returned(number, digest_of(_content(self._read(given)))):
                raise readings.wrong_from(number, damage)
        return self._read(block)

    def _read(self, block: int) -> _Rows:
        import pyarrow as pa

        window = self.windows.slices[block]
        if window.count == 0:  # of a row group without rows
            return _Rows(window.row, pa.table({}))
        with self.windows.damage(f"{window.place} {'is' if len(window.groups) == 1 else 'are'} damaged"):
            if window.groups != self.groups:
                self.source.upcoming = self.windows.parts_from(block)
                self._enter(window)
            self._drop_before(window.first)
            while self.stop < window.first + window.count:
                batch = next(self.batches, None)
                if batch is None:
                    raise ContentError(f"{self.windows.shard.name}: no row {self.stop} in {window.place}")
                self.held.append(batch)
                self.stop += batch.num_rows
                self._drop_before(window.first)
            table = pa.Table.from_batches(self.held)
        return _Rows(window.row, table.slice(table.num_rows - (self.stop - window.first), window.count))

    def _enter(self, window: _Slice) -> None:
        self.held, self.stop, self.groups = [], 0, window.groups
        if self.windows.is_remote and len(window.groups) > 1:
            self.source.hold(*self.windows.span(window.groups))
        paths = self.windows.paths()
        self.batches = self.file.iter_batches(window.batch, row_groups=[*window.groups], columns=paths, use_threads=False)

    def _drop_before(self, row: int) -> None:
        """Drop the batches that end before a row."""
        while self.held and self.stop - sum(batch.num_rows for batch in self.held[1:]) <= row:
            del self.held[0]


def _content(rows: _Rows) -> memoryview:
    """The content of rows as bytes, independent of the batches."""
    import pyarrow as pa

    written = pa.BufferOutputStream()
    with pa.ipc.new_stream(written, rows.table.schema) as stream:
        stream.write_table(rows.table.combine_chunks())
    return memoryview(written.getvalue())
