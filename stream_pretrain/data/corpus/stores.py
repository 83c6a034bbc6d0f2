"""URLs and patterns of URLs that fsspec knows."""

from __future__ import annotations

import glob
import posixpath
import urllib.parse
from collections.abc import Mapping
from typing import Any

import fsspec

from stream_pretrain.config import DataConfig, storage_options
from stream_pretrain.data.corpus.found import Found, refuse_parts, require
from stream_pretrain.data.corpus.listings import (
    is_run_among,
    split_pattern,
    without_runs,
)
from stream_pretrain.data.corpus.shard import shard_at
from stream_pretrain.data.corpus.shard_names import (
    has_known_ending,
    is_shard,
)
from stream_pretrain.data.transport.identity import identity_of
from stream_pretrain.errors import SourceError
from stream_pretrain.urls import on_web, unsigned, without_secrets

# Other stores


def find_url(url: str, data: DataConfig) -> Found:
    """A file, a folder or a pattern at a URL."""
    entry = without_secrets(url)
    refuse_parts(entry, data, "name", "revision", "data_files", "data_dir")
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise SourceError(f"{entry}: is not a URL: {error}") from error
    if on_web(url) and "*" not in unsigned(url):  # a web server has no listings
        name = posixpath.basename(urllib.parse.unquote(parts.path))
        require(filter(has_known_ending, [name]), entry, "the ending says no format")
        return Found(entry.rpartition("/")[0], {name: shard_at(url, name, None, None, data)})
    try:
        filesystem, path = fsspec.url_to_fs(url, **storage_options(data.storage_options))
    except (ImportError, ValueError, TypeError) as error:
        raise SourceError(f"{entry}: cannot be opened: {error}") from error
    files = list_files(filesystem, path.rstrip("/"), entry)
    single = list(files) == [path]
    root = posixpath.dirname(path) if single else split_pattern(path)[0] if glob.has_magic(path) else path.rstrip("/")
    names = {file.removeprefix(root).lstrip("/"): file for file in files}
    names = {name: names[name] for name in without_runs(names, is_run_among(names))}
    kept = require((name for name in names if is_shard(name) or (single and has_known_ending(name))), entry)
    shards = {
        name: shard_at(
            filesystem.unstrip_protocol(names[name]),
            name,
            files[names[name]].get("size"),
            identity_in_listing(files[names[name]]),
            data,
        )
        for name in kept
    }
    return Found(filesystem.unstrip_protocol(root), shards)


def identity_in_listing(info: Mapping[str, Any]) -> str | None:
    """`KIND:VALUE` of a listed object."""
    return next((f"{kind}:{value}" for kind, value in identity_of(info).items()), None)


def list_files(filesystem: Any, path: str, entry: str) -> dict[str, dict[str, Any]]:
    """The files that a path or pattern stands for, from listings alone."""
    try:
        found: dict[str, dict[str, Any]] = filesystem.glob(path, detail=True) if glob.has_magic(path) else {}
        files = {name: info for name, info in found.items() if info["type"] == "file"} or _list_literally(filesystem, path)
    except ValueError as error:  # what a store says of a name it cannot have
        raise SourceError(f"{entry}: cannot be listed: {' '.join(str(error).split())}") from error
    except TypeError as error:  # some file systems take any option, and meet one that is unknown when they connect
        raise SourceError(f"{entry}: cannot be listed with --data.storage-options: {error}") from error
    if not files:
        raise SourceError(f"{entry}: no file matches")
    return files


def _list_literally(filesystem: Any, path: str) -> dict[str, dict[str, Any]]:
    """The file at `path`, or all files below it. Asks for its folder, which the file system remembers for the next."""
    parent = posixpath.dirname(path)
    try:
        siblings = {info["name"].rstrip("/"): info for info in filesystem.ls(parent, detail=True)} if parent.strip("/") else {}
    except FileNotFoundError:
        return {}
    except PermissionError:
        if glob.has_magic(path):
            raise
        return {path: {"type": "file"}}  # a bucket may let everybody read its objects and nobody list them
    if path in siblings and siblings[path]["type"] == "file":
        return {path: siblings[path]}
    return dict(filesystem.find(path, detail=True))
