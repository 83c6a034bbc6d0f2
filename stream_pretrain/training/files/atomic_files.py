"""Atomic writes: how every file of a run is replaced."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from safetensors import SafetensorError

from stream_pretrain.errors import CheckpointError

_REMEDIES: dict[int | None, str] = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable"),
    errno.EFBIG: "raise the limit of the size of files (ulimit -f)",
}
"""What else than room a file needs, by the error."""


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
def writing(path: Path | str, advice: str | None = None) -> Iterator[None]:
    """Turn an error of the disk in the block into a CheckpointError that names the file and what to do.

    advice: other than by the error.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # of safetensors, after its own words
        code = int(number[1]) if number else getattr(error, "errno", None)
        why = os.strerror(code) if code is not None else error
        todo = advice or f"{_remedy(code, Path(path))}, then run the same command again"
        raise CheckpointError(f"{path} cannot be written ({why}): {todo}") from error


def _remedy(code: int | None, path: Path) -> str:
    if code not in (errno.ENOSPC, errno.EDQUOT):
        return _REMEDIES.get(code, "correct that")
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    has_inodes = (system := os.statvfs(there)).f_favail > 0 or system.f_files == 0  # 0: it does not count them
    return "free some space" if has_inodes else "delete some files (no inodes are left)"


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
