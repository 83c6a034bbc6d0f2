"""OUT/lock: one process owns OUT; its host, pid, token and heartbeat are in the file.

`flock` keeps out other processes of the same machine. For file systems whose locks do not reach other machines there is the
heartbeat: a time in the file, which the owner renews. Host and pid are for messages: those of two containers may be the same.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil

from stream_pretrain.errors import CheckpointError
from stream_pretrain.training.files.atomic_files import writing_out
from stream_pretrain.training.files.out_files import LOCK
from stream_pretrain.training.files.retried_reads import open_regular, parsed, retried, unreadable

HEARTBEAT_SECONDS = 15.0
DEAD_AFTER_SECONDS = 60.0
"""Without a heartbeat for this long, an owner on another machine or in another container is dead."""
LEASE_SECONDS = 120.0
"""How long a file server may keep the lock of a machine that it has lost."""


@dataclass(frozen=True)
class HeldLock:
    """OUT/lock, held by this process."""

    out: Path
    descriptor: int
    token: str
    """Random, and no other owner's."""

    @property
    def why_lost(self) -> str | None:
        """Why this process does not own OUT any more; None where it does."""
        if not is_at(self.out / LOCK, self.descriptor):
            return (
                f"{self.out} or its lock was removed or replaced during the run, which writes nothing more to it: "
                "restore it if you can, then run the same command again"
            )
        try:
            owner = _owner_in(os.pread(self.descriptor, 4096, 0))
        except OSError:  # proves nothing either
            return None
        # Where locks do not reach the other: both began at once, or this one was stopped for longer than DEAD_AFTER_SECONDS.
        if owner is not None and owner.get("token") != self.token:
            return f"{self.out} was taken over by process {owner['pid']} on {owner['host']}: this run writes nothing more to it"
        return None

    def beat(self) -> None:
        """Write this owner and the time into the lock. Raises: OSError."""
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": time.time(),
            "reach": _reach(self.descriptor),
            "token": self.token,
        }
        content = json.dumps(owner).ljust(255).encode() + b"\n"  # of one size, so that no reader sees a mix of two
        if os.pwrite(self.descriptor, content, 0) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def held(out: Path, report: Callable[[str], None]) -> Iterator[HeldLock]:
    """Hold OUT/lock during the block.

    Waits, and reports it: for up to a minute where the heartbeat of another machine or container is recent, for up to two where
    a file server keeps the lock of a process without a heartbeat. When OUT is lost during the block (`HeldLock.why_lost`), this
    process sends itself SIGTERM, which interrupts any wait.
    Raises: CheckpointError when OUT is in use or its lock cannot be written.
    """
    lock = _acquire(out, report)
    released = threading.Event()
    heartbeat = threading.Thread(target=_keep_beating, args=(lock, released, report), name="heartbeat", daemon=True)
    heartbeat.start()
    try:
        yield lock
    finally:
        released.set()
        heartbeat.join()
        try:
            if lock.why_lost is None:
                os.ftruncate(lock.descriptor, 0)
        except OSError as error:  # not raised, to show how the run ended: a start on another machine waits for a minute
            report(f"{out / LOCK} still names this process: {error.strerror}")
        finally:
            os.close(lock.descriptor)


def refuse_in_use(out: Path) -> None:
    """Refuse an OUT whose owner lives, by its heartbeat, without a try to lock it. Raises: CheckpointError."""
    owner = _owner(out)
    if owner is not None and _silence(owner) < DEAD_AFTER_SECONDS:
        # Another container of this machine has process ids of its own.
        here = owner.get("reach") == _reach(out / LOCK) and owner["host"] == socket.gethostname()
        if not here or psutil.pid_exists(owner["pid"]):
            _refuse(out, owner)


