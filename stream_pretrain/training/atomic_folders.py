"""Folders that are there whole or not at all: filled under a hidden name, brought to the disk, then put in their place.

Where there is a folder already, the two change their names in one go, so that there is one at any moment. Where the system
cannot do that, the old one steps aside first, and `repair` ends what a kill has cut between the two renames.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from stream_pretrain.training.atomic_files import sync

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def put_in_place(final: Path, fill: Callable[[Path], None]) -> None:
    """Fill a hidden folder, bring it to the disk and name it `final`; if anything fails `final` is as before.

    The folder that it lies in is not made: where that was taken away, no half of it is to appear anew.
    Raises: OSError, and what `fill` does.
    """
    repair(final)
    temporary, old = _hidden("tmp", final), _hidden("old", final)
    delete(temporary)
    undo: list[Callable[[], object]] = [lambda: delete(temporary)]
    try:
        temporary.mkdir()
        fill(temporary)
        flush(temporary)
        if not os.path.lexists(final):
            temporary.rename(final)
            undo.append(lambda: final.rename(temporary))
        elif exchange(temporary, final):
            undo.append(lambda: exchange(temporary, final))
        else:
            final.rename(old)
            undo.append(lambda: old.rename(final))
            temporary.rename(final)
            undo.append(lambda: final.rename(temporary))
        sync(final.parent)
    except BaseException:
        with suppress(OSError):  # what cannot be undone stays, and `repair` chooses
            for action in reversed(undo):
                action()
        raise
    delete(temporary)
    delete(old)


def repair(final: Path) -> None:
    """End what a kill has cut short in `put_in_place`: the folder is the new or the old one, and nothing is left beside it.

    Raises: OSError.
    """
    temporary, old = _hidden("tmp", final), _hidden("old", final)
    if _steps_aside(final):
        (temporary if os.path.lexists(temporary) else old).rename(final)  # the old one steps aside for one that is whole
        sync(final.parent)
    delete(temporary)
    delete(old)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders of one file system change their names in one go; False where that cannot be. Raises: OSError."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library or system without it
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_SUPPORTED:
        return False
    raise OSError(number, os.strerror(number), os.fspath(other))


def delete(folder: Path) -> None:
    """Delete a folder, or a file or link in its place.

    It is renamed first, so that what is half deleted is never taken for what was whole. What cannot go now (a network file
    system keeps a file that another process has open) goes with the next one of this name.
    """
    gone = _hidden("gone", folder)
    _remove(gone)
    if os.path.lexists(folder):
        with suppress(OSError):
            folder.rename(gone)
        _remove(gone)
        _remove(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _steps_aside(final: Path) -> bool:
    """Whether the folder has stepped aside for one that is whole."""
    return os.path.lexists(_hidden("old", final)) and not os.path.lexists(final)


def flush(folder: Path) -> None:
    """Bring every file of a folder, then the folders themselves, to the disk. Raises: OSError."""
    for path in (*files(folder), *(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(path)


def files(folder: Path) -> list[Path]:
    """All files of a folder and of those in it."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _hidden(kind: str, folder: Path) -> Path:
    return folder.with_name(f".{kind}-{folder.name.removeprefix('.')}")
