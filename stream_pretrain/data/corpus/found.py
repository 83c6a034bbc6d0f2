"""What one id, path, glob or URL stands for."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.corpus.shard_names import (
    BUILDERS,
    FORMATS,
    count_kinds,
    kind_of,
)
from stream_pretrain.errors import SourceError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What one id, path, glob or URL stands for: files by their path below `root`."""

    root: str
    files: dict[str, Shard]
    revision: str | None = None


def warn_of_several_formats(entry: str, names: Sequence[str]) -> None:
    """Warn of files of several formats in one place: some may lie there by chance."""
    counts = count_kinds(names)
    most = min(counts, key=lambda kind: (-counts[kind], kind))
    if few := [name for name in names if kind_of(name) != most]:
        logger.warning(
            "%s: files of several formats are read (%s): is %s meant? --data.data-files or a glob chooses",
            entry,
            in_words(counts),
            _shown(few),
        )


def in_words(kinds: Mapping[str, int]) -> str:
    """How many files are of each kind, the most frequent first."""
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))


def _shown(names: Collection[str]) -> str:
    """Some names, and how many more there are."""
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def refuse_parts(entry: str, data: DataConfig, *options: str) -> None:
    """Refuse options that choose a part of a dataset where there are no such parts."""
    for option in options:
        if getattr(data, option) is not None:
            raise SourceError(f"{entry}: --data.{option.replace('_', '-')} has no meaning for it, leave the option out")
    if data.split != "train" and data.data_files is None:
        raise SourceError(f"{entry}: there is no split {data.split!r}, only train")


def require(names: Iterable[str], entry: str, what: str = "no shard") -> list[str]:
    """The names, of which there must be some."""
    found = list(names)
    if not found:
        raise SourceError(f"{entry}: {what} there; shards end in {' '.join([*FORMATS, *BUILDERS])}, compressed or not")
    return found


def require_split(entry: str, split: str, splits: Mapping[str, Sequence[str]], shards: Sequence[str]) -> None:
    """Refuse a split that no name is of, and say which files are of none."""
    if split in splits:
        return
    left_out = sorted(set(shards).difference(*splits.values()))
    only = ", ".join(f"{name} ({_shown(files)})" if left_out else name for name, files in splits.items()) or "none"
    rest = f"; {_shown(left_out)} in none: name the files to read with --data.data-files" if left_out else ""
    raise SourceError(f"{entry}: there is no split {split!r}, only {only}{rest}")


def of_other_kinds(names: Iterable[str], splits: Mapping[str, Sequence[str]]) -> set[str]:
    """Of files in several formats, `datasets` takes those of one."""
    kinds = count_kinds(name for files in splits.values() for name in files)
    return {name for name in names if kind_of(name) not in kinds}


def say_what_is_left_out(
    entry: str, names: Iterable[str], splits: Mapping[str, Sequence[str]], in_split: Collection[str]
) -> None:
    """Files in no split, and files that are in one but not of the kind that most of it are of."""
    kinds = in_words(count_kinds(name for files in splits.values() for name in files))
    left_out = set(names).difference(*splits.values())
    for what, these in (
        ("in no split", left_out.difference(in_split)),
        (f"of another kind than {kinds}", left_out.intersection(in_split)),
    ):
        if these:
            number, verb = ("1 file", "is") if len(these) == 1 else (f"{len(these):,} files", "are")
            logger.warning(
                "%s: %s %s %s and %s not read: %s; --data.data-files names files in place of a split",
                *(entry, number, verb, what, verb, _shown(these)),
            )
