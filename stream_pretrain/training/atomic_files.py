"""Files that are there whole or not at all: the one way in which a file of a run is replaced."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from stream_pretrain.errors import CheckpointError


def replace_file(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file so that a reader, or a machine that loses power, sees either the old content or the new.

    Raises: OSError, with the old content in its place and nothing beside it.
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
def writing(path: Path | str, advice: str = "make room, then start again") -> Iterator[None]:
    """Around a write that the run needs: a refusal of the disk names the file, and what to do. Raises: CheckpointError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} cannot be written ({why}): {advice}") from error


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
