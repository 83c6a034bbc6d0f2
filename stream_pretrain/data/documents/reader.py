"""Which reader a unit has. A new format is a file beside these, a line here and a record in corpus/file_formats.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from stream_pretrain.data.corpus.file_formats import Format
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.bundle import BundleDocuments
from stream_pretrain.data.documents.document import DocumentReader, Documents, ReadOptions
from stream_pretrain.data.documents.examples import ExampleDocuments
from stream_pretrain.data.documents.lines import LineDocuments
from stream_pretrain.data.documents.parquet import ParquetDocuments
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.transport.restart_point import RestartPoint

READERS: dict[Format, Callable[[Shard, ReadOptions], DocumentReader]] = {
    "jsonl": LineDocuments,
    "text": LineDocuments,
    "parquet": ParquetDocuments,
    "examples": ExampleDocuments,
}


def open_reader(shard: Shard, options: ReadOptions) -> DocumentReader:
    """The reader of a shard, which is opened by the first read."""
    return READERS[shard.format](shard, options)


def open_unit(shards: Sequence[Shard], options: ReadOptions) -> DocumentReader:
    """The reader of a shard by itself, or of a bundle."""
    if len(shards) == 1:
        return open_reader(shards[0], options)
    return BundleDocuments(shards, options, open_reader)


def windows_of(shard: Shard, options: ReadOptions) -> Iterator[Documents]:
    """All windows of a shard, in order, outside of a stream. Raises: as `DocumentReader.read`."""
    return windows_of_unit((shard,), options)


def windows_of_unit(shards: Sequence[Shard], options: ReadOptions) -> Iterator[Documents]:
    """All windows of a shard by itself, or of a bundle, as a stream reads them. Raises: as `DocumentReader.read`."""
    reader, stripe, restart = open_unit(shards, options), Stripe(0), RestartPoint()
    reader.follow(stripe, 0)
    try:
        for block in itertools.count():
            window = reader.read(stripe, block, restart)
            if window is None:
                return
            yield window
            restart = window.restart
    finally:
        reader.leave(stripe)
