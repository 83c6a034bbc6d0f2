"""Which files of a folder, glob or dataset are corpus: shards by their names, not hidden, and nothing that a run wrote."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from stream_pretrain.data.corpus.file_formats import has_known_ending

# Files with the ending of a shard that are none.
_NOT_SHARDS = re.compile(
    r"(readme|licen[cs]e|notice|changelog)(\..*)?|(config|state|dataset_infos?|dataset_dict)\.json", re.IGNORECASE
)

# Files of a run in its folder with the ending of a shard.
_OF_A_RUN = re.compile(
    r"(best|checkpoints|cursors|model|wandb)/.*|(metrics|quarantine|bad_steps|passed_over|evaluation)\.jsonl|(run|evaluation)\.json"
)


def is_shard(name: str) -> bool:
    """Whether a file of a folder or glob belongs to the corpus, by its path in it."""
    parts = name.split("/")
    hidden = any(part.startswith(".") for part in parts)
    return not hidden and not _NOT_SHARDS.fullmatch(parts[-1]) and has_known_ending(name)


def without_runs(names: Iterable[str], is_run: Callable[[str], bool]) -> list[str]:
    """The files that no run wrote: not in the folder of a run; nor records, if the listed folder is that of a run.

    is_run: whether a folder, by its path in the listed one, is that of a run.
    """
    is_run = cache(is_run)

    def of_a_run(name: str) -> bool:
        folders = name.split("/")[:-1]
        inner = ("/".join(folders[:depth]) for depth in range(1, len(folders) + 1))
        return any(map(is_run, inner)) or (is_run("") and _OF_A_RUN.fullmatch(name) is not None)

    return [name for name in names if not of_a_run(name)]


def is_run_among(names: Iterable[str]) -> Callable[[str], bool]:
    """Whether a folder is that of a run, with a run.json and a lock among these files."""
    present = set(names)
    return lambda folder: {posixpath.join(folder, "run.json"), posixpath.join(folder, "lock")} <= present


def is_run_below(root: Path) -> Callable[[str], bool]:
    """Whether a local folder below `root` is that of a run, with a run.json and a lock."""
    return lambda folder: (root / folder / "run.json").is_file() and (root / folder / "lock").is_file()
