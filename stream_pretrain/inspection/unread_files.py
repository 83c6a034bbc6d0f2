"""Files beside a corpus that are not read: cards, other formats, splits and configurations, hidden files."""

from __future__ import annotations

import glob
import itertools
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from stream_pretrain.config import DataConfig, storage_options
from stream_pretrain.data.corpus.corpus_files import is_shard
from stream_pretrain.data.corpus.file_formats import ending_of, has_known_ending
from stream_pretrain.data.corpus.hub_datasets import HUB_URL, hub_token
from stream_pretrain.data.corpus.listings import leads_back, split_pattern
from stream_pretrain.data.corpus.resolve import entries_of, local_path, with_lower_scheme
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.transport.object_store import filesystem_at
from stream_pretrain.data.transport.retrying import retried
from stream_pretrain.non_utf8_names import escaped
from stream_pretrain.urls import is_remote, on_web, without_secrets

MOST_FILES = 10_000
"""Files of a place that are looked at, read ones included."""

MOST_FOLDERS = 1000
"""Folders of a place that are listed: each is a request where it is a store."""

SHOWN = 3
"""Names that are shown."""

Listed: TypeAlias = Callable[[str], tuple[list[str], list[str]]]
"""Names of the folders and of the files in a folder, by its path in a place; "" is the place itself."""


@dataclass(frozen=True)
class Unread:
    """Files and folders that are not read."""

    count: int
    kinds: dict[str, int]
    """By their endings, or in words; the most frequent first."""
    first: Sequence[str]
    """Some of their paths, those with the name of a shard first."""
    is_all: bool
    """Whether all files were looked at."""


@dataclass(frozen=True)
class _Place:
    """A folder, repository or pattern of a dataset."""

    root: str
    listed: Listed
    depth: int | None
    """Folders that it reaches into; None: all of them."""
    is_read: Callable[[str], bool]
    """Whether a file is a shard of the corpus, by its path in the place."""


def unread_files(data: DataConfig, shards: Iterable[Shard]) -> Unread:
    """List the places of a dataset once more. A file that is named itself has none.

    shards: those of all sources. Raises: TransportError for a store that does not answer.
    """
    found: dict[str, tuple[str, str]] = {}  # places may overlap
    is_all = True
    for place in _places(data, {shard.url for shard in shards}):
        entries = _entries(place)
        for path, kind in itertools.islice(entries, MOST_FILES):
            if kind is not None or not place.is_read(path):
                found[posixpath.join(place.root, path)] = escaped(path), kind or _kind_of(path)
        is_all &= next(entries, None) is None
    first = sorted((path for path, _ in found.values()), key=lambda path: (not is_shard(path), path))[:SHOWN]
    return Unread(len(found), dict(Counter(kind for _, kind in found.values()).most_common()), first, is_all)


def _places(data: DataConfig, urls: Collection[str]) -> Iterator[_Place]:
    assert data.dataset is not None, "validated before"
    for repository in sorted({f"{hub['id']}@{hub['revision']}" for url in urls if (hub := HUB_URL.fullmatch(url))}):
        yield _in_store(f"hf://datasets/{repository}", None, {"token": hub_token(data)}, data, urls)
    for entry in map(with_lower_scheme, entries_of(data.dataset)):
        if on_web(entry) or entry.startswith("hf://"):
            continue  # a web server has no listings, and repositories are listed already
        below = "/".join(part for part in (data.data_dir, data.data_files) if part is not None)
        pattern = entry if is_remote(entry) else os.path.abspath(local_path(f"{entry}/{below}" if below else entry))
        if os.path.isfile(pattern) or (is_remote(entry) and not glob.has_magic(pattern) and has_known_ending(pattern)):
            continue
        is_pattern = glob.has_magic(pattern) and not os.path.isdir(pattern)
        root, rest = split_pattern(pattern) if is_pattern else (pattern, "**")
        depth = None if "**" in rest else rest.count("/")
        if is_remote(entry):
            yield _in_store(root, depth, storage_options(data.storage_options), data, urls)
        elif os.path.isdir(root):
            yield _in_folder(Path(root), depth, urls)


def _in_folder(root: Path, depth: int | None, urls: Collection[str]) -> _Place:
    def listed(folder: str) -> tuple[list[str], list[str]]:
        here = root / folder
        with os.scandir(here) as entries:
            found = {entry.name: _is_folder(entry) for entry in entries}
        folders = [name for name, is_folder in found.items() if is_folder and not leads_back(here / name)]
        return folders, [name for name, is_folder in found.items() if not is_folder]

    real = {os.path.realpath(url) for url in urls} if len(urls) <= MOST_FILES else urls
    return _Place(str(root), listed, depth, lambda path: str(root / path) in urls or os.path.realpath(root / path) in real)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that cannot be read
        return False


def _in_store(url: str, depth: int | None, options: dict[str, Any], data: DataConfig, urls: Collection[str]) -> _Place:
    name = without_secrets(url)
    filesystem, root = filesystem_at(url.rstrip("/"), name, options)

    def listed(folder: str) -> tuple[list[str], list[str]]:
        here = posixpath.join(root, folder).rstrip("/")
        found = retried(lambda: filesystem.ls(here, detail=True), name, data.retry_deadline)
        kinds = {info["name"].rstrip("/").removeprefix(f"{here}/"): info["type"] for info in found}
        folders = [name for name, kind in kinds.items() if kind == "directory" and name != here]
        return folders, [name for name, kind in kinds.items() if kind == "file"]

    def is_read(path: str) -> bool:
        full = posixpath.join(root, path)
        return f"hf://{full}" in urls or filesystem.unstrip_protocol(full) in urls

    return _Place(root, listed, depth, is_read)


def _entries(place: _Place) -> Iterator[tuple[str, str | None]]:
    """Path and kind of what is not entered, and of files with None, folder by folder."""
    waiting = [""]
    for number, here in enumerate(waiting):
        if number >= MOST_FOLDERS:
            yield f"{here}/", "folder"
            continue
        try:
            folders, files = place.listed(here)
        except OSError:
            yield f"{here}/", "folder that cannot be read"
            continue
        if here and {"run.json", "lock"} <= set(files):
            yield f"{here}/", "folder of a run"
            continue
        for name in sorted(files):
            yield posixpath.join(here, name), None
        for name in sorted(folders):
            path = posixpath.join(here, name)
            if name.startswith("."):
                yield f"{path}/", "hidden"
            elif place.depth is not None and path.count("/") >= place.depth:
                yield f"{path}/", "folder"
            else:
                waiting.append(path)


def _kind_of(path: str) -> str:
    name = posixpath.basename(path)
    if name.startswith("."):
        return "hidden"
    ending = posixpath.splitext(name)[1]
    if has_known_ending(name) and ending_of(name) != ending.lower():  # the last one is that of a compression
        return ending_of(name) + ending
    return ending or "without an ending"
