"""Reading what a run keeps: that it cannot be read now says nothing of what is in it."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from stream_pretrain.errors import CheckpointError

PAUSES = (0.1, 0.4, 1.5)
"""Seconds between the attempts: what another process or the network keeps for a moment is there again after that."""
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)
"""What is asked for is missing, or something else is in its place."""
REFUSED = (errno.EACCES, errno.EPERM)
T = TypeVar("T")


def retried(action: Callable[[], T]) -> T:
    """Do something that reads, again for a moment where the machine fails, as with EIO or EMFILE. Raises: OSError."""
    for pause in PAUSES:
        try:
            return action()
        except OSError as error:
            if error.errno in (*NOT_THERE, *REFUSED):
                raise
        time.sleep(pause)
    return action()


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """What a start ends with where a file of a run cannot be read, which is no reason to put anything aside."""
    what = "allow it to be read" if error.errno in REFUSED else "see to the disk or the machine"
    return CheckpointError(f"{path} cannot be read ({error.strerror}): {what}, and start the same command again")


def read_bytes(path: Path) -> bytes:
    """What a file of a run holds. Raises: FileNotFoundError, and CheckpointError where it cannot be read."""
    return patiently(path, path.read_bytes)


def patiently(path: Path, read: Callable[[], T]) -> T:
    """What `read` finds in a file of a run. Raises: FileNotFoundError, and CheckpointError where it cannot be read."""
    try:
        return retried(read)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file of a run. Raises: FileNotFoundError, and CheckpointError where it cannot be read."""
    try:
        with retried(lambda: path.open("rb")) as file:
            yield from file
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def parsed(content: bytes) -> Any:
    """The value that some bytes of JSON stand for. Raises: ValueError, also where they are nested too deep."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
