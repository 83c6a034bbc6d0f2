"""What is pinned at the first start of a run, in `corpus.json`: its corpora, lanes and windows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stream_pretrain.data.corpus.shard import Corpus, Shard
from stream_pretrain.data.transport.compression import CODECS
from stream_pretrain.errors import CheckpointError
from stream_pretrain.typed_json import from_json

CORPUS_VERSION = 3
"""Of what `corpus.json` holds; raised when that changes, or how a run reads it."""


@dataclass(frozen=True)
class PinnedSource:
    """The corpus of a source, and the size of its windows."""

    name: str
    """Empty for the only source of a run."""
    corpus: Corpus
    window_bytes: int
    bundles: tuple[tuple[int, int], ...] = ()
    """Runs of small shards that are read together, each as the number of its first shard and the one behind its last."""
    group_rows: int = 16
    """The most rows that a lane packs together."""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "window_bytes": self.window_bytes,
            "bundles": [list(bundle) for bundle in self.bundles],
            "group_rows": self.group_rows,
            **self.corpus.to_json(),
        }


@dataclass(frozen=True)
class PinnedCorpus:
    """What a run reads, in how many lanes: pinned at its first start, `corpus.json` in every checkpoint."""

    sources: tuple[PinnedSource, ...]
    lanes: int

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards of all sources, in the order of their numbers."""
        return tuple(shard for source in self.sources for shard in source.corpus.shards)

    @cached_property
    def encoded(self) -> bytes:
        """As JSON, without secrets: a resume takes the URLs from --dataset."""
        sources = [source.to_json() for source in self.sources]
        return json.dumps({"version": CORPUS_VERSION, "lanes": self.lanes, "sources": sources}).encode()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PinnedCorpus:
        """Back from `encoded`. Raises: CheckpointError."""
        if value.get("version") != CORPUS_VERSION:
            raise CheckpointError(
                f"corpus.json: of version {value.get('version')}, this program reads version {CORPUS_VERSION}: resume with the "
                "program that wrote it, or start a new run from its weights with --init-from"
            )
        was = from_json(_StoredCorpus, value, "corpus.json:")
        sources = tuple(
            PinnedSource(
                source.name,
                Corpus(source.dataset, source.revision, source.shards),
                source.window_bytes,
                source.bundles,
                source.group_rows,
            )
            for source in was.sources
        )
        pinned = cls(sources, was.lanes)
        for source in sources:
            names = [shard.name for shard in source.corpus.shards]
            in_order = bool(names) and sorted(set(names)) == names
            sizes = [size or 0 for shard in source.corpus.shards for size in (shard.size, shard.content_bytes)]
            if not in_order or min(source.window_bytes, source.group_rows) < 1 or min(sizes) < 0:
                raise CheckpointError(
                    f"corpus.json: shards of {source.corpus.dataset} are out of order: use another checkpoint"
                )
            if not _are_bundles(source.bundles, len(names)):
                raise CheckpointError(
                    f"corpus.json: bundles of {source.corpus.dataset} are not consecutive shards: use another checkpoint"
                )
            for shard in source.corpus.shards:
                if shard.compression not in ("none", *CODECS):
                    raise CheckpointError(
                        f"corpus.json: {shard.name} has compression {shard.compression!r}, which this version does not read: "
                        "use another checkpoint"
                    )
        if not sources or was.lanes < 1:
            counts = f"{len(sources)} sources, {was.lanes} lanes"
            raise CheckpointError(f"corpus.json: {counts}: use another checkpoint")
        return pinned


def _are_bundles(bundles: tuple[tuple[int, int], ...], shards: int) -> bool:
    """Whether these are runs of two or more shards, in order."""
    if any(len(bundle) != 2 for bundle in bundles):
        return False
    edges = [edge for first, stop in bundles for edge in (first, stop - 1)]
    return edges == sorted(set(edges)) and all(0 <= edge < shards for edge in edges)


@dataclass(frozen=True)
class _StoredSource:
    name: str
    window_bytes: int
    bundles: tuple[tuple[int, int], ...]
    group_rows: int
    dataset: str
    revision: str | None
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class _StoredCorpus:
    """How `PinnedCorpus.encoded` lays it out."""

    version: int
    lanes: int
    sources: tuple[_StoredSource, ...]
