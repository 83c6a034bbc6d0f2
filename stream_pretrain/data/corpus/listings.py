"""Files below a folder or matching a pattern: links are followed, and each file is listed once."""

from __future__ import annotations

import glob
import logging
import os
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fsspec.utils import glob_translate

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.file_formats import (
    BY_ENDING,
    count_formats,
    format_label,
    has_known_ending,
    show_counts,
    why_no_shard,
)
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.errors import SourceError
from stream_pretrain.units import first_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The shards of one entry of --dataset."""

    root: str
    """Folder or URL that the names are paths in."""
    shards: dict[str, Shard]
    """By name."""
    revision: str | None = None
    """Commit of a Hub dataset."""


def refuse_options(entry: str, data: DataConfig, *options: str) -> None:
    """Refuse options that select a part of a dataset, for an entry without such parts. Raises: SourceError."""
    for option in options:
        if getattr(data, option) is not None:
            raise SourceError(f"{entry}: --data.{option.replace('_', '-')} does not apply to it: leave the option out")
    if data.split != "train" and data.data_files is None:
        raise SourceError(f"{entry}: there is no split {data.split!r}, only train")


def at_least_one(
    names: Iterable[str], entry: str, otherwise: str = "no shard there", *, beside: Collection[str] = ()
) -> list[str]:
    """The names. Raises: SourceError, with `otherwise`, where there is none; beside: files that are no shards."""
    listed = list(names)
    if not listed:
        if beside:
            otherwise += f", {next(filter(None, map(why_no_shard, sorted(beside))), f'only {first_of(sorted(beside))}')}"
        raise SourceError(f"{entry}: {otherwise}; shards end in {' '.join(BY_ENDING)}, compressed or not")
    return listed


def refuse_unknown_ending(entry: str, name: str) -> None:
    """Refuse a file that no reader is known for. Raises: SourceError."""
    at_least_one(filter(has_known_ending, [name]), entry, why_no_shard(name) or "the ending says no format")


def warn_of_several_formats(entry: str, names: Collection[str]) -> None:
    """Warn of files of another format, which may be in a folder by accident."""
    counts = count_formats(names)
    most = min(counts, key=lambda label: (-counts[label], label))
    if few := [name for name in names if format_label(name) != most]:
        logger.warning(
            "%s: reads files of several formats (%s), among them %s: choose with --data.data-files or a glob",
            entry,
            show_counts(counts),
            first_of(sorted(few)),
        )


def matching_files(root: Path, pattern: str) -> list[str]:
    """The files below a folder that match a pattern, by their paths in it."""
    parts = Path(pattern).parts
    if "**" in parts:
        first = parts.index("**")
        # As in a shell, two stars count as one where they are part of a name.
        below = "/".join(part if part == "**" else re.sub(r"\*+", "*", part) for part in parts[first:])
        matches = re.compile(glob_translate(below)).match
        folders = sorted(glob.glob(f"{Path(*parts[:first])}/", root_dir=root))
        found = [Path(folder, name) for folder in folders for name in files_below(root / folder) if matches(name)]
    else:
        found = [path for path in map(Path, glob.glob(pattern, root_dir=root)) if not (root / path).is_dir()]
    return [path.as_posix() for path in found]


def files_below(root: Path) -> Iterator[str]:
    """The files below a folder, by their paths in it; not in hidden folders. Links are followed unless they form a cycle.

    Raises: SourceError for a folder that cannot be read, since its shards would be missing.
    """

    def refuse(error: OSError) -> None:
        raise SourceError(f"{error.filename}: cannot be read: {error.strerror}") from error

    root = Path(os.path.abspath(root))
    for place, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        here = Path(place)
        kept = (name for name in folders if not name.startswith(".") and name != "lost+found")  # which every disk has, for root
        folders[:] = sorted(name for name in kept if not leads_back(here / name))
        yield from ((here / name).relative_to(root).as_posix() for name in files)


def leads_back(folder: Path) -> bool:
    """Whether a folder is a link to one of its parents."""
    return folder.is_symlink() and any(map(folder.samefile, folder.parents))


def split_pattern(pattern: str) -> tuple[str, str]:
    """The folders of a pattern before the first wildcard, and the rest."""
    parts = pattern.split("/")
    fixed = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else ""), "/".join(parts[fixed:])


def unique_files(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Each file by its real path, with one of its names: one without a link in it, otherwise the first."""
    base = os.path.realpath(root)

    @cache
    def real_folder(folder: str) -> str:
        return os.path.realpath(root / folder)

    def real(name: str) -> str:
        folder, file = posixpath.split(name)
        return os.path.realpath(root / name) if os.path.islink(root / name) else posixpath.join(real_folder(folder), file)

    places = {name: real(name) for name in names}
    unique: dict[str, str] = {}
    for name in sorted(places, key=lambda name: (places[name] != os.path.normpath(posixpath.join(base, name)), name)):
        unique.setdefault(places[name], name)
    return unique
