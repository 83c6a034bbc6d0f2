"""A shard, and a corpus of shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.file_formats import BY_ENDING, Format, ending_of
from stream_pretrain.data.transport.compression import Compression, compression_of
from stream_pretrain.errors import SourceError
from stream_pretrain.non_utf8_names import escaped
from stream_pretrain.urls import without_secrets


@dataclass(frozen=True)
class Shard:
    """One file of a corpus, as published."""

    url: str
    """An absolute local path, or a URL that fsspec opens; URLs of the Hub include the commit."""
    name: str
    """Path relative to the corpus, which messages show, and which stays the same when the corpus moves."""
    size: int | None
    """Stored (compressed) bytes, if the listing has them."""
    identity: str | None
    """`KIND:VALUE` that changes with the content, from the listing, or from the ends of a local file."""
    format: Format
    compression: Compression
    builder: str | None = None
    """Of `datasets`, for format "examples"."""
    content_bytes: int | None = None
    """Uncompressed bytes of a shard of lines, or of the text of Parquet, if they were known at the first start of the run
    (content_sizes.py)."""
    is_content_estimated: bool = False
    """Whether they are estimated from other shards."""


@dataclass(frozen=True)
class Corpus:
    """The pinned shards of a dataset, sorted by name: cursors hold indices into them."""

    dataset: str
    """As the user gave it."""
    revision: str | None
    """Commit of a Hub dataset."""
    shards: tuple[Shard, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values, without secrets of URLs; names that are not UTF-8 are escaped."""
        shards = [{**dataclasses.asdict(shard), "url": escaped(without_secrets(shard.url))} for shard in self.shards]
        return {"dataset": escaped(without_secrets(self.dataset)), "revision": self.revision, "shards": shards}


def sorted_shards(files: Mapping[str, Shard]) -> tuple[Shard, ...]:
    """The shards by name; a name that is not UTF-8 is escaped, since records and checkpoints contain it."""
    by_name: dict[str, Shard] = {}
    for name, shard in files.items():
        if by_name.setdefault(escaped(name), shard) is not shard:
            raise SourceError(f"two files have the same escaped name, {escaped(name)}: rename one")
    return tuple(dataclasses.replace(by_name[name], name=name) for name in sorted(by_name))


def shard_at(
    url: str, name: str, size: int | None, identity: str | None, data: DataConfig, builder: str | None = None
) -> Shard:
    """The shard at `url`, read by the format of its ending, else by `builder`."""
    known = BY_ENDING.get(ending_of(name))
    read_as: Format = "examples" if known is None or data.reader == "datasets" else known.read_as
    if read_as == "examples":
        builder = builder if known is None else known.builder
    return Shard(url, name, size, identity, read_as, compression_of(name), builder if read_as == "examples" else None)
