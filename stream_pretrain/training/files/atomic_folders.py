"""Atomic writes of folders: filled under a hidden name, flushed to the disk, then renamed.

An existing folder is exchanged with the new one in one system call, so that there is a folder at any moment. On file systems
that cannot exchange, the old folder is renamed first, and `repair` completes what a kill interrupts between the two renames.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from stream_pretrain.training.files.atomic_files import sync

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def put_in_place(final: Path, fill: Callable[[Path], None]) -> None:
    """Fill a hidden folder, flush it to the disk and rename it to `final`; on any failure `final` is as before.

    Its parent folder must exist: if somebody removed it, it is not recreated in part.
    Raises: OSError, and what `fill` raises.
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
        with suppress(OSError):  # what cannot be undone is left to `repair`
            for action in reversed(undo):
                action()
        raise
    delete(temporary)
    delete(old)


def repair(final: Path) -> None:
    """Complete a `put_in_place` that was killed: afterwards `final` is the old or the new folder, and no leftovers remain.

    Raises: OSError.
    """
    temporary, old = _hidden("tmp", final), _hidden("old", final)
    if os.path.lexists(old) and not os.path.lexists(final):
        (temporary if os.path.lexists(temporary) else old).rename(final)  # the new one was complete before the old one moved
        sync(final.parent)
    delete(temporary)
    delete(old)


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders atomically; False where the system cannot. Raises: OSError."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # not in this C library
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_SUPPORTED:
        return False
    raise OSError(number, os.strerror(number), os.fspath(other))


def delete(folder: Path) -> Path | None:
    """Delete a folder, or a file or link of that name; returns what is left of it.

    It is renamed first, so that nothing half deleted has its name. What cannot be deleted now (a network file system keeps a
    file that another process has open; it belongs to another user) is deleted with the next folder of this name.
    """
    gone = folder if folder.name.startswith(".gone-") else _hidden("gone", folder)
    _remove(gone)
    if os.path.lexists(folder):
        with suppress(OSError):
            folder.rename(gone)
        _remove(gone)
        _remove(folder)
    return next((path for path in (folder, gone) if os.path.lexists(path)), None)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def flush(folder: Path) -> None:
    """Flush every file of a folder, then the folders themselves, to the disk. Raises: OSError."""
    for path in (*files(folder), *(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(path)


def files(folder: Path) -> list[Path]:
    """All files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _hidden(kind: str, folder: Path) -> Path:
    return folder.with_name(f".{kind}-{folder.name.removeprefix('.')}")
