"""Reads of the files of a run, with retries: a file that cannot be read now is not a damaged file."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from stream_pretrain.errors import CheckpointError

PAUSES = (0.1, 0.4, 1.5)
"""Seconds between the attempts, for faults that pass: another process, a network file system."""
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)
"""The file is missing, or something else has its name."""
REFUSED = (errno.EACCES, errno.EPERM)
T = TypeVar("T")


def retried(action: Callable[[], T]) -> T:
    """Read, and retry for two seconds faults that may pass, such as EIO or EMFILE. Raises: OSError."""
    for pause in PAUSES:
        try:
            return action()
        except OSError as error:
            if error.errno in (*NOT_THERE, *REFUSED):
                raise
        time.sleep(pause)
    return action()


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file; a link is not followed, a pipe is not waited for.

    Raises: OSError, for both with a number of `NOT_THERE`.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, not a file", os.fspath(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENXIO, "it is not a file", os.fspath(path))
    return descriptor


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error of a start that cannot read a file of the run. Nothing is set aside for it."""
    what = "fix its permissions" if error.errno in REFUSED else "check the disk and the machine"
    return CheckpointError(f"{path} cannot be read ({error.strerror}): {what}, then run the same command again")


def read_bytes(path: Path) -> bytes:
    """The content of a file of a run. Raises: FileNotFoundError; CheckpointError where it cannot be read."""
    with _reading(path):
        return retried(path.read_bytes)


def read_object(path: Path, advice: str) -> dict[str, Any] | None:
    """The JSON object in a file of a run; None where there is none. Raises: CheckpointError, with advice for other content."""
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return None
    try:
        return parsed_object(content)
    except ValueError as fault:
        raise CheckpointError(f"{path} is {fault}: {advice}") from fault


def parsed_object(content: bytes) -> dict[str, Any]:
    """The JSON object that is all of a file. Raises: ValueError, which completes "the file is ..."."""
    try:
        value = parsed(content)
    except ValueError as error:
        raise ValueError("not JSON") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file of a run. Raises: FileNotFoundError; CheckpointError where it cannot be read."""
    with _reading(path), retried(lambda: path.open("rb")) as file:
        yield from file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def parsed(content: bytes) -> Any:
    """A value from JSON. Raises: ValueError, also for JSON nested too deep for the parser."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
