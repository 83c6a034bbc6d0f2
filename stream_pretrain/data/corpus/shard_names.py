"""What names of files say: the format, whether a file is a shard, and the split it is of."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from stream_pretrain.data.transport.compression import compression_of

Format = Literal["jsonl", "text", "parquet", "examples"]

FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".parquet": "parquet",
}
"""Endings our own reader knows, each also with the ending of a compression."""

BUILDERS = {".csv": "csv", ".tsv": "csv", ".arrow": "arrow", ".tar": "webdataset"}
"""Further endings: the builder of `datasets` that reads them."""

_KINDS = {
    "jsonl": "JSON lines",
    "text": "text",
    "parquet": "Parquet",
    "csv": "CSV",
    "arrow": "Arrow",
    "webdataset": "WebDataset",
}

# Files that lie beside the shards of a corpus and have a shard's ending.
_NOT_SHARDS = re.compile(
    r"(readme|licen[cs]e|notice|changelog)(\..*)?|(config|state|dataset_infos?|dataset_dict)\.json", re.IGNORECASE
)

# How `datasets` tells splits: a sharded file in data/, or a word in the name of a folder, or of a file.
_SHARDED = re.compile(r"data/(?P<split>[^/]*)-\d{5}-of-\d{5}[^/]*\.[^/]*")

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}

_IN_PART = {split: re.compile(rf"(?:^|[-._ 0-9])(?:{'|'.join(words)})(?:[-._ 0-9]|$)") for split, words in _WORDS.items()}


def ending_of(name: str) -> str:
    """The ending that says the format, below the one of a compression."""
    stem = name if compression_of(name) == "none" else posixpath.splitext(name)[0]
    return posixpath.splitext(stem)[1].lower()


def has_known_ending(name: str) -> bool:
    """Whether the name says a format."""
    return ending_of(name) in {*FORMATS, *BUILDERS}


def is_shard(name: str) -> bool:
    """Whether a file of a folder or glob belongs to the corpus, by its path in it."""
    parts = name.split("/")
    hidden = any(part.startswith(".") for part in parts)
    return not hidden and not _NOT_SHARDS.fullmatch(parts[-1]) and has_known_ending(name)


def kind_of(name: str) -> str:
    """The format in words; that of the builder that `datasets` has for it where the ending says none."""
    ending = ending_of(name)
    return _KINDS[FORMATS.get(ending) or BUILDERS[ending]] if has_known_ending(name) else "other"


def count_kinds(names: Iterable[str]) -> Counter[str]:
    """How many files are of each kind."""
    return Counter(map(kind_of, names))


def names_split(name: str) -> bool:
    """Whether a folder or file in a path is named after a split."""
    return any(pattern.search(part) for part in name.split("/") for pattern in _IN_PART.values())


def splits_by_name(names: Sequence[str]) -> dict[str, list[str]]:
    """The files of each split, as `datasets` tells them, but of any listing."""
    sharded = [(found["split"], name) for name in names if (found := _SHARDED.fullmatch(name))]
    if sharded:
        order = [*_WORDS, *sorted({split for split, _ in sharded} - _WORDS.keys())]
        splits = {split: [name for of, name in sharded if of == split] for split in order}
    else:
        splits = {split: [name for name in names if _in_folder(name, split)] for split in _WORDS}
        if not any(splits.values()):
            splits = {split: [name for name in names if _IN_PART[split].search(posixpath.basename(name))] for split in _WORDS}
    return {split: files for split, files in splits.items() if files}


def _in_folder(name: str, split: str) -> bool:
    return any(map(_IN_PART[split].search, name.split("/")[:-1]))


def of_most_frequent_kind(names: Sequence[str]) -> list[str]:
    """Those of the kind that the most frequent ending has; of equals, the ending that `datasets` prefers."""
    endings = Counter(map(ending_of, names))
    preferred = (".csv", ".json", ".jsonl", ".arrow", ".parquet")
    rank = {ending: preferred.index(ending) if ending in preferred else -1 for ending in endings}
    chosen = max(endings, key=lambda ending: (endings[ending], rank[ending], ending))
    return [name for name in names if kind_of(name) == kind_of(f"shard{chosen}")]
