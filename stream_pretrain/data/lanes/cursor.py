"""Where a lane stands in a source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Cursor(NamedTuple):
    """Where a lane stands in a source: the row that comes next, and what was counted before it."""

    epoch: int = 0
    stripe: int = 0
    """Index into the lane's stripes of this epoch."""
    compressed: int = 0
    """Restart point from which the window can be read: a byte of the file, and the byte of its content that it is."""
    uncompressed: int = 0
    window: int = 0
    """Windows of the stripe that came before."""
    next_document: int = 0
    """The group begins with this document of the shuffled window..."""
    piece: int = 0
    """...this piece of it..."""
    token: int = 0
    """...and this token of the piece."""
    taken: int = 0
    """Rows of the group that were given out."""
    rows: int = 0
    """Rows the lane has given out of the source since the run began."""
    documents: int = 0
    """Documents that began in them."""
    read: int = 0
    """Documents of the windows they come from, whatever became of them: what the next three are shares of."""
    skipped: int = 0
    """Documents that had to be skipped."""
    empty: int = 0
    """Documents without text."""
    filtered: int = 0
    """Documents left out by their length or as copies."""
    stripes: int = 0
    """Stripes whose rest had to be skipped, however much that was."""
    finished_bytes: int = 0
    """Stored bytes of the stripes that the lane has read to their ends, in all epochs."""
    stripe_bytes: int = 0
    """Stored bytes of the stripe that lie before the row."""
    credit: int = 0
    """How far the source is behind its share of the lane's rows (mixture.py)."""

    @property
    def bytes_read(self) -> int:
        """Stored bytes that the lane has read of the source, in all epochs."""
        return self.finished_bytes + self.stripe_bytes


@dataclass(frozen=True)
class Skipped:
    """What no row is made of, named so that it is counted once however often its window is read."""

    epoch: int
    shard: int
    offset: int
    """Of the first of the documents."""
    reason: str
    documents: int | None = 1
    """How many; None for the rest of a stripe, where its shard does not tell."""
