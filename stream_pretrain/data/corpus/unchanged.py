"""A pinned corpus where it lies now."""

from __future__ import annotations

import dataclasses
import logging
import os

from stream_pretrain.config import DataConfig, storage_options
from stream_pretrain.data.corpus.hub import commits_of
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.corpus.shard import Corpus, Shard
from stream_pretrain.data.transport.http import told_by_servers
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.errors import SourceError
from stream_pretrain.names import escaped
from stream_pretrain.urls import on_web, without_secrets

logger = logging.getLogger(__name__)

MOST_ASKED_AGAIN = 2000
"""Files on web servers that are asked for one by one at every start, which takes seconds; more are at the first alone."""


def described(corpus: Corpus, data: DataConfig, pinned: Corpus | None = None) -> Corpus:
    """A corpus with the sizes and identities of its files on web servers, which no listing tells.

    pinned: what the run began with. Of many files, those that it knows are not asked for again: each is compared with it
    when it is opened.
    Raises: TransportError for what cannot be had.
    """
    unknown = [shard.url for shard in corpus.shards if shard.size is None and on_web(shard.url)]
    if len(unknown) > MOST_ASKED_AGAIN:
        known = set() if pinned is None else {without_secrets(shard.url) for shard in pinned.shards}
        unknown = [url for url in unknown if without_secrets(url) not in known]
    if len(unknown) > MOST_ASKED_AGAIN:
        logger.warning(
            "%s: asking servers for the size and ETag of %d files, one by one: some hundreds a second",
            without_secrets(corpus.dataset),
            len(unknown),
        )
    if not unknown:
        return corpus
    options = TransportOptions(storage_options(data.storage_options), data.retry_deadline)
    told = dict(zip(unknown, told_by_servers(unknown, options), strict=True))
    shards = (
        dataclasses.replace(shard, size=told[shard.url][0], identity=told[shard.url][1]) if shard.url in told else shard
        for shard in corpus.shards
    )
    return dataclasses.replace(corpus, shards=tuple(shards))


def find_again(pinned: Corpus, data: DataConfig) -> Corpus:
    """A pinned corpus where it lies now. What its Hub datasets have become since does not matter.

    A shard has the URL of today, and where it has moved the identity too; its size stays as it was pinned, since dealing
    depends on it.
    Raises: SourceError where the corpus is not the one that was pinned.
    """
    found = described(resolve(data, commits=commits_of(pinned)), data, pinned)
    check_unchanged(pinned, found)
    shards = (
        dataclasses.replace(was, url=now.url, identity=now.identity if _has_moved(was, now) and now.identity else was.identity)
        for was, now in zip(pinned.shards, found.shards, strict=True)
    )
    return dataclasses.replace(pinned, dataset=found.dataset, shards=tuple(shards))


def _has_moved(was: Shard, now: Shard) -> bool:
    """Whether a shard lies elsewhere; a new signature leads to the same place."""
    return escaped(without_secrets(was.url)) != escaped(without_secrets(now.url))


def check_unchanged(pinned: Corpus, found: Corpus) -> None:
    """Refuse a corpus that is not the one the run began with; the same content at another place passes.

    Raises: SourceError with the first shards that are missing, new or changed.
    """
    before = {shard.name: shard for shard in pinned.shards}
    now = {shard.name: shard for shard in found.shards}
    differences = [
        *(
            f"{name} is {'a link to a file that is read by another name' if os.path.islink(shard.url) else 'missing'}"
            for name, shard in before.items()
            if name not in now
        ),
        *(f"{name} is new" for name in now if name not in before),
        *(f"{name} changed" for name in before if name in now and _changed(before[name], now[name])),
    ]
    if differences:
        shown = ", ".join(differences[:3]) + (f" and {len(differences) - 3} more" if len(differences) > 3 else "")
        dataset = without_secrets(found.dataset)
        raise SourceError(f"{dataset} is not the corpus this run began with: {shown}; restore it or start a new run")


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
        return False  # an ETag depends on how the object was uploaded: a copy may have another one
    return before.identity != now.identity
