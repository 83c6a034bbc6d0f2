"""The place of a lane in a source, from which it resumes exactly, and how it advances; within a group, see group.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self


class Cursor(NamedTuple):
    """The place of a lane in a source: its next row, and the counters before it."""

    epoch: int = 0
    stripe: int = 0
    """Index into the stripes of the lane in this epoch."""
    compressed: int = 0
    """Restart point of the window: an offset in the file, and the offset in the content that it decompresses to."""
    uncompressed: int = 0
    window: int = 0
    """Windows of the stripe before this one."""
    next_document: int = 0
    """The group begins with this document of the shuffled window..."""
    piece: int = 0
    """...this piece of it..."""
    token: int = 0
    """...and this token of the piece."""
    taken: int = 0
    """Rows of the group that were returned."""
    rows: int = 0
    """Rows that the lane has returned of the source since the run began."""
    documents: int = 0
    """Documents that began in them."""
    read: int = 0
    """Documents of the windows they come from; includes the next three."""
    skipped: int = 0
    """Bad documents."""
    empty: int = 0
    """Documents without text."""
    filtered: int = 0
    """Documents filtered by length or as duplicates."""
    stripes: int = 0
    """Stripes, and shards of bundles, of which the rest was skipped."""
    finished_bytes: int = 0
    """Bytes of the content of the windows that the lane read to their ends, in all epochs."""
    window_bytes: int = 0
    """Bytes of the content of the current window before the row."""
    credit: int = 0
    """How far the source is behind its share of the rows of the lane (mixture.py)."""

    @property
    def bytes_read(self) -> int:
        """Bytes of the content of the source that the lane has read, in all epochs."""
        return self.finished_bytes + self.window_bytes

    @property
    def is_at_start_of_window(self) -> bool:
        """Whether no row of the window was returned; otherwise its documents are counted already."""
        return self.next_document == self.piece == self.token == self.taken == 0

    def in_next_window(self, finished_bytes: int) -> Self:
        """The start of the next window of the stripe."""
        return self._replace(window=self.window + 1, finished_bytes=finished_bytes, **_START_OF_WINDOW)

    def in_next_stripe(self, finished_bytes: int) -> Self:
        """The start of the next stripe of the epoch."""
        return self._replace(stripe=self.stripe + 1, finished_bytes=finished_bytes, **_START_OF_STRIPE)

    def in_next_epoch(self) -> Self:
        """The start of the next epoch."""
        return self._replace(epoch=self.epoch + 1, stripe=0, **_START_OF_STRIPE)


_START_OF_WINDOW = dict.fromkeys(("next_document", "piece", "token", "taken", "window_bytes"), 0)
_START_OF_STRIPE = {**_START_OF_WINDOW, **dict.fromkeys(("compressed", "uncompressed", "window"), 0)}


@dataclass(frozen=True)
class Skipped:
    """Skipped documents, identified so that they are counted once, even if their window is read again."""

    epoch: int
    shard: int
    offset: int
    """Offset of the first document."""
    reason: str
    documents: int | None = 1
    """Their number; None where it is unknown, as for the rest of most stripes."""
