"""The documents of a window: bytes, row groups or examples in; texts and what had to be skipped out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stream_pretrain.data.corpus.shard import Shard

if TYPE_CHECKING:
    pass
from stream_pretrain.data.documents.document import DocumentReader, ReadOptions
from stream_pretrain.data.documents.examples import ExampleDocuments
from stream_pretrain.data.documents.lines import LineDocuments
from stream_pretrain.data.documents.parquet import ParquetDocuments


def open_reader(shard: Shard, options: ReadOptions) -> DocumentReader:
    """The reader for a shard's format."""
    match shard.format:
        case "jsonl" | "text":
            return LineDocuments(shard, options)
        case "parquet":
            return ParquetDocuments(shard, options)
        case "examples":
            return ExampleDocuments(shard, options)
