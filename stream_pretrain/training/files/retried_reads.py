"""Reads of the files of a run, with retries: a file that cannot be read now is not a damaged file."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator
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


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error of a start that cannot read a file of the run. Nothing is set aside for it."""
    what = "fix its permissions" if error.errno in REFUSED else "check the disk and the machine"
    return CheckpointError(f"{path} cannot be read ({error.strerror}): {what}, then run the same command again")


def read_bytes(path: Path) -> bytes:
    """The content of a file of a run. Raises: FileNotFoundError; CheckpointError where it cannot be read."""
    return patiently(path, path.read_bytes)


def patiently(path: Path, read: Callable[[], T]) -> T:
    """The result of `read`, which reads `path`. Raises: FileNotFoundError; CheckpointError where it cannot be read."""
    try:
        return retried(read)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file of a run. Raises: FileNotFoundError; CheckpointError where it cannot be read."""
    try:
        with retried(lambda: path.open("rb")) as file:
            yield from file
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
