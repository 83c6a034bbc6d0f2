"""Which files of a folder or Hub dataset are in which split: by its card, or by names, with the rules of `datasets`."""

from __future__ import annotations

import logging
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.file_formats import count_formats, ending_of, format_label, show_counts
from stream_pretrain.errors import SourceError
from stream_pretrain.units import first_of

logger = logging.getLogger(__name__)

# How `datasets` finds splits: by sharded files in data/, or by a word in the name of a folder, or of a file.
_SHARDED = re.compile(r"data/(?P<split>[^/]*)-\d{5}-of-\d{5}[^/]*\.[^/]*")

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}

_IN_PART = {split: re.compile(rf"(?:^|[-._ 0-9])(?:{'|'.join(words)})(?:[-._ 0-9]|$)") for split, words in _WORDS.items()}


@dataclass(frozen=True)
class Splits:
    """The splits of a folder or dataset."""

    files: Mapping[str, Sequence[str]]
    """By split."""
    left_out: Collection[str]
    """Shards that are in no split."""
    of_other_formats: Collection[str]
    """Shards that are in no split only because of their format, since `datasets` reads files of one."""


def choose_split(entry: str, split: str, splits: Splits) -> Sequence[str]:
    """The files of a split. Warns of files that are in none, which may be a mistake.

    Raises: SourceError for a split without files.
    """
    if split not in splits.files:
        left_out = first_of(sorted(splits.left_out))
        named = (f"{name} ({first_of(sorted(files))})" if left_out else name for name, files in splits.files.items())
        only = ", ".join(named) or "none"
        rest = f"; {left_out} in none: name the files to read with --data.data-files" if left_out else ""
        raise SourceError(f"{entry}: there is no split {split!r}, only {only}{rest}")
    formats = show_counts(count_formats(name for files in splits.files.values() for name in files))
    for what, names in (
        ("in no split", set(splits.left_out).difference(splits.of_other_formats)),
        (f"of another kind than {formats}", set(splits.left_out).intersection(splits.of_other_formats)),
    ):
        if names:
            number, verb = ("1 file", "is") if len(names) == 1 else (f"{len(names):,} files", "are")
            logger.warning(
                "%s: %s %s %s and %s not read: %s; choose files with --data.data-files",
                *(entry, number, verb, what, verb, first_of(sorted(names))),
            )
    return splits.files[split]


def of_other_formats(names: Iterable[str], files: Mapping[str, Sequence[str]]) -> set[str]:
    """The files of another format than those of all splits."""
    formats = count_formats(name for of_split in files.values() for name in of_split)
    return {name for name in names if format_label(name) not in formats}


# Names


def names_split(name: str) -> bool:
    """Whether a folder or file in a path is named after a split."""
    return any(pattern.search(part) for part in name.split("/") for pattern in _IN_PART.values())


def splits_by_name(names: Sequence[str]) -> dict[str, list[str]]:
    """The files of each split, with the rules of `datasets`, of any listing."""
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


def of_most_frequent_format(names: Sequence[str]) -> list[str]:
    """The files of the format of the most frequent ending; ties as in `datasets`."""
    endings = Counter(map(ending_of, names))
    preferred = (".csv", ".json", ".jsonl", ".arrow", ".parquet")
    preference = {ending: preferred.index(ending) if ending in preferred else -1 for ending in endings}
    chosen = max(endings, key=lambda ending: (endings[ending], preference[ending], ending))
    return [name for name in names if format_label(name) == format_label(f"shard{chosen}")]


# Cards


def dataset_builder(entry: str, location: str, data: DataConfig, **chosen: str | None) -> Any:
    """The builder that `datasets` chooses for a folder or Hub dataset: it knows the configurations and splits."""
    import datasets

    try:
        return datasets.load_dataset_builder(location, data.name, **chosen)
    except datasets.exceptions.DatasetNotFoundError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise SourceError(f"{entry}: {reason}; set HF_TOKEN to the token of an account with access") from error
    except (FileNotFoundError, ValueError, RuntimeError) as error:  # the last for a dataset with a loading script
        raise SourceError(f"{entry}: {' '.join(str(error).split())}") from error


def splits_of_builder(builder: Any, root: str) -> dict[str, list[str]]:
    """The files of each split, by their paths below `root`."""
    urls = builder.config.data_files or {}
    return {str(split): [url.removeprefix(f"{root}/") for url in urls[split]] for split in urls}


def has_configs(folder: Path) -> bool:
    """Whether the folder's card says which files each configuration has."""
    return (folder / ".huggingface.yaml").is_file() or bool(_configs_of_card(folder))


def patterns_of_card(folder: Path, config_name: str) -> dict[str, list[str]]:
    """The file patterns of each split of a configuration, by the folder's card."""
    from datasets.data_files import sanitize_patterns

    for config in _configs_of_card(folder):
        if config.get("config_name", "default") == config_name and "data_files" in config:
            below = config.get("data_dir", "")
            patterns = sanitize_patterns(config["data_files"])
            return {split: [posixpath.join(below, pattern) for pattern in of] for split, of in patterns.items()}
    return {}


def _configs_of_card(folder: Path) -> list[dict[str, Any]]:
    """The configurations in the header of the folder's card."""
    card = folder / "README.md"
    header = re.match(r"---\n(.*?)\n---", card.read_text("utf-8", "replace"), re.DOTALL) if card.is_file() else None
    if header is None or "\nconfigs:" not in f"\n{header[1]}":
        return []
    try:
        configs = yaml.safe_load(header[1])["configs"]
    except yaml.YAMLError as error:
        raise SourceError(f"{card}: its header is not YAML: {' '.join(str(error).split())}") from error
    return [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []
