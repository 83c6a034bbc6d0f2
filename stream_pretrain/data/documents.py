"""The documents of a window: bytes, row groups or examples in; texts and what had to be skipped out."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import orjson

from stream_pretrain.config import TextDocuments, template_fields
from stream_pretrain.data.csv_rows import HEAD_BYTES, CsvRows, csv_rows
from stream_pretrain.data.dealing import Stripe
from stream_pretrain.data.json_files import json_fault
from stream_pretrain.data.parquet_columns import text_columns
from stream_pretrain.data.read_again import say_whole_then
from stream_pretrain.data.shard_filesystem import PROTOCOL, shard_url
from stream_pretrain.data.sources import Shard
from stream_pretrain.data.text_units import FileWindows, ParagraphWindows, paragraphs, whole
from stream_pretrain.data.texts import MANY, NOT_UTF8, BadDocumentError, NoTextError, text_getter, wrong_field
from stream_pretrain.data.transport import MIB, Restart, ShardBytes, ShardFile, TransportOptions, causes, in_words
from stream_pretrain.data.windows import LineWindows, Windows
from stream_pretrain.errors import ContentError, SourceError, StreamPretrainError, TransportError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


@dataclass(frozen=True)
class Skip:
    """What no row is made of. `offset` is an uncompressed byte of a line format, else a row number."""

    offset: int
    """Of the first of the documents."""
    reason: str
    documents: int = 1


@dataclass(frozen=True)
class Documents:
    """What one window holds, in the order of the shard."""

    texts: list[str]
    offsets: list[int]
    """Where each text stands in the shard: an uncompressed byte of a line format, else a row number."""
    skips: list[Skip]
    """Documents that could not be used, one by one."""
    restart: Restart
    filtered: int = 0
    """Documents left out by their length or as copies of another of the window."""
    empty: tuple[Skip, ...] = ()
    """Documents without text, all of a reason as one."""

    @property
    def read(self) -> int:
        """Documents of the window, whatever became of them."""
        return len(self.texts) + len(self.skips) + self.filtered + sum(one.documents for one in self.empty)


class DocumentReader(Protocol):
    """Windows of documents of one shard, for the lanes of this process."""

    def follow(self, stripe: Stripe, block: int) -> None: ...

    def leave(self, stripe: Stripe) -> bool: ...

    def read(self, stripe: Stripe, block: int, restart: Restart) -> Documents | None: ...

    def offset_of(self, block: int) -> int:
        """Where a window begins, as documents count it: an uncompressed byte of a line format, else a row number."""

    def documents_from(self, stripe: Stripe, block: int) -> int | None:
        """How many documents a stripe holds from a window on; None where the shard does not tell."""


@dataclass(frozen=True)
class ReadOptions:
    """How documents are found in a shard."""

    text_field: str
    window_bytes: int
    max_line_bytes: int
    transport: TransportOptions
    text_template: str | None = None
    """Instead of one field, several in braces with text around them."""
    min_characters: int = 0
    max_characters: int | None = None
    drop_duplicates: bool = False
    text_documents: TextDocuments = "line"

    @property
    def fields(self) -> list[str]:
        """Dotted names of the fields that make the text."""
        return [self.text_field] if self.text_template is None else template_fields(self.text_template)


def open_reader(shard: Shard, options: ReadOptions) -> DocumentReader:
    """The reader for a shard's format."""
    match shard.format:
        case "jsonl" | "text":
            return LineDocuments(shard, options)
        case "parquet":
            return ParquetDocuments(shard, options)
        case "examples":
            return ExampleDocuments(shard, options)


Found = TypeVar("Found")


def _documents_of(
    found: Iterable[tuple[int, Found]], text_of: Callable[[Found], str], restart: Restart, options: ReadOptions
) -> Documents:
    """The texts of what was found in a window, each given with its offset, and what had to be skipped or was left out."""
    texts: list[str] = []
    offsets: list[int] = []
    skips: list[Skip] = []
    empty: dict[str, Skip] = {}
    filtered = 0
    longest = math.inf if options.max_characters is None else options.max_characters
    seen: set[str] = set()
    for offset, candidate in found:
        try:
            text = text_of(candidate)
        except BadDocumentError as bad:
            skips.append(Skip(offset, str(bad)))
            continue
        except NoTextError as none:
            if options.min_characters:
                filtered += 1
            else:
                first = empty.get(none.reason) or Skip(offset, str(none), 0)
                empty[none.reason] = replace(first, documents=first.documents + 1)
            continue
        if not options.min_characters <= len(text) <= longest or text in seen:
            filtered += 1
            continue
        if options.drop_duplicates:
            seen.add(text)
        texts.append(text)
        offsets.append(offset)
    return Documents(texts, offsets, skips, restart, filtered, tuple(empty.values()))


