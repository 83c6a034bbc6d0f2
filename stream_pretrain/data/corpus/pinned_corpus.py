"""The part of a run that is pinned at its first start, in `corpus.json`: its corpora, lanes and windows."""

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


@dataclass(frozen=True, kw_only=True)
class PinnedSource(Corpus):
    """The corpus of a source, and how it is read."""

    name: str
    """Empty for the only source of a run."""
    window_bytes: int
    bundles: tuple[tuple[int, int], ...]
    """Runs of small shards that are read together, each as the number of its first shard and the one after its last."""
    group_rows: int
    """The most rows that a lane packs together."""

    def to_json(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("name", "window_bytes", "bundles", "group_rows")}
        return {**own, **super().to_json()}


@dataclass(frozen=True)
class PinnedCorpus:
    """The sources of a run and its number of lanes: pinned at its first start, `corpus.json` in every checkpoint."""

    sources: tuple[PinnedSource, ...]
    lanes: int

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards of all sources, in the order of their numbers."""
        return tuple(shard for source in self.sources for shard in source.shards)

    @cached_property
    def encoded(self) -> bytes:
        """As JSON, without secrets: a resume takes the URLs from --dataset."""
        sources = [source.to_json() for source in self.sources]
        return json.dumps({"version": CORPUS_VERSION, "lanes": self.lanes, "sources": sources}).encode()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PinnedCorpus:
        """The inverse of `encoded`. Raises: CheckpointError."""
        if value.get("version") != CORPUS_VERSION:
            raise CheckpointError(
                f"corpus.json: of version {value.get('version')}, this program reads version {CORPUS_VERSION}: resume with the "
                "program that wrote it, or start a new run from its weights with --init-from"
            )
        pinned: PinnedCorpus = from_json(cls, {name: part for name, part in value.items() if name != "version"}, "corpus.json:")
        fault = next(filter(None, map(_fault_of, pinned.sources)), None)
        if not pinned.sources or pinned.lanes < 1:
            fault = f"{len(pinned.sources)} sources, {pinned.lanes} lanes"
        if fault is not None:
            raise CheckpointError(f"corpus.json: {fault}: use another checkpoint")
        return pinned


def _fault_of(source: PinnedSource) -> str | None:
    """Why no run has such a source; None where one may have."""
    names = [shard.name for shard in source.shards]
    sizes = [size or 0 for shard in source.shards for size in (shard.size, shard.content_bytes)]
    if not names or sorted(set(names)) != names or min(source.window_bytes, source.group_rows) < 1 or min(sizes) < 0:
        return f"shards of {source.dataset} are out of order"
    if not _are_bundles(source.bundles, len(names)):
        return f"bundles of {source.dataset} are not consecutive shards"
    for shard in source.shards:
        if shard.compression not in ("none", *CODECS):
            return f"{shard.name} has compression {shard.compression!r}, which this version does not read"
    return None


def _are_bundles(bundles: tuple[tuple[int, int], ...], shards: int) -> bool:
    """Whether these are runs of two or more shards, in order."""
    if any(len(bundle) != 2 for bundle in bundles):
        return False
    edges = [edge for first, stop in bundles for edge in (first, stop - 1)]
    return edges == sorted(set(edges)) and all(0 <= edge < shards for edge in edges)
