"""The format of a file, by the ending of its name."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from stream_pretrain.data.transport.compression import compression_of

Format = Literal["jsonl", "text", "parquet", "examples"]
"""The reader of a shard (documents/reader.py); `datasets` parses "examples"."""


@dataclass(frozen=True)
class FileFormat:
    """A format, by the endings of its files."""

    read_as: Format
    label: str
    """Its name in messages."""
    builder: str
    """The builder of `datasets`, for "examples", and for every format with --data.reader datasets."""
    endings: tuple[str, ...]
    """In lower case; the ending of a compression may follow."""


FILE_FORMATS = (
    FileFormat("jsonl", "JSON lines", "json", (".jsonl", ".json", ".ndjson")),
    FileFormat("text", "text", "text", (".txt", ".text")),
    FileFormat("parquet", "Parquet", "parquet", (".parquet",)),
    FileFormat("examples", "CSV", "csv", (".csv", ".tsv")),
    FileFormat("examples", "Arrow", "arrow", (".arrow",)),
    FileFormat("examples", "WebDataset", "webdataset", (".tar",)),
)
BY_ENDING = {ending: file_format for file_format in FILE_FORMATS for ending in file_format.endings}


def ending_of(name: str) -> str:
    """The ending of the format, without the one of a compression."""
    stem = name if compression_of(name) == "none" else posixpath.splitext(name)[0]
    return posixpath.splitext(stem)[1].lower()


def has_known_ending(name: str) -> bool:
    return ending_of(name) in BY_ENDING


_ARCHIVES = (".zip", ".tgz", ".tbz2", ".txz", ".7z", ".rar")
_MARKED_UP = (".pdf", ".html", ".htm", ".xml", ".epub", ".doc", ".docx", ".odt")


def why_no_shard(name: str) -> str | None:
    """Why a file that may well hold a corpus is no shard, and what to do with it."""
    ending = posixpath.splitext(name)[1].lower()
    if ending in _ARCHIVES:
        return f"{name} is an archive, which cannot be streamed: unpack it, and give the folder"
    if ending in _MARKED_UP:
        return f"{name} is not plain text: extract that, for example into JSON lines with a field text"
    return None


def format_label(name: str) -> str:
    """The format of a file as messages call it; "other" for an unknown ending."""
    return BY_ENDING[ending_of(name)].label if has_known_ending(name) else "other"


def count_formats(names: Iterable[str]) -> Counter[str]:
    """How many files have each format, by its label."""
    return Counter(map(format_label, names))


def show_counts(counts: Mapping[str, int]) -> str:
    """As in "2,000 JSON lines, 1 text", the most frequent first."""
    return ", ".join(f"{count:,} {label}" for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
