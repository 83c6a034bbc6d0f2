"""The rows of a source in a lane, held until they are trained on, so that a step can be dealt again without reading."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from stream_pretrain.data.lanes.cursor import Cursor, Skipped
from stream_pretrain.data.lanes.group import Group
from stream_pretrain.data.lanes.source_lane import SourceEnd, SourceLane
from stream_pretrain.errors import StreamPretrainError


class RowsOfGroup(NamedTuple):
    """Neighbouring rows of a group, and what was skipped on the way to them."""

    group: Group
    which: range
    skipped: list[Skipped]


@dataclass(frozen=True)
class _Held:
    """What `SourceLane` gave: a group, or the end, which has the place of a row."""

    given: Group | SourceEnd
    front: Cursor
    """In front of it."""
    start: int
    """Rows that the lane has given before it."""

    @property
    def stop(self) -> int:
        return self.start + (1 if isinstance(self.given, SourceEnd) else len(self.given) - self.given.first)


class HeldRows:
    """The rows of a `SourceLane`, in runs. Those behind the last `forget` can be given again, if they are held."""

    def __init__(self, source: SourceLane, *, hold: bool) -> None:
        self.source = source
        self.hold = hold
        self.position = 0
        """Rows that were given since the lane was built, an end counted as one."""
        self._held: deque[_Held] = deque()
        self._at = 0  # among what is held: what the next row is of
        self._behind = source.cursor  # all that is held
        self._error: StreamPretrainError | None = None  # behind all that is held

    @property
    def cursor(self) -> Cursor:
        """The cursor of the lane in the source."""
        if self._at == len(self._held):
            return self._behind
        held = self._held[self._at]
        if self.position == held.start:
            return held.front
        assert isinstance(held.given, Group)
        return held.given.cursor_behind(held.given.first + self.position - held.start)

    @property
    def ended(self) -> bool:
        """Whether all epochs are read."""
        return self._at == len(self._held) and self.source.plan.ended(self._behind)

    def next_rows(self, most: int) -> RowsOfGroup | SourceEnd:
        """The next rows, one or more; at the end of the last epoch, once, what was skipped behind the last row.

        Raises: as `SourceLane`.
        """
        assert not self.ended
        if self._at == len(self._held):
            self._read()
        held = self._held[self._at]
        if isinstance(held.given, SourceEnd):
            self.position += 1
            self._at += 1
            return held.given
        group, first = held.given, held.given.first + self.position - held.start
        which = range(first, min(first + most, len(group)))
        self.position += len(which)
        if which.stop == len(group):
            self._at += 1
            if not self.hold:
                self.forget(self.position)
        return RowsOfGroup(group, which, group.skipped if first == group.first else [])

    def _read(self) -> None:
        if self._error is not None:
            raise self._error
        try:
            given = self.source.next_group()
        except StreamPretrainError as error:
            self._error = error  # not waited for again where the lane returns
            raise
        self._held.append(_Held(given, self._behind, self.position))
        self._behind = self.source.cursor

    def rewind(self, position: int) -> None:
        """Return to an earlier place."""
        self.position = position
        while self._at and self._held[self._at - 1].stop > position:
            self._at -= 1
        assert self._at == len(self._held) or self._held[self._at].start <= position

    def forget(self, position: int) -> None:
        """Hold only rows behind a place."""
        while self._held and self._held[0].stop <= position:
            self._held.popleft()
            self._at -= 1
        assert self._at >= 0
