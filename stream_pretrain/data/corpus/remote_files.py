"""Files, folders and patterns at URLs: on web servers, and in the stores of fsspec."""

from __future__ import annotations

import dataclasses
import glob
import logging
import posixpath
import re
import urllib.parse
from typing import Any

from stream_pretrain.config import DataConfig, storage_options
from stream_pretrain.data.corpus.corpus_files import is_run_among, is_shard, without_runs
from stream_pretrain.data.corpus.file_formats import has_known_ending
from stream_pretrain.data.corpus.listings import (
    Listing,
    at_least_one,
    refuse_options,
    refuse_unknown_ending,
    split_pattern,
)
from stream_pretrain.data.corpus.shard import Corpus, shard_at
from stream_pretrain.data.transport.http import sizes_and_identities
from stream_pretrain.data.transport.identity import identity_of
from stream_pretrain.data.transport.object_store import filesystem_at
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.errors import SourceError
from stream_pretrain.urls import on_web, unsigned, without_secrets

logger = logging.getLogger(__name__)

_HUB_PAGE = re.compile(r"https?://(?:huggingface|hf)\.co/datasets/(?P<id>[^/]+/[^/]+)/?(?:viewer.*|tree/.*|(?P<file>blob/.*))?")

MOST_RECHECKED = 2000
"""Files on web servers whose sizes and ETags every start requests, which takes seconds; with more, only the first start."""


def list_url(url: str, data: DataConfig) -> Listing:
    """A file, a folder or a pattern at a URL."""
    entry = without_secrets(url)
    refuse_options(entry, data, "name", "revision", "data_files", "data_dir")
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise SourceError(f"{entry}: is not a URL: {error}") from error
    if page := _HUB_PAGE.fullmatch(unsigned(url)):
        file = f"{entry.replace('/blob/', '/resolve/')}, or all of " if page["file"] else ""
        raise SourceError(f"{entry}: is a page of the Hub: give {file}{page['id']}")
    if on_web(url) and "*" not in unsigned(url):  # a web server has no listings
        name = posixpath.basename(urllib.parse.unquote(parts.path))
        refuse_unknown_ending(entry, name)
        return Listing(entry.rpartition("/")[0], {name: shard_at(url, name, None, None, data)})
    filesystem, path = filesystem_at(url, entry, storage_options(data.storage_options))
    files = list_files(filesystem, path.rstrip("/"), entry)
    single = list(files) == [path]
    root = posixpath.dirname(path) if single else split_pattern(path)[0] if glob.has_magic(path) else path.rstrip("/")
    names = {file.removeprefix(root).lstrip("/"): file for file in files}
    names = {name: names[name] for name in without_runs(names, is_run_among(names))}
    kept = at_least_one((name for name in names if is_shard(name) or (single and has_known_ending(name))), entry)
    shards = {
        name: shard_at(
            filesystem.unstrip_protocol(names[name]),
            name,
            files[names[name]].get("size"),
            next((f"{kind}:{value}" for kind, value in identity_of(files[names[name]]).items()), None),
            data,
        )
        for name in kept
    }
    return Listing(filesystem.unstrip_protocol(root), shards)


def list_files(filesystem: Any, path: str, entry: str) -> dict[str, dict[str, Any]]:
    """The files of a path or pattern, from listings alone. Raises: SourceError where there is none."""
    try:
        found: dict[str, dict[str, Any]] = filesystem.glob(path, detail=True) if glob.has_magic(path) else {}
        files = {name: info for name, info in found.items() if info["type"] == "file"} or _list_literally(filesystem, path)
    except ValueError as error:  # a store raises it for a name that it cannot have
        raise SourceError(f"{entry}: cannot be listed: {' '.join(str(error).split())}") from error
    except TypeError as error:  # some file systems find an unknown option only when they connect
        raise SourceError(f"{entry}: cannot be listed with --data.storage-options: {error}") from error
    if not files:
        raise SourceError(f"{entry}: no file matches")
    return files


def _list_literally(filesystem: Any, path: str) -> dict[str, dict[str, Any]]:
    """The file at `path`, or all files below it. Lists its folder, which the file system caches for the next entry."""
    parent = posixpath.dirname(path)
    try:
        siblings = {info["name"].rstrip("/"): info for info in filesystem.ls(parent, detail=True)} if parent.strip("/") else {}
    except FileNotFoundError:
        return {}
    except PermissionError:
        if glob.has_magic(path):
            raise
        return {path: {"type": "file"}}  # a bucket may be public to read and not to list
    if path in siblings and siblings[path]["type"] == "file":
        return {path: siblings[path]}
    return dict(filesystem.find(path, detail=True))


def with_web_sizes(corpus: Corpus, data: DataConfig, pinned: Corpus | None = None) -> Corpus:
    """A corpus with the sizes and identities of its files on web servers, which have no listings.

    pinned: the corpus of the first start. If there are many files, only new ones are requested: the others are compared when
    they are opened.
    Raises: TransportError for a file that cannot be read.
    """
    unknown = [shard.url for shard in corpus.shards if shard.size is None and on_web(shard.url)]
    if len(unknown) > MOST_RECHECKED:
        known = set() if pinned is None else {without_secrets(shard.url) for shard in pinned.shards}
        unknown = [url for url in unknown if without_secrets(url) not in known]
    if len(unknown) > MOST_RECHECKED:
        logger.warning(
            "%s: asking servers for the size and ETag of %d files, one by one: some hundreds a second",
            without_secrets(corpus.dataset),
            len(unknown),
        )
    if not unknown:
        return corpus
    options = TransportOptions(storage_options(data.storage_options), data.retry_deadline)
    answers = sizes_and_identities(unknown, options)
    shards = []
    for shard in corpus.shards:
        size, identity = answers.get(shard.url, (shard.size, shard.identity))
        shards.append(dataclasses.replace(shard, size=size, identity=identity))
    return dataclasses.replace(corpus, shards=tuple(shards))
