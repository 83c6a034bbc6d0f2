"""Atomic writes: how every file of a run is replaced."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from safetensors import SafetensorError

from stream_pretrain.errors import CheckpointError


def replace_file(path: Path, chunks: Iterable[bytes]) -> None:
    """Replace a file atomically and durably: a reader, or a machine after a power loss, has the old content or the new.

    Raises: OSError; the old content stays, and no draft is left.
    """
    draft = path.with_name(f".tmp-{path.name}")
    try:
        with draft.open("wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def writing(path: Path | str, advice: str = "free some space, then run the same command again") -> Iterator[None]:
    """Turn an error of the disk in the block into a CheckpointError that names the file and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # of safetensors, after its own words
        why = os.strerror(int(number[1])) if number else getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} cannot be written ({why}): {advice}") from error


def writing_out(out: Path) -> AbstractContextManager[None]:
    """As `writing`, for what a start makes in OUT."""
    return writing(f"--output-dir {out}", "give another folder")


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