def _acquire(out: Path, report: Callable[[str], None]) -> HeldLock:
    """Lock OUT/lock. The system releases the lock when the process ends."""
    with writing_out(out):
        descriptor = _open_lock(out / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        owner = _owner(out)
        enforced = _flock(descriptor, out, owner, report)
        # A lock that was taken proves that an owner within its reach is gone; any other owner may still live.
        if owner is not None and not (enforced and owner.get("reach") == _reach(descriptor)):
            _wait_until_dead(out, owner, report)
        if not is_at(out / LOCK, descriptor):
            raise CheckpointError(f"{out / LOCK} was removed while this process waited for it: run the same command again")
        lock = HeldLock(out, descriptor, secrets.token_hex(8))
        with writing_out(out):
            lock.beat()
    except BaseException:
        os.close(descriptor)
        raise
    return lock


def _open_lock(lock: Path, flags: int) -> int:
    """Raises: OSError; CheckpointError for anything but a file."""
    try:
        return open_regular(lock, flags)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise CheckpointError(f"{lock} is not a regular file: remove it, or give another --output-dir") from error


def is_at(lock: Path, descriptor: int) -> bool:
    """Whether the open file still has this name."""
    try:
        own, found = os.fstat(descriptor), lock.lstat()
    except OSError as error:  # a file server that does not answer proves nothing
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
    return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


def _reach(lock: int | Path) -> str:
    """How far a lock on this file reaches for certain: the kernel of this machine, and the mounted file system in it."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # only Linux has it, and not in every sandbox
        kernel = socket.gethostname()
    return f"{kernel}/{os.stat(lock).st_dev}"


def _flock(descriptor: int, out: Path, owner: dict[str, Any] | None, report: Callable[[str], None]) -> bool:
    """Take the lock; False where the file system has no locks. Raises: CheckpointError when another process has it."""
    deadline: float | None = None
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Held, but without a heartbeat: it may belong to a lost machine, whose lock the file server keeps for a while.
            if owner is None or _silence(owner) < DEAD_AFTER_SECONDS or (deadline is not None and time.monotonic() >= deadline):
                _refuse(out, owner)
            if deadline is None:
                deadline = time.monotonic() + LEASE_SECONDS
                report(
                    f"{out} is locked by process {owner['pid']} on {owner['host']}, whose last heartbeat was "
                    f"{_silence(owner):.0f} s ago: waiting {LEASE_SECONDS:.0f} s for the lock"
                )
            time.sleep(1.0)
            owner = _owner(out)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise CheckpointError(f"{out / LOCK} cannot be locked ({error.strerror}): give another --output-dir") from error
            return False
        else:
            return True


def _silence(owner: dict[str, Any]) -> float:
    """Seconds since the heartbeat of the owner; at least 0, since clocks differ between machines."""
    return max(0.0, time.time() - float(owner["time"]))


def _wait_until_dead(out: Path, owner: dict[str, Any], report: Callable[[str], None]) -> None:
    """Wait until the heartbeat of the last owner is too old. Raises: CheckpointError when there is a new one."""
    silence = _silence(owner)
    if silence >= DEAD_AFTER_SECONDS:
        return
    wait = DEAD_AFTER_SECONDS - silence
    report(f"{out} was in use by process {owner['pid']} on {owner['host']}: waiting {wait:.0f} s for its next heartbeat")
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
    """The process in the lock; None after a clean end."""
    try:  # opened each time: network file systems ask the server when a file is opened
        descriptor = _open_lock(out / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as lock:
        try:
            content = retried(lambda: os.pread(lock.fileno(), 4096, 0))
        except OSError as error:
            raise unreadable(out / LOCK, error) from error
    return _owner_in(content)


def _owner_in(content: bytes) -> dict[str, Any] | None:
    try:
        owner = parsed(content)
    except ValueError:  # empty, or torn by a power loss
        return None
    kinds = {"host": str, "pid": int, "time": float}  # an earlier version wrote no more
    return owner if isinstance(owner, dict) and all(type(owner.get(name)) is kind for name, kind in kinds.items()) else None


def _keep_beating(lock: HeldLock, released: threading.Event, report: Callable[[str], None]) -> None:
    while not released.wait(HEARTBEAT_SECONDS):
        if lock.why_lost is not None:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        try:
            lock.beat()
        except OSError as error:  # the next checkpoint decides whether the disk is usable
            report(f"the heartbeat in {lock.out / LOCK} cannot be written: {error}")
