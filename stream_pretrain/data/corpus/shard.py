"""Shards and the corpus they make: what is pinned at the first start of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.shard_names import (
    BUILDERS,
    FORMATS,
    Format,
    ending_of,
)
from stream_pretrain.data.transport.compression import Compression, compression_of
from stream_pretrain.errors import SourceError
from stream_pretrain.names import escaped
from stream_pretrain.urls import without_secrets

BUILDER_OF_FORMAT = {"jsonl": "json", "text": "text", "parquet": "parquet"}


@dataclass(frozen=True)
class Shard:
    """One file of the corpus as its owner published it."""

    url: str
    """What fsspec opens: an absolute local path or a URL; Hub URLs hold the commit."""
    name: str
    """Path relative to the corpus: what messages show and what survives a move of the corpus."""
    size: int | None
    """Stored (compressed) bytes, where the listing says."""
    identity: str | None
    """`KIND:VALUE` that changes with the content, where the listing (or the ends of a local file) says."""
    format: Format
    compression: Compression
    builder: str | None = None
    """For format "examples": the builder of `datasets` that reads it."""


@dataclass(frozen=True)
class Corpus:
    """The pinned shards of a dataset, sorted by name: cursors hold indices into them."""

    dataset: str
    """As the user gave it."""
    revision: str | None
    """Commit of a Hub dataset."""
    shards: tuple[Shard, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, without the secrets of URLs, names that are not UTF-8 escaped."""
        shards = [{**dataclasses.asdict(shard), "url": escaped(without_secrets(shard.url))} for shard in self.shards]
        return {"dataset": escaped(without_secrets(self.dataset)), "revision": self.revision, "shards": shards}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Corpus:
        """Back from `to_json`."""
        return cls(value["dataset"], value["revision"], tuple(Shard(**shard) for shard in value["shards"]))


def sorted_shards(files: Mapping[str, Shard]) -> tuple[Shard, ...]:
    """The shards by name; one that is not UTF-8 is escaped, since it is written into records and checkpoints."""
    by_name: dict[str, Shard] = {}
    for name, shard in files.items():
        if by_name.setdefault(escaped(name), shard) is not shard:
            raise SourceError(f"two files have a name that is shown as {escaped(name)}: rename one")
    return tuple(dataclasses.replace(by_name[name], name=name) for name in sorted(by_name))


def shard_at(
    url: str, name: str, size: int | None, identity: str | None, data: DataConfig, builder: str | None = None
) -> Shard:
    """The shard at `url`; its ending says how it is read, else `builder` does."""
    compression = compression_of(name)
    ending = ending_of(name)
    file_format = FORMATS.get(ending, "examples")
    if file_format == "examples":
        return Shard(url, name, size, identity, file_format, compression, BUILDERS.get(ending, builder))
    if data.reader == "datasets":
        return Shard(url, name, size, identity, "examples", compression, BUILDER_OF_FORMAT[file_format])
    return Shard(url, name, size, identity, file_format, compression)


def builder_of(entry: str, location: str, data: DataConfig, **chosen: str | None) -> Any:
    """What `datasets` reads a folder or a Hub dataset with: it knows their configurations and splits."""
    import datasets

    try:
        return datasets.load_dataset_builder(location, data.name, **chosen)
    except datasets.exceptions.DatasetNotFoundError as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise SourceError(f"{entry}: {said}; the token of an account that may read it goes into HF_TOKEN") from error
    except (FileNotFoundError, ValueError, RuntimeError) as error:  # the last for a dataset with a script of its own
        raise SourceError(f"{entry}: {' '.join(str(error).split())}") from error
