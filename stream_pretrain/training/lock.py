"""OUT/lock: one process owns OUT, names itself in the lock, and beats as long as it lives.

The lock of the file system keeps the other processes of the machine out. Between machines that a shared file system does not
lock for, the beat tells whether the owner lives: the time in the lock, which the owner renews.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from stream_pretrain.errors import CheckpointError
from stream_pretrain.training.atomic_files import writing
from stream_pretrain.training.out_files import LOCK
from stream_pretrain.training.retried_reads import parsed, retried, unreadable

BEAT_SECONDS = 15.0
SILENT_SECONDS = 60.0
"""An owner on another machine that has not been heard of for so long is no more."""
LEASE_SECONDS = 120.0
"""So long a file server may keep the lock of a machine that it has lost."""


@contextmanager
def held(out: Path, report: Callable[[str], None]) -> Iterator[int]:
    """Hold OUT/lock until the end of the block; gives its open descriptor.

    Waits up to a minute, and says so, when a process on another machine was heard of lately. Where OUT or its lock is removed
    in the block, this process gets a SIGTERM, so that no wait keeps it from finding out.
    Raises: CheckpointError when OUT is in use or its lock cannot be written.
    """
    descriptor = _taken(out, report)
    released = threading.Event()
    beat = threading.Thread(target=_beat, args=(descriptor, out, released, report), name="heartbeat", daemon=True)
    beat.start()
    try:
        yield descriptor
    finally:
        released.set()
        beat.join()
        try:
            os.ftruncate(descriptor, 0)
        except OSError as error:  # must not hide how the run ended: who starts it elsewhere waits for a minute
            report(f"{out / LOCK} still names this process: {error.strerror}")
        finally:
            os.close(descriptor)


def _taken(out: Path, report: Callable[[str], None]) -> int:
    """Take OUT/lock; returns its open descriptor, whose end, however it comes, frees the lock."""
    with writing(f"--output-dir {out}", "give another folder"):
        descriptor = _open_lock(out / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        owner = _owner(out)
        enforced = _flock(descriptor, out, owner, report)
        if owner is not None and not (enforced and owner["host"] == socket.gethostname()):
            _outlast(out, owner, report)
        if not is_at(out / LOCK, descriptor):
            raise CheckpointError(f"{out / 'lock'} was removed while this process waited for it: start the same command again")
        with writing(f"--output-dir {out}", "give another folder"):
            _say_who_owns(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open_lock(lock: Path, flags: int) -> int:
    """Neither follows a link, which may lead to any file, nor waits for the other end of a pipe. Raises: CheckpointError."""
    descriptor: int | None = None
    try:
        descriptor = os.open(lock, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        is_file = False
    if descriptor is None or not is_file:
        if descriptor is not None:
            os.close(descriptor)
        raise CheckpointError(f"{lock} is not a file, or a link to one: remove it, or give another --output-dir")
    return descriptor


def is_at(lock: Path, descriptor: int) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        own, found = os.fstat(descriptor), lock.lstat()
    except OSError as error:  # a file server that does not answer says nothing
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
    return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


def _flock(descriptor: int, out: Path, owner: dict[str, Any] | None, report: Callable[[str], None]) -> bool:
    """Take the lock; False where the file system has none. Raises: CheckpointError when it is held."""
    deadline: float | None = None
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Held, but by one that does not beat: perhaps a machine that was lost, whose locks the server still keeps.
            if owner is None or _silence(owner) < SILENT_SECONDS or (deadline is not None and time.monotonic() >= deadline):
                _refuse(out, owner)
            if deadline is None:
                deadline = time.monotonic() + LEASE_SECONDS
                report(
                    f"{out} is locked by process {owner['pid']} on {owner['host']}, which was last heard of "
                    f"{_silence(owner):.0f} s ago: waiting {LEASE_SECONDS:.0f} s for the lock"
                )
            time.sleep(1.0)
            owner = _owner(out)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise CheckpointError(
                    f"{out / 'lock'} cannot be locked ({error.strerror}): give another --output-dir"
                ) from error
            return False
        else:
            return True


def _silence(owner: dict[str, Any]) -> float:
    """Seconds since the owner was heard of; not below 0 where the clocks of the machines differ."""
    return max(0.0, time.time() - float(owner["time"]))


def _outlast(out: Path, owner: dict[str, Any], report: Callable[[str], None]) -> None:
    """Wait until the last owner is known to be gone. Raises: CheckpointError when it shows a sign of life."""
    silence = _silence(owner)
    if silence >= SILENT_SECONDS:
        return
    wait = SILENT_SECONDS - silence
    report(f"{out} was used by process {owner['pid']} on {owner['host']}: waiting {wait:.0f} s to see whether it still is")
    end = time.monotonic() + wait
    while time.monotonic() < end:
        time.sleep(1.0)
        now = _owner(out)
        if now is None:
            return
        if now != owner:
            _refuse(out, now)


def _refuse(out: Path, owner: dict[str, Any] | None) -> NoReturn:
    who = "another process" if owner is None else f"process {owner['pid']} on {owner['host']}"
    raise CheckpointError(f"{out} is in use by {who}: wait for it to end, or give another --output-dir")


def _owner(out: Path) -> dict[str, Any] | None:
    """Who wrote itself into the lock last, if it did not take itself out again."""
    try:  # opened anew each time: that is when network file systems look at the server
        descriptor = _open_lock(out / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as lock:
        try:
            content = retried(lambda: os.pread(lock.fileno(), 4096, 0))
        except OSError as error:
            raise unreadable(out / LOCK, error) from error
    try:
        owner = parsed(content)
    except ValueError:  # empty, or from a machine that lost power
        return None
    kinds = {"host": str, "pid": int, "time": float}
    is_owner = isinstance(owner, dict) and {name: type(value) for name, value in owner.items()} == kinds
    return owner if is_owner else None


def _say_who_owns(descriptor: int) -> None:
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    content = json.dumps(owner).ljust(255).encode() + b"\n"  # one size, so that no reader sees two mixed
    if os.pwrite(descriptor, content, 0) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _beat(descriptor: int, out: Path, released: threading.Event, report: Callable[[str], None]) -> None:
    while not released.wait(BEAT_SECONDS):
        if not is_at(out / LOCK, descriptor):
            os.kill(os.getpid(), signal.SIGTERM)
            return
        try:
            _say_who_owns(descriptor)
        except OSError as error:  # saving the next checkpoint is what decides whether the run can go on
            report(f"the lock of the run cannot be refreshed: {error}")