def _nothing_usable(documents: Documents) -> bool:
    return not documents.texts and not documents.filtered and len(documents.skips) >= MANY


@dataclass(frozen=True)
class _Unit:
    """What a document of a shard of lines is."""

    windows: type[LineWindows]
    split: Callable[[bytes, int, int], Iterator[tuple[int, bytes]]]
    """The documents of a window, with their offsets in the shard, from its bytes, its offset and the most bytes of one."""
    too_long: str


class LineDocuments:
    """JSON lines (one object a line) or plain text (a line, a paragraph or the whole a document). Only LF ends a line."""

    def __init__(self, shard: Shard, options: ReadOptions) -> None:
        if shard.format == "text" and options.text_template is not None:
            raise SourceError(f"{shard.name}: a line of text has no fields for --data.text-template: leave the option out")
        self.shard = shard
        self.options = options
        self.unit = _UNITS[options.text_documents if shard.format == "text" else "line"]
        self.windows = self.unit.windows(
            self._open,
            compressed=shard.compression != "none",
            window_bytes=options.window_bytes,
            max_line_bytes=options.max_line_bytes,
        )
        self.follow = self.windows.follow
        self.leave = self.windows.leave
        self.text_of: Callable[[bytes], str] = plain_text if shard.format == "text" else json_parser(options)

    def _open(self, restart: Restart) -> ShardBytes:
        transport = self.options.transport
        if self.shard.compression == "none" and any(stripe.count > 1 for stripe in self.windows.next_of):
            # A stripe of a plain shard needs every k-th window: fetch that and its last line, not the windows of others.
            window = self.options.window_bytes
            transport = replace(transport, block_bytes=min(transport.block_bytes, window + window // 16))
        return ShardBytes(self.shard.url, self.shard.compression, self.shard.size, restart, transport, self.shard.identity)

    def read(self, stripe: Stripe, block: int, restart: Restart) -> Documents | None:
        window = self.windows.read(stripe, block, restart)
        if window is None:
            return None
        lines = window.lines.removeprefix(b"\xef\xbb\xbf") if block == 0 else window.lines
        offset = window.offset + len(window.lines) - len(lines)
        found = self.unit.split(lines, offset, self.options.max_line_bytes)
        documents = _documents_of(found, self._text_of_short, window.restart, self.options)
        if window.overlong is not None:
            documents.skips.append(Skip(window.overlong, self.unit.too_long))
        if block == 0:
            self._check_first_window(lines, documents)
        return documents

    def offset_of(self, block: int) -> int:
        return block * self.options.window_bytes

    def documents_from(self, stripe: Stripe, block: int) -> int | None:  # noqa: ARG002
        return None

    def _text_of_short(self, line: bytes) -> str:
        if len(line) > self.options.max_line_bytes:
            raise BadDocumentError(self.unit.too_long)
        return self.text_of(line)

    def _head(self) -> bytes:
        """The first bytes of the content."""
        with closing(self._open(Restart())) as content:
            return content.read().removeprefix(b"\xef\xbb\xbf")[:HEAD_BYTES]

    def _check_first_window(self, lines: bytes, documents: Documents) -> None:
        fault = None
        if lines.startswith((b"\xff\xfe", b"\xfe\xff")):
            fault = "is UTF-16, not UTF-8: convert it"
        elif self.shard.format == "jsonl":
            fault = self._json_fault(lines, documents)
        if fault is None and _nothing_usable(documents):
            first = documents.skips[0]
            fault = (
                f"no document in its first window; {len(documents.skips)} lines skipped, "
                f"the first at byte {first.offset}: {first.reason}"
            )
        if fault is not None:
            raise ContentError(f"{self.shard.name}: {fault}")

    def _json_fault(self, lines: bytes, documents: Documents) -> str | None:
        bad = documents.skips[0].reason if documents.skips and not documents.texts and not documents.filtered else None
        fault = None
        if documents.skips or not documents.texts:
            content = lines if lines.strip() else self._head()  # a first line that is too long is not among them
            fault = json_fault(content, self.shard, self.options.fields, usable=bool(documents.texts))
        if fault is None and bad is not None:
            fault = diagnose(lines)
        return fault or wrong_field(_objects(lines), self.options.fields, bad)


_TOO_LONG = "line too long"


def _with_offsets(lines: bytes, offset: int, longest: int) -> Iterator[tuple[int, bytes]]:  # noqa: ARG001 (as `paragraphs`)
    """The lines that are not blank, with their offsets in the shard."""
    for line in lines.split(b"\n"):
        if line and not line.isspace():
            yield offset, line
        offset += len(line) + 1


_UNITS: dict[TextDocuments, _Unit] = {
    "line": _Unit(LineWindows, _with_offsets, _TOO_LONG),
    "blank-line": _Unit(ParagraphWindows, paragraphs, "paragraph too long"),
    "file": _Unit(FileWindows, whole, "file too long"),
}


def plain_text(document: bytes) -> str:
    """The text of a document whose lines end in LF or CRLF; LF is between them."""
    try:
        return document.removesuffix(b"\r").replace(b"\r\n", b"\n").decode()
    except UnicodeDecodeError:
        raise BadDocumentError(NOT_UTF8) from None


def json_parser(options: ReadOptions) -> Callable[[bytes], str]:
    """A function from a JSON line to its text; the last of duplicate keys counts."""
    text_of = text_getter(options.text_field, options.text_template)

    return lambda line: text_of(_parsed(line))


def _parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return _parse_leniently(line)


def _objects(lines: bytes) -> Iterator[object]:
    """What the lines hold that are JSON."""
    for line in lines.split(b"\n"):
        with suppress(BadDocumentError):
            yield _parsed(line)


def _parse_leniently(line: bytes) -> Any:
    """JSON as Python writes it (NaN, Infinity, integers of any size), which a strict parser refuses."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        raise BadDocumentError(NOT_UTF8) from None
    except (ValueError, RecursionError):
        raise BadDocumentError("not JSON") from None


def diagnose(lines: bytes) -> str | None:
    """What a .jsonl shard is that begins without a usable line, and what to do; None where nothing is known to be wrong."""
    head = lines[:65536].lstrip()
    first = head.split(b"\n", 1)[0].strip()
    if head[:200].count(b"\x00") > 20:
        return "is UTF-16, not UTF-8: convert it"
    if b"\r" in first:
        return "ends its lines with CR alone: convert them to LF"
    return None


class ParquetDocuments:
    """Rows of a Parquet shard. A window is a slice of a row group, which can be entered at its beginning alone.

    Only the columns that make the text are read, in batches smaller than a window.
    """

    def __init__(self, shard: Shard, options: ReadOptions) -> None:
        self.shard = shard
        self.options = options
        self.windows: ParquetWindows | None = None
        self.followed: dict[Stripe, int] = {}
        self.text_of = text_getter(options.text_field, options.text_template)

    def follow(self, stripe: Stripe, block: int) -> None:
        self.followed[stripe] = block
        if self.windows is not None:
            self.windows.follow(stripe, block)

    def leave(self, stripe: Stripe) -> bool:
        del self.followed[stripe]
        if self.windows is not None:
            self.windows.leave(stripe)
        return not self.followed

    def read(self, stripe: Stripe, block: int, restart: Restart) -> Documents | None:
        if self.windows is None:
            self.windows = ParquetWindows(self.shard, self.options)
            for follower, first in self.followed.items():
                self.windows.follow(follower, first)
        window = self.windows.read(stripe, block, restart)
        if window is None:
            return None
        names = window.table.column_names
        rows = enumerate(zip(*window.table.columns, strict=True), window.row)
        documents = _documents_of(rows, lambda row: self._text_of(names, row), Restart(), self.options)
        if block == 0 and _nothing_usable(documents):
            bad = documents.skips[0]
            raise ContentError(f"{self.shard.name}: no document in its first window; row {bad.offset}: {bad.reason}")
        return documents

    def offset_of(self, block: int) -> int:
        return 0 if self.windows is None else self.windows.slices[block].row  # without its metadata it cannot be entered at all

    def documents_from(self, stripe: Stripe, block: int) -> int | None:
        if self.windows is None:
            return None
        return sum(window.count for window in self.windows.slices[block :: stripe.count])

    def _text_of(self, names: Sequence[str], row: tuple[pa.Scalar, ...]) -> str:
        try:
            value = {name: cell.as_py() for name, cell in zip(names, row, strict=True)}
        except UnicodeDecodeError:
            raise BadDocumentError(NOT_UTF8) from None
        return self.text_of(value)


@dataclass(frozen=True)
class _Rows:
    """The rows of a window, with the columns that make the text."""

    row: int
    """Number of the first in the shard."""
    table: pa.Table


@dataclass(frozen=True)
class _Slice:
    """A window of a Parquet shard: rows [first, first + count) of a row group."""

    group: int
    first: int
    count: int
    row: int
    """Number of its first row in the shard."""
    batch: int
    """Rows of the group that are read at once."""


class ParquetWindows(Windows[_Rows]):
    """The windows of a Parquet shard, for every lane of this process that reads a stripe of it."""

    BATCHES = 4
    """Batches that a window is read in, so that not much more than a window is held."""

    def __init__(self, shard: Shard, options: ReadOptions) -> None:
        super().__init__(shared=True)
        self.shard = shard
        self.options = options
        self.size = shard.size
        self.is_remote = "://" in shard.url and not shard.url.startswith("file://")
        try:
            self.metadata = self.read_metadata()
        except ContentError as damage:
            if not self.is_remote:
                raise
            self.metadata = self.read_metadata()
            say_whole_then(shard.name, "the end of the file", str(damage))
        self.slices = self._cut()

    def read_metadata(self) -> pq.FileMetaData:
        """What the end of the file says of the rest."""
        import pyarrow.parquet as pq

        with closing(self._bytes()) as file, self.damage("is no whole Parquet file"):
            metadata = pq.read_metadata(file)
            self.size = file.seek(0, os.SEEK_END)
        return metadata

    def open_pass(self, stripe: Stripe, block: int, restart: Restart) -> _RowPass:  # noqa: ARG002
        return _RowPass(self, stripe, block)

    def comes_by(self, passed: int, block: int, restart: Restart) -> bool:  # noqa: ARG002
        return block < len(self.slices) and self.slices[passed].group == self.slices[block].group

    def open(self) -> tuple[ShardFile, pq.ParquetFile]:
        """The file once more, with a place of its own in its bytes."""
        import pyarrow.parquet as pq

        file = self._bytes()
        buffer_size = max(MIB // 2, self.options.transport.block_bytes // len(self.options.fields))
        # A buffer makes Arrow fetch a column piece by piece, where it would fetch all of a row group's without.
        return file, pq.ParquetFile(
            file, metadata=self.metadata, buffer_size=buffer_size, pre_buffer=False, page_checksum_verification=True
        )

    def parts_from(self, block: int) -> list[tuple[int, int]]:
        """The bytes that will be read for a block: those of its row group and of the next one that any lane needs."""
        if len(self.options.fields) > 1:
            return []  # Arrow goes to and fro between columns
        group = self.slices[block].group
        behind = (
            self.slices[later].group
            for later in range(block + 1, len(self.slices))
            if self.slices[later].group > group and any(later % stripe.count == stripe.first for stripe in self.next_of)
        )
        return [self._part(number) for number in (group, *itertools.islice(behind, 1))]

    def _part(self, group: int) -> tuple[int, int]:
        """Where the text column of a row group lies in the file."""
        column = self.metadata.row_group(group).column(self.columns[0])
        start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        return start, start + column.total_compressed_size

    def _bytes(self) -> ShardFile:
        return ShardFile(self.shard.url, self.size, self.options.transport, self.shard.identity)

    def _cut(self) -> list[_Slice]:
        metadata = self.metadata
        try:
            self.columns = text_columns(metadata, self.options.fields, numbers=self.options.text_template is not None)
        except ContentError as error:
            raise ContentError(f"{self.shard.name}: {error}") from error
        slices, row = [], 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            size = sum(group.column(column).total_uncompressed_size for column in self.columns)
            parts = max(1, min(group.num_rows, -(-size // self.options.window_bytes)))
            edges = [group.num_rows * part // parts for part in range(parts + 1)]
            batch = max(1, group.num_rows // (parts * self.BATCHES))
            slices += [_Slice(number, first, stop - first, row + first, batch) for first, stop in itertools.pairwise(edges)]
            row += group.num_rows
        return slices

    @contextmanager
    def damage(self, what: str) -> Iterator[None]:
        """Say which shard is damaged, and where, when Arrow cannot read it."""
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise ContentError(f"{self.shard.name}: {what} ({in_words(error)})") from error


class _RowPass:
    """Goes through row groups, each from its beginning."""

    def __init__(self, windows: ParquetWindows, stripe: Stripe, block: int) -> None:
        self.windows = windows
        self.stripe = stripe
        self.block = block
        self.source, self.file = windows.open()
        self.group: int | None = None
        self.batches: Iterator[pa.RecordBatch] = iter(())
        self.given: dict[int, bytes] = {}  # digests of the windows of the group that were given out, by their blocks
        self.held: list[pa.RecordBatch] = []  # the last of the group that were read...
        self.stop = 0  # ...up to this row of it

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
        group = self.windows.slices[block].group
        self.given = {before: told for before, told in self.given.items() if self.windows.slices[before].group == group}
        try:
            rows = self._read(block)
        except ContentError as damage:
            rows = self._read_again(block, damage)
        self.given[block] = _digest(rows)
        return rows

    def _read_again(self, block: int, damage: ContentError) -> _Rows:
        """Ask the store once more for a row group that is damaged; what it gives then counts."""
        same = self.windows.read_metadata().equals(self.windows.metadata)
        self.close()
        self.source, self.file = self.windows.open()
        self.group = None
        if not same or any(_digest(self._read(before)) != told for before, told in self.given.items()):
            raise TransportError(
                f"{damage}: it was damaged on its way: read again, what was given out of it before is something else; "
                "check the network, a proxy or the memory of this machine; the same command goes on from the last checkpoint"
            ) from damage
        rows = self._read(block)
        say_whole_then(self.windows.shard.name, f"row group {self.group}", str(damage))
        return rows

    def _read(self, block: int) -> _Rows:
        import pyarrow as pa

        window = self.windows.slices[block]
        if window.count == 0:  # of a row group without rows
            return _Rows(window.row, pa.table({}))
        with self.windows.damage(f"row group {window.group} is damaged"):
            if window.group != self.group:
                self.source.expected = self.windows.parts_from(block)
                self._enter(window)
            self._drop_before(window.first)
            while self.stop < window.first + window.count:
                batch = next(self.batches, None)
                if batch is None:
                    raise ContentError(f"{self.windows.shard.name}: row group {window.group} ends at its row {self.stop}")
                self.held.append(batch)
                self.stop += batch.num_rows
                self._drop_before(window.first)
            table = pa.Table.from_batches(self.held)
        return _Rows(window.row, table.slice(table.num_rows - (self.stop - window.first), window.count))

    def _enter(self, window: _Slice) -> None:
        self.held, self.stop, self.group = [], 0, window.group
        paths = [self.windows.metadata.schema.column(column).path for column in self.windows.columns]
        self.batches = self.file.iter_batches(window.batch, row_groups=[window.group], columns=paths, use_threads=False)

    def _drop_before(self, row: int) -> None:
        """Forget batches that end before a row."""
        while self.held and self.stop - sum(batch.num_rows for batch in self.held[1:]) <= row:
            del self.held[0]


def _digest(rows: _Rows) -> bytes:
    """Of the content of rows, however it was read in batches."""
    import pyarrow as pa

    written = pa.BufferOutputStream()
    with pa.ipc.new_stream(written, rows.table.schema) as stream:
        stream.write_table(rows.table.combine_chunks())
    return hashlib.blake2b(written.getvalue(), digest_size=16).digest()


class ExampleDocuments:
    """Examples of any format that `datasets` streams. A window is `EXAMPLES` of them in a row.

    There is nothing to seek by: a resume reads the examples before its window again, and a stripe those of the others.
    """

    EXAMPLES = 1000

    def __init__(self, shard: Shard, options: ReadOptions) -> None:
        self.shard = shard
        self.options = options
        self.text_of = text_getter(options.text_field, options.text_template)
        self.reading: dict[Stripe, tuple[int, Iterator[Mapping[str, Any]]]] = {}  # the next example's number, and the rest

    def follow(self, stripe: Stripe, block: int) -> None:  # noqa: ARG002 (opened at the first read)
        self.reading[stripe] = 0, self._examples()

    def leave(self, stripe: Stripe) -> bool:
        del self.reading[stripe]
        return not self.reading

    def read(self, stripe: Stripe, block: int, restart: Restart) -> Documents | None:  # noqa: ARG002
        first = self.offset_of(block)
        found = self._window(stripe, first)
        if not found:
            return None
        documents = _documents_of(enumerate(found, first), self.text_of, Restart(), self.options)
        if block == 0:
            bad = documents.skips[0].reason if documents.skips and not documents.texts and not documents.filtered else None
            # The columns of a table are the same in all its rows.
            fault = wrong_field(found, self.options.fields, bad, many=1 if self.shard.builder in ("csv", "arrow") else MANY)
            if fault is None and _nothing_usable(documents):
                fault = f"no document in its first window; example {documents.skips[0].offset}: {bad}"
            if fault is not None:
                raise ContentError(f"{self.shard.name}: {fault}")
        return documents

    def offset_of(self, block: int) -> int:
        return block * self.EXAMPLES

    def documents_from(self, stripe: Stripe, block: int) -> int | None:  # noqa: ARG002
        return None

    def _window(self, stripe: Stripe, first: int) -> list[Mapping[str, Any]]:
        """The examples of the window that begins with number `first`."""
        position, examples = self.reading[stripe]
        assert first >= position
        try:
            found = list(itertools.islice(examples, first - position, first - position + self.EXAMPLES))
        except Exception as error:  # every builder has errors of its own, some in place of the one that was in its way
            for cause in causes(error):
                if isinstance(cause, StreamPretrainError):
                    raise cause from cause.__cause__
            words = f"`datasets` ({self.shard.builder}) cannot read it: {in_words(error)}"
            raise (SourceError if _of_this_machine(error) else ContentError)(f"{self.shard.name}: {words}") from error
        self.reading[stripe] = first + len(found), examples
        return found

    def _examples(self) -> Iterator[Mapping[str, Any]]:
        import datasets

        if self.shard.size == 0:
            return  # as in formats of our own; parsers want a header
        options: dict[str, Any] = {}
        rows = CsvRows({}, ends_in_crlf=False)
        if self.shard.builder == "text":
            options["sample_by"] = {"line": "line", "blank-line": "paragraph", "file": "document"}[self.options.text_documents]
        if self.shard.builder == "csv":
            # Text like "007" or "NA" stays as it is. In larger chunks of a wide file, pandas gives a column several types.
            rows = self._csv_rows
            options = {**rows.options, "keep_default_na": False, "chunksize": self.EXAMPLES}
        dataset = datasets.load_dataset(
            self.shard.builder,
            data_files=[shard_url(self.shard)],
            split="train",
            streaming=True,
            storage_options={PROTOCOL: {"shard": self.shard, "transport": self.options.transport}},
            **options,
        )
        # Example by example, `datasets` would deal its files to the data workers of torch: the one file to the first worker.
        for columns in dataset.iter(batch_size=self.EXAMPLES):
            yield from rows.of(columns)
        if self.shard.builder == "webdataset" and self.shard.compression == "none":
            self._check_end_of_archive()

    @cached_property
    def _csv_rows(self) -> CsvRows:
        """Told from the first bytes of the content, once for all lanes."""
        separator = "\t" if ".tsv" in PurePosixPath(self.shard.name.lower()).suffixes else ","
        shard, transport = self.shard, replace(self.options.transport, block_bytes=HEAD_BYTES)
        with closing(
            ShardBytes(shard.url, shard.compression, shard.size, options=transport, identity=shard.identity)
        ) as content:
            head = b""
            while len(head) < HEAD_BYTES and (chunk := content.read()):
                head += chunk
        return csv_rows(head[:HEAD_BYTES], separator, self.options.fields)

    def _check_end_of_archive(self) -> None:
        """A tar archive that was cut between two files lacks nothing else that tells: it ends with blocks of zeros."""
        with closing(ShardFile(self.shard.url, self.shard.size, self.options.transport, self.shard.identity)) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - tarfile.BLOCKSIZE))
            if file.read().strip(b"\0"):
                raise ContentError(f"{self.shard.name}: its end of archive is missing: the shard was cut short")


def _of_this_machine(error: Exception) -> bool:
    """Whether a package, memory or a file of `datasets` is missing here; else the shard cannot be parsed."""
    return isinstance(error, (ImportError, MemoryError, NotImplementedError)) or getattr(error, "errno", None) is not None
