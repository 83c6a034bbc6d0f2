"""Bytes to rows. Nothing here knows of models, training or tracking.

    sources    what to read: ids, globs, URLs          -> shards, pinned
    dealing    which lane reads what in an epoch       -> stripes of shards
    transport  bytes of a shard from a restart point
    windows    bytes cut into windows of whole lines
    documents  lines, row groups or examples           -> texts
    lanes      windows shuffled, tokenized, packed     -> rows, and the cursor behind each
    objectives masks and labels
    stream     the rows of a step, over ranks and workers
    batches    rows                                    -> tensors of a micro-batch

One direction. The only state is a cursor a lane; it rides along with the rows it stands behind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stream_pretrain.config import Config
from stream_pretrain.data.dealing import lane_count
from stream_pretrain.data.documents import ReadOptions
from stream_pretrain.data.lanes import EXPANSION, LanePlan
from stream_pretrain.data.sources import Corpus, Shard
from stream_pretrain.data.transport import TransportOptions

FULL_WINDOW_BYTES = 4 * 1024 * 1024
SMALLEST_WINDOW_BYTES = 16 * 1024
WINDOW_ROWS = 128
BYTES_PER_TOKEN = 4
WINDOWS_PER_LANE = 2
"""Windows a lane of a small corpus has at least, so that its documents are shuffled over more than one order."""


@dataclass(frozen=True)
class PinnedCorpus:
    """What a run reads and how it is cut up: fixed at its first start, `corpus.json` in every checkpoint."""

    corpus: Corpus
    lanes: int
    window_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {"version": 1, "lanes": self.lanes, "window_bytes": self.window_bytes, **self.corpus.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PinnedCorpus:
        return cls(Corpus.from_json(value), int(value["lanes"]), int(value["window_bytes"]))


def pin(config: Config, corpus: Corpus, world: int) -> PinnedCorpus:
    """Fix lanes and window of a new run."""
    full = max(FULL_WINDOW_BYTES, WINDOW_ROWS * config.data.sequence_length * BYTES_PER_TOKEN)
    lanes = lane_count(
        None if config.data.lanes == "auto" else config.data.lanes,
        global_batch_size=config.train.global_batch_size,
        world=world,
        workers=config.data.workers,
        readable_units=sum(_readable_units(shard, full) for shard in corpus.shards),
    )
    if config.data.window_bytes != "auto":
        window_bytes = config.data.window_bytes
    elif any(shard.size is None for shard in corpus.shards):
        window_bytes = full
    else:
        total = sum(_uncompressed_bytes(shard) for shard in corpus.shards)
        window_bytes = max(SMALLEST_WINDOW_BYTES, min(full, total // (lanes * WINDOWS_PER_LANE)))
    return PinnedCorpus(corpus, lanes, window_bytes)


def lane_plan(config: Config, pinned: PinnedCorpus) -> LanePlan:
    """The plan of the lanes of a run."""
    return LanePlan(
        shards=pinned.corpus.shards,
        lanes=pinned.lanes,
        seed=config.train.seed,
        sequence_length=config.data.sequence_length,
        packing=config.data.packing,
        heldout_fraction=config.data.heldout_fraction,
        max_epochs=config.train.max_epochs,
        read=read_options(config, pinned.window_bytes),
        skip_bad_shards=config.data.on_bad_shard == "skip",
    )


def read_options(config: Config, window_bytes: int) -> ReadOptions:
    """How documents are found in the shards."""
    return ReadOptions(
        text_field=config.data.text_field,
        window_bytes=window_bytes,
        max_line_bytes=config.data.max_line_bytes,
        transport=TransportOptions(
            storage_options=json.loads(config.data.storage_options) if config.data.storage_options else {},
            retry_deadline=config.data.retry_deadline,
        ),
    )


def _uncompressed_bytes(shard: Shard) -> int:
    return int((shard.size or 0) * EXPANSION[shard.compression])


def _readable_units(shard: Shard, window_bytes: int) -> int:
    """Parts of a shard that can be read without reading the others."""
    if shard.compression != "none" or shard.format == "examples" or shard.size is None:
        return 1
    return max(1, shard.size // window_bytes)
