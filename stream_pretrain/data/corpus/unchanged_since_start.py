"""Checks that the corpus of a resumed run is that of its first start, even if it has moved."""

from __future__ import annotations

import dataclasses
import os

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.hub_datasets import commits_of
from stream_pretrain.data.corpus.pinned_corpus import PinnedSource
from stream_pretrain.data.corpus.remote_files import with_web_sizes
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.corpus.shard import Corpus, Shard
from stream_pretrain.errors import SourceError
from stream_pretrain.non_utf8_names import escaped
from stream_pretrain.units import first_of
from stream_pretrain.urls import without_secrets


def resolve_pinned(pinned: PinnedSource, data: DataConfig) -> PinnedSource:
    """A pinned corpus at its current location. Hub datasets stay at their pinned commits.

    A shard gets its current URL, and where it has moved its current identity. Its size stays as pinned, since dealing depends
    on it.
    Raises: SourceError where the corpus is not the pinned one.
    """
    found = with_web_sizes(resolve(data, commits=commits_of(pinned)), data, pinned)
    check_unchanged(pinned, found)
    shards = (
        dataclasses.replace(was, url=now.url, identity=now.identity if _has_moved(was, now) and now.identity else was.identity)
        for was, now in zip(pinned.shards, found.shards, strict=True)
    )
    return dataclasses.replace(pinned, dataset=found.dataset, shards=tuple(shards))


def _has_moved(was: Shard, now: Shard) -> bool:
    """Whether a shard has another URL, ignoring its signature."""
    return escaped(without_secrets(was.url)) != escaped(without_secrets(now.url))


def _why_missing(url: str) -> str:
    if not os.path.islink(url):
        return "missing"
    return "a link to a file that is read by another name" if os.path.exists(url) else "a link to what is not there"


def check_unchanged(pinned: Corpus, found: Corpus) -> None:
    """Refuse a corpus that differs from that of the first start; it may have moved.

    Raises: SourceError with the first shards that are missing, new or changed.
    """
    before = {shard.name: shard for shard in pinned.shards}
    now = {shard.name: shard for shard in found.shards}
    differences = [
        *(f"{name} is {_why_missing(shard.url)}" for name, shard in before.items() if name not in now),
        *(f"{name} is new" for name in now if name not in before),
        *(
            f"{name} changed{_how(before[name], now[name])}"
            for name in before
            if name in now and _changed(before[name], now[name])
        ),
    ]
    if differences:
        raise SourceError(
            f"{without_secrets(found.dataset)} is not the corpus this run began with: {first_of(differences)}; "
            "restore it or start a new run"
        )


def _how(before: Shard, now: Shard) -> str:
    """By their sizes, where these differ."""
    if None in (before.size, now.size) or before.size == now.size:
        return ""
    return f" (it had {before.size} bytes, and has {now.size})"


def _changed(before: Shard, now: Shard) -> bool:
    """Whether two shards of one name are known to differ."""
    if None not in (before.size, now.size) and before.size != now.size:
        return True
    if before.identity is None or now.identity is None:
        return False
    kind = before.identity.partition(":")[0]
    if kind != now.identity.partition(":")[0]:
        return False  # moved to another kind of store: only the sizes can be compared
    if kind == "etag" and _has_moved(before, now):
        return False  # an ETag depends on how the object was uploaded, and a copy may have another one
    return before.identity != now.identity
