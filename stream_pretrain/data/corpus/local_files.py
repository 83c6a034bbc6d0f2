"""Local files, folders and globs."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fsspec.utils import glob_translate

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.corpus_files import is_run_below, is_shard, without_runs
from stream_pretrain.data.corpus.listings import (
    Listing,
    at_least_one,
    files_below,
    matching_files,
    refuse_options,
    refuse_unknown_ending,
    unique_files,
)
from stream_pretrain.data.corpus.shard import Shard, shard_at
from stream_pretrain.data.corpus.splits import (
    Splits,
    choose_split,
    dataset_builder,
    has_configs,
    names_split,
    of_most_frequent_format,
    of_other_formats,
    patterns_of_card,
    splits_by_name,
    splits_of_builder,
)
from stream_pretrain.data.transport.local_file import ends_of, open_file
from stream_pretrain.errors import SourceError


def list_local_files(entry: str, root: Path, names: Iterable[str], data: DataConfig, *, named: bool = False) -> Listing:
    """Files by their paths below `root`. named: by the user, so that only the ending matters."""
    base = Path(os.path.abspath(root))
    shards = at_least_one((name for name in names if named or is_shard(name)), entry)
    if named:
        refuse_unknown_ending(entry, shards[0])
    return Listing(base.as_posix(), {name: local_shard(base / name, name, data) for name in shards})


def local_shard(path: Path, name: str, data: DataConfig) -> Shard:
    """The shard at a local path, with its identity."""
    try:
        descriptor, found = open_file(str(path))
        try:
            ends = ends_of(descriptor, found.st_size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    return shard_at(str(path), name, found.st_size, f"ends:{ends}", data)


def list_local_glob(entry: str, root: Path, pattern: str, data: DataConfig) -> Listing:
    """The files below a folder that a pattern matches."""
    names = at_least_one(matching_files(root, pattern), entry, "no file matches")
    names = at_least_one(without_runs(names, is_run_below(root)), entry, "nothing but what a run has left matches")
    return list_local_files(entry, root, unique_files(root, names).values(), data)


def list_folder(entry: str, folder: Path, data: DataConfig) -> Listing:
    """A folder, with splits by its card or by names; otherwise, all shards below it are one split."""
    root = folder / (data.data_dir or "")
    if not root.is_dir():
        raise SourceError(f"{entry}: there is no folder {data.data_dir} in it")
    if data.data_files is not None:
        refuse_options(entry, data, "name", "revision")
        return list_local_glob(f"{entry}/{data.data_files}", root, data.data_files, data)
    files = list(without_runs(files_below(root), is_run_below(root)))
    names: Sequence[str] = at_least_one(filter(is_shard, files), entry, beside=files)
    if data.name is not None or has_configs(root):
        names = choose_split(entry, data.split, _splits_of_card(entry, root, names, data))
    elif any(map(names_split, names)):
        names = choose_split(entry, data.split, _splits_of_names(root, names))
    else:
        refuse_options(entry, data, "revision")
    return list_local_files(entry, root, unique_files(root, names).values(), data)


def _splits_of_card(entry: str, root: Path, names: Sequence[str], data: DataConfig) -> Splits:
    base = str(root.resolve())  # as in the paths of `datasets`
    builder = dataset_builder(entry, base, data)
    splits = splits_of_builder(builder, base)
    # `datasets` follows no link to a folder: the patterns of the card are applied to our listing too.
    for split, patterns in patterns_of_card(root, builder.config.name).items():
        matches = [re.compile(glob_translate(posixpath.normpath(pattern))).match for pattern in patterns]
        splits[split] += [name for name in names if name not in splits[split] and any(match(name) for match in matches)]
    # With several configurations, files are left out on purpose.
    left_out = _left_out(root, names, splits) if len(builder.builder_configs) == 1 else []
    return Splits(splits, left_out, of_other_formats(names, splits))


def _splits_of_names(root: Path, names: Sequence[str]) -> Splits:
    named = splits_by_name(names)
    splits = {split: of_most_frequent_format(files) for split, files in named.items()}
    return Splits(splits, _left_out(root, names, splits), {name for files in named.values() for name in files})


def _left_out(root: Path, names: Iterable[str], splits: Mapping[str, Sequence[str]]) -> list[str]:
    """The files that are in no split by any of their names."""
    read = unique_files(root, (name for files in splits.values() for name in files))
    return [name for place, name in unique_files(root, names).items() if place not in read]
