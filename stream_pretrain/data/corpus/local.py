"""Local files, folders and globs."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fsspec.utils import glob_translate

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.found import Found, of_other_kinds, refuse_parts, require, require_split, say_what_is_left_out
from stream_pretrain.data.corpus.listings import (
    files_below,
    is_run_below,
    matching_files,
    once,
    without_runs,
)
from stream_pretrain.data.corpus.shard import Shard, builder_of, shard_at
from stream_pretrain.data.corpus.shard_names import (
    has_known_ending,
    is_shard,
    names_split,
    of_most_frequent_kind,
    splits_by_name,
)
from stream_pretrain.data.corpus.splits import has_configs, patterns_of_card, splits_of
from stream_pretrain.errors import SourceError

_ENDS = 64 * 1024

# Local files


def local_files(entry: str, root: Path, names: Iterable[str], data: DataConfig, *, chosen: bool = False) -> Found:
    """Local files by their paths below `root`; `chosen` ones only need a known ending."""
    base = Path(os.path.abspath(root))
    kept = require((name for name in names if chosen or is_shard(name)), entry)
    if chosen:
        require(filter(has_known_ending, kept), entry, "the ending says no format")
    return Found(base.as_posix(), {name: local_shard(base / name, name, data) for name in kept})


def local_shard(path: Path, name: str, data: DataConfig) -> Shard:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            ends = file.read(_ENDS)
            file.seek(max(0, size - _ENDS))
            ends += file.read(_ENDS)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    return shard_at(str(path), name, size, f"ends:{size}:{hashlib.sha256(ends).hexdigest()}", data)


def find_local_glob(entry: str, root: Path, pattern: str, data: DataConfig) -> Found:
    found = require(matching_files(root, pattern), entry, "no file matches")
    found = require(without_runs(found, is_run_below(root)), entry, "nothing but what a run has left matches")
    return local_files(entry, root, once(root, found).values(), data)


def find_folder(entry: str, folder: Path, data: DataConfig) -> Found:
    """A folder: one that names splits has those, any other is one split with all shards below it."""
    root = folder / (data.data_dir or "")
    if not root.is_dir():
        raise SourceError(f"{entry}: there is no folder {data.data_dir} in it")
    if data.data_files is not None:
        refuse_parts(entry, data, "name", "revision")
        return find_local_glob(f"{entry}/{data.data_files}", root, data.data_files, data)
    shards = require(filter(is_shard, without_runs(files_below(root), is_run_below(root))), entry)
    several = False
    if data.name is not None or has_configs(root):
        splits, several = _splits_of_card(entry, root, shards, data)
        in_split = of_other_kinds(shards, splits)
    elif any(map(names_split, shards)):
        named = splits_by_name(shards)
        splits = {split: of_most_frequent_kind(files) for split, files in named.items()}
        in_split = {name for files in named.values() for name in files}
    else:
        refuse_parts(entry, data, "revision")
        return local_files(entry, root, once(root, shards).values(), data)
    if several:  # the files of other configurations are not left out by mistake
        shards = [name for files in splits.values() for name in files]
    require_split(entry, data.split, splits, shards)
    read = once(root, (name for files in splits.values() for name in files))  # over another way, perhaps
    left_out = [name for place, name in once(root, shards).items() if place not in read]
    say_what_is_left_out(entry, left_out, splits, in_split)
    return local_files(entry, root, once(root, splits[data.split]).values(), data)


def _splits_of_card(entry: str, root: Path, shards: Sequence[str], data: DataConfig) -> tuple[dict[str, list[str]], bool]:
    """The files of each split, as the folder's card has them, and whether it has several configurations."""
    base = root.resolve()  # as `datasets` names the files in it
    builder = builder_of(entry, str(base), data)
    splits = {split: [Path(url).relative_to(base).as_posix() for url in urls] for split, urls in splits_of(builder).items()}
    # `datasets` follows no link to a folder: the patterns of the card are asked about our listing too.
    for split, patterns in patterns_of_card(root, builder.config.name).items():
        matches = [re.compile(glob_translate(posixpath.normpath(pattern))).match for pattern in patterns]
        splits[split] += [name for name in shards if name not in splits[split] and any(match(name) for match in matches)]
    return splits, len(builder.builder_configs) > 1
