"""From ids, folders, globs and URLs to a corpus: a sorted list of shards.

    @FILE           one of the following a line, `#` starts a comment
    path            a local file, folder or glob
    scheme://...    a URL or glob that fsspec knows (https, s3, gs, hf, memory...): a file, a folder, a pattern
    org/name        a dataset on the Hub, resolved by `datasets` and pinned to a commit

Sizes and identities come from the listing that finds the files (local_files.py, hub_datasets.py, remote_files.py). No shard is
opened here, except for the first and last bytes of local files. A new run asks for more (lanes/content_sizes.py).
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import fsspec

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.file_formats import has_known_ending
from stream_pretrain.data.corpus.hub_datasets import HUB_ID, HUB_URL, list_hub_dataset
from stream_pretrain.data.corpus.listings import Listing, refuse_options, split_pattern, unique_files, warn_of_several_formats
from stream_pretrain.data.corpus.local_files import list_folder, list_local_files, list_local_glob
from stream_pretrain.data.corpus.remote_files import list_url
from stream_pretrain.data.corpus.shard import Corpus, Shard, sorted_shards
from stream_pretrain.data.transport.retrying import retried
from stream_pretrain.data.transport.threads import OneThread, in_time
from stream_pretrain.errors import DeadlineError, SourceError
from stream_pretrain.nearest_names import did_you_mean, nearest_path
from stream_pretrain.urls import is_remote, without_secrets


def resolve(
    data: DataConfig, *, split: str | None = None, dataset: str | None = None, commits: Mapping[str, str] = MappingProxyType({})
) -> Corpus:
    """Find and pin the shards of `data.dataset`; `split` and `dataset` replace the configured ones (evaluation sets).

    commits: of Hub datasets that are pinned already, by id; the others are pinned to the current commit of their revision.
    Raises: SourceError for what does not exist or has no shards, TransportError for what cannot be reached.
    """
    data = other_dataset(data, dataset)
    if split is not None:
        data = dataclasses.replace(data, split=split, data_files=None)
    assert data.dataset is not None, "validated before"
    for kind in fsspec.registry.values():
        kind.clear_instance_cache()  # listings of another run of this process may be outdated

    with OneThread("listing") as thread:
        listings = [_list(entry, data, commits, thread) for entry in entries_of(data.dataset)]
    revisions = {listing.revision for listing in listings}
    shards = _merged(listings) if data.dataset.startswith("@") else listings[0].shards
    return Corpus(data.dataset, revisions.pop() if len(revisions) == 1 else None, sorted_shards(shards))


def other_dataset(data: DataConfig, dataset: str | None) -> DataConfig:
    """The options for another dataset, if one is given, without those that select a part of the configured one."""
    if dataset is None:
        return data
    return dataclasses.replace(data, dataset=dataset, name=None, split="train", revision=None, data_files=None, data_dir=None)


def _merged(listings: Iterable[Listing]) -> dict[str, Shard]:
    """The shards of all listings, by their paths below their common folder; a file that is listed twice counts once."""
    by_location: dict[str, Shard] = {}
    for listing in listings:
        for name, shard in listing.shards.items():
            location = f"{listing.root}/{name}"
            if by_location.setdefault(location, shard).url != shard.url:
                urls = " and ".join(without_secrets(url) for url in (by_location[location].url, shard.url))
                raise SourceError(f"{urls} have the same name, {without_secrets(location)}")
    local = [location for location, shard in by_location.items() if not is_remote(shard.url)]
    for location in set(local).difference(unique_files(Path("/"), local).values()):
        del by_location[location]
    folders = [location.split("/")[:-1] for location in by_location]
    levels = list(zip(*folders, strict=False))
    common = next((level for level, names in enumerate(levels) if len(set(names)) > 1), len(levels))
    return {"/".join(location.split("/")[common:]): shard for location, shard in by_location.items()}


def entries_of(dataset: str) -> list[str]:
    """The dataset itself, or the lines of @FILE without comments. Raises: SourceError."""
    if not dataset.startswith("@"):
        return [dataset]
    file = Path(dataset[1:]).expanduser()
    if not file.is_file():
        what = "is not a file: a list is read again at a resume" if file.exists() else "there is no such file"
        raise SourceError(f"@{file}: {what}")
    try:
        content = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"@{file}: is not UTF-8 text ({error.reason} at byte {error.start}): a list has one dataset a line"
        ) from error
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in content.splitlines()]
    if not any(lines):
        raise SourceError(f"@{file}: names no dataset")
    return [line for line in lines if line]


LEAST_DEADLINE = 60.0
"""Seconds that a remote listing may take, even with a shorter --data.retry-deadline."""


def _list(entry: str, data: DataConfig, commits: Mapping[str, str], thread: OneThread) -> Listing:
    """The listing of an entry: a local path if there is one, then a URL, then a Hub id."""
    url = with_lower_scheme(entry)
    listing = _list_local(url, data) or _list_remote_in_time(url, data, commits, thread)
    warn_of_several_formats(without_secrets(url), list(listing.shards))
    return listing


def with_lower_scheme(entry: str) -> str:
    """The entry, with the scheme of a URL in lower case."""
    scheme, separator, rest = entry.partition("://")
    return scheme.lower() + separator + rest if separator else entry


def local_path(entry: str) -> Path:
    """The path of a local entry."""
    return Path(os.path.expanduser(entry.removeprefix("file://")))


def no_such_path(entry: str) -> SourceError:
    """The error for an entry that does not exist here and cannot be on the Hub."""
    return SourceError(
        f"{entry}: there is no such file or folder{_how_to_give(entry) or did_you_mean(nearest_path(local_path(entry)))}"
    )


def _how_to_give(entry: str) -> str:
    """Advice on an entry that seems to be several paths, or a part of a Hub dataset; empty for others."""
    words = re.split(r"[,\s]+", entry)
    if len(words) > 1 and all(word and os.path.exists(local_path(word)) for word in words):
        return "; list several in a file, one a line, and give @FILE"
    if (part := _PART_OF_HUB.fullmatch(entry)) and not has_known_ending(entry) and not os.path.exists(part["org"]):
        return f"; of the Hub dataset {part['id']}, parts are --data.name, --data.split, --data.revision and --data.data-dir"
    return ""


_PART_OF_HUB = re.compile(r"(?P<id>(?P<org>\w[\w.-]*)/\w[\w.-]*)[:@/][\w./-]+", re.ASCII)


def may_be_on_hub(entry: str) -> bool:
    """Whether an entry that does not exist here may be on the Hub, and is no shard in an existing folder."""
    return HUB_ID.fullmatch(entry) is not None and not (has_known_ending(entry) and local_path(entry).parent.is_dir())


def _list_local(entry: str, data: DataConfig) -> Listing | None:
    """A local file, folder or glob, without a deadline; None for another entry."""
    if is_remote(entry):
        return None
    path = local_path(entry)
    if os.path.lexists(path) and not os.path.isdir(path):  # Path.exists raises for a name that is too long
        refuse_options(entry, data, "name", "revision", "data_files", "data_dir")
        return list_local_files(entry, path.parent, [path.name], data, named=True)
    if os.path.isdir(path):
        return list_folder(entry, path, data)
    if glob.has_magic(entry):
        refuse_options(entry, data, "name", "revision", "data_files", "data_dir")
        root, pattern = split_pattern(path.as_posix())
        return list_local_glob(entry, Path(root), pattern, data)
    if not may_be_on_hub(entry):
        raise no_such_path(entry)
    return None


def _list_remote_in_time(url: str, data: DataConfig, commits: Mapping[str, str], thread: OneThread) -> Listing:
    """`_list_remote` with retries and a deadline."""
    deadline = max(data.retry_deadline, LEAST_DEADLINE)
    silent = DeadlineError(
        f"{without_secrets(url)}: no answer for {deadline:g} s; check the network and the server, then run the "
        f"same command again, or raise --data.retry-deadline (now {data.retry_deadline:g} s)"
    )

    def find() -> Listing:
        """In a thread, since a library may have no timeout."""
        return in_time(thread.call(lambda: _list_remote(url, data, commits)), deadline, silent)

    near = "" if is_remote(url) else did_you_mean(nearest_path(local_path(url)))
    name = f"{url} (no file or folder here{near})" if near or "/" not in url else without_secrets(url)
    return retried(find, name, data.retry_deadline)


def _list_remote(entry: str, data: DataConfig, commits: Mapping[str, str]) -> Listing:
    """A dataset of the Hub, by its URL or id, or files at another URL."""
    if hub := HUB_URL.fullmatch(entry.rstrip("/")):
        revision = urllib.parse.unquote(hub["revision"] or "") or data.revision
        return list_hub_dataset(entry, hub["id"], revision, hub["path"], data, commits)
    if "://" in entry:
        return list_url(entry, data)
    return list_hub_dataset(entry, entry, data.revision, None, data, commits)
