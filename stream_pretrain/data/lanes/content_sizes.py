"""Uncompressed sizes of shards, from headers, footers and small local files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import zstandard

from stream_pretrain.data.corpus.shard import Corpus, Shard
from stream_pretrain.data.documents.document import ReadOptions
from stream_pretrain.data.documents.parquet import text_bytes
from stream_pretrain.data.lanes.bundles import is_small
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.seek_table import read_seek_table
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.data.transport.stored_bytes import StoredBytes
from stream_pretrain.data.transport.threads import side_by_side
from stream_pretrain.errors import SourceError, TransportError
from stream_pretrain.units import GIB, MIB
from stream_pretrain.urls import is_remote, without_secrets

MOST_OPENED = 2000
"""Shards of a corpus that are opened. The others are assumed to compress like these."""

COUNTED_BYTES = 16 * MIB
"""Stored bytes of local shards that are decompressed, in a fraction of a second. A larger corpus has so many windows that one
more in a lane does not matter."""

LONGEST_COUNTED = GIB
"""Uncompressed bytes after which a shard is given up: a few kilobytes can hold any number of zeros."""

MOST_EXPANSION = 2**15
"""Of zstd: a block of 128 KiB takes 4 bytes at least."""

FRAME_HEADER = 18
"""Bytes of the longest header of a zstd frame."""


def with_content_bytes(corpus: Corpus, options: ReadOptions, full_bundle: int) -> Corpus:
    """A corpus with the known sizes of its shards: uncompressed bytes of lines, and of the text of Parquet.

    Of a remote shard, the header of its first zstd frame is requested, or the footer. A shard of unknown size is assumed to
    compress like the others of its compression, if the size of any is known.

    full_bundle: uncompressed bytes of a full bundle; a remote shard that a bundle may hold is not worth a request.
    Raises: TransportError for a store that does not answer by the deadline: these sizes decide the windows of a run, and must
    not depend on the network.
    """
    sized = [shard for shard in corpus.shards if shard.size is not None and shard.format != "examples"]
    plain = {shard.name: shard.size or 0 for shard in sized if shard.format != "parquet" and shard.compression == "none"}
    others = [shard for shard in sized if shard.name not in plain]
    # In a small Parquet file, statistics repeat the text, and the footer counts them.
    inspected = [
        shard
        for shard in others
        if not is_small(shard, full_bundle) or (shard.format != "parquet" and not is_remote(shard.url))
    ]
    known = _content_bytes(inspected, options)
    stored, content = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for shard in inspected:
        if shard.name in known:
            stored[_kind(shard)] += shard.size or 0
            content[_kind(shard)] += known[shard.name]
    estimated = {
        shard.name: (shard.size or 0) * content[_kind(shard)] // stored[_kind(shard)]
        for shard in inspected
        if shard.name not in known and stored[_kind(shard)]
    }
    found = {**plain, **known, **estimated}
    shards = (
        replace(shard, content_bytes=found.get(shard.name), is_content_estimated=shard.name in estimated)
        for shard in corpus.shards
    )
    return replace(corpus, shards=tuple(shards))


def _kind(shard: Shard) -> tuple[str, str]:
    """Shards of one kind compress alike."""
    return "parquet" if shard.format == "parquet" else "lines", shard.compression


def states_content_size(shard: Shard) -> bool:
    """Whether one small request finds out the uncompressed size of a remote shard."""
    return shard.format == "parquet" or (shard.compression == "zstd" and shard.format != "examples")


def _content_bytes(shards: Sequence[Shard], options: ReadOptions) -> dict[str, int]:
    """Uncompressed bytes by name, where they are known. Opens at most `MOST_OPENED` shards, evenly spread."""
    candidates = [shard for shard in shards if states_content_size(shard) or not is_remote(shard.url)]
    count = min(MOST_OPENED, len(candidates))
    opened = [candidates[number * len(candidates) // count] for number in range(count)]
    counted = [shard.size or 0 for shard in opened if shard.format != "parquet" and not is_remote(shard.url)]
    counts_local = sum(counted) <= COUNTED_BYTES
    known: dict[str, int] = {}

    def open_one(shard: Shard, transport: TransportOptions) -> None:
        content: int | None
        try:
            if shard.format == "parquet":
                content = text_bytes(shard, replace(options, transport=transport))
            elif counts_local and not is_remote(shard.url):
                content = _counted(shard, transport)
            else:
                content = _stated(shard, transport) if shard.compression == "zstd" else None
        except TransportError:
            raise
        except SourceError:  # damage, or another file: reported where the shard is read
            return
        if content is not None:
            known[shard.name] = content

    side_by_side("content sizes", opened, options.transport, open_one)
    return known


def _counted(shard: Shard, options: TransportOptions) -> int | None:
    """Uncompressed bytes of a shard, by decompressing it; None for one that is too large."""
    with closing(ShardBytes(shard.url, shard.compression, shard.size, None, options, shard.identity)) as content:
        while content.read():
            if content.position > LONGEST_COUNTED:
                return None
        return content.position


def _stated(shard: Shard, options: TransportOptions) -> int | None:
    """Uncompressed bytes of a zstd shard, from its first frame or its seek table; None where neither has them."""
    name = without_secrets(shard.url)
    with closing(StoredBytes(shard.url, name, shard.size, 0, options, shard.identity)) as data:
        try:
            of_frame = zstandard.frame_content_size(data.read_at(0, FRAME_HEADER))
        except zstandard.ZstdError:
            return None
        # A frame with less content than the file has bytes is one of several.
        if of_frame >= data.total:
            return of_frame if of_frame <= data.total * MOST_EXPANSION else None
        frames = read_seek_table(data) if data.is_local else []
        return frames[-1].uncompressed if frames else None
