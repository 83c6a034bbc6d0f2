"""Documents that models are evaluated on, read from the shards of a corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.document import ReadOptions
from stream_pretrain.data.documents.filters import is_heldout
from stream_pretrain.data.documents.reader import windows_of
from stream_pretrain.errors import ContentError


def collect(
    shards: Sequence[Shard],
    options: ReadOptions,
    *,
    documents: int,
    heldout_fraction: float | None,
    max_read_bytes: int,
    skip_bad_shards: bool,
    report: Callable[[str], None],
) -> list[str]:
    """The first documents of the shards, or of those held out of training where a fraction is given.

    Reads at most about `max_read_bytes` of text, and may find fewer documents, or none.
    """
    texts: list[str] = []
    read = 0
    for window in _windows(shards, options, skip_bad_shards):
        read += sum(map(len, window))
        texts += window if heldout_fraction is None else [text for text in window if is_heldout(text, heldout_fraction)]
        report(f"{min(len(texts), documents)} of {documents} documents, {read / 1e6:.0f} MB read")
        if len(texts) >= documents or read >= max_read_bytes:
            break
    return texts[:documents]


def _windows(shards: Sequence[Shard], options: ReadOptions, skip_bad_shards: bool) -> Iterator[list[str]]:
    for shard in shards:
        try:
            for window in windows_of(shard, options):
                yield window.texts
        except ContentError:
            if not skip_bad_shards:
                raise  # else training counts and records the damage
