"""The interface of a store: one file, by ranges of its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Store(Protocol):
    """One file as it is stored. Offsets are stored bytes. Used by one thread at a time; opened by the first read."""

    total: int | None
    """Size of the file, once a response has it."""
    seekable: bool
    """Whether skipping costs less than reading the bytes between."""

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop) as they arrive, fewer only at the end of the file; b"" as a sign of life while others arrive.

        Raises: what its library raises, TransientError for other faults that may pass, TransportError and SourceError for
        those that do not.
        """

    def duplicate(self) -> Store:
        """The same file, and what is known of it, with a connection of its own: for another thread."""

    def reset(self) -> None:
        """Open the file anew at the next read, over a new connection; libraries under fsspec have pools of their own."""

    def close(self) -> None: ...
