"""The reader of the formats that `datasets` parses: CSV, Arrow, WebDataset, and any with --data.reader datasets."""

from __future__ import annotations

import itertools
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.csv_rows import HEAD_BYTES, CsvRows, csv_rows
from stream_pretrain.data.documents.document import DocumentReader, Documents, ReadOptions
from stream_pretrain.data.documents.filters import nothing_usable, usable_documents
from stream_pretrain.data.documents.shard_filesystem import PROTOCOL, shard_url
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.documents.text_fields import MANY, encodable, text_getter, wrong_field
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.retrying import in_words
from stream_pretrain.data.transport.shard_bytes import ShardBytes, ShardFile
from stream_pretrain.errors import ContentError, SourceError, StreamPretrainError, causes


class ExampleDocuments(DocumentReader):
    """Examples of any format that `datasets` streams. A window is `EXAMPLES` of them in a row. Offsets are example numbers.

    There are no restart points: a resume, and each stripe, reads the shard from its start.
    """

    EXAMPLES = 1000

    def __init__(self, shard: Shard, options: ReadOptions) -> None:
        self.shard = shard
        self.options = options
        self.text_of = text_getter(options.text_field, options.text_template)
        self.reading: dict[Stripe, tuple[int, Iterator[Mapping[str, Any]]]] = {}  # number of the next example, and the rest

    def follow(self, stripe: Stripe, block: int) -> None:  # noqa: ARG002 (opened at the first read)
        self.reading[stripe] = 0, self._examples()

    def leave(self, stripe: Stripe) -> bool:
        del self.reading[stripe]
        return not self.reading

    def read(self, stripe: Stripe, block: int, restart: RestartPoint) -> Documents | None:  # noqa: ARG002
        first = self.offset_of(block)
        examples = self._window(stripe, first)
        if not examples:
            return None
        documents = usable_documents(enumerate(examples, first), self._text_of, RestartPoint(), self.options)
        if block == 0:
            bad = documents.all_bad
            # All rows of a table have the same columns.
            many = 1 if self.shard.builder in ("csv", "arrow") else MANY
            fault = wrong_field(examples, self.options.fields, bad, many=many)
            if fault is None and nothing_usable(documents):
                fault = f"no document in its first window; example {documents.skips[0].offset}: {bad}"
            if fault is not None:
                raise ContentError(f"{self.shard.name}: {fault}")
        return documents

    def offset_of(self, block: int) -> int:
        return block * self.EXAMPLES

    def _text_of(self, example: Mapping[str, Any]) -> str:
        return encodable(self.text_of(example))

    def _window(self, stripe: Stripe, first: int) -> list[Mapping[str, Any]]:
        """The examples of the window that starts with number `first`."""
        position, examples = self.reading[stripe]
        assert first >= position
        try:
            found = list(itertools.islice(examples, first - position, first - position + self.EXAMPLES))
        except Exception as error:  # every builder raises errors of its own, some in place of those of transport
            for cause in causes(error):
                if isinstance(cause, StreamPretrainError):
                    try:
                        raise cause from cause.__cause__
                    finally:
                        del cause  # or it would hold, by its traceback and this frame, the open file until garbage is collected
            words = f"`datasets` ({self.shard.builder}) cannot read it: {in_words(error)}"
            raise (SourceError if _of_this_machine(error) else ContentError)(f"{self.shard.name}: {words}") from error
        self.reading[stripe] = first + len(found), examples
        return found

    def _examples(self) -> Iterator[Mapping[str, Any]]:
        import datasets

        if self.shard.size == 0:
            return  # an empty shard, as for our own readers, where parsers want a header
        options: dict[str, Any] = {}
        rows = CsvRows({}, ends_in_crlf=False)
        if self.shard.builder == "text":
            options["sample_by"] = {"line": "line", "blank-line": "paragraph", "file": "document"}[self.options.text_documents]
        if self.shard.builder == "csv":
            # Text like "007" or "NA" stays as it is. In larger chunks of a wide file, pandas mixes types in a column.
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
        # Iterated by example, `datasets` would split its files over torch's data workers: the one file goes to the first.
        for columns in dataset.iter(batch_size=self.EXAMPLES):
            yield from rows.of(columns)
        if self.shard.builder == "webdataset" and self.shard.compression == "none":
            self._check_end_of_archive()

    @cached_property
    def _csv_rows(self) -> CsvRows:
        """From the first bytes of the content, once for all lanes."""
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
        """Refuse a tar archive that was cut between two files: only the blocks of zeros at its end are missing then."""
        with closing(ShardFile(self.shard.url, self.shard.size, self.options.transport, self.shard.identity)) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - tarfile.BLOCKSIZE))
            if file.read().strip(b"\0"):
                raise ContentError(f"{self.shard.name}: its end of archive is missing: the shard was cut short")


def _of_this_machine(error: Exception) -> bool:
    """Whether a package, memory or a file of `datasets` is missing here; otherwise the shard cannot be parsed."""
    return isinstance(error, (ImportError, MemoryError, NotImplementedError)) or getattr(error, "errno", None) is not None
