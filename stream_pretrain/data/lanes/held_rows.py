"""The rows of a source in a lane, held until they are trained on, so that a step can be dealt again without reading."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.group import Group
from stream_pretrain.data.lanes.source_lane import SourceEnd, SourceLane
from stream_pretrain.errors import StreamPretrainError


@dataclass(frozen=True)
class _Held:
    """A group of `SourceLane`, or its end, which takes the place of a row."""

    item: Group | SourceEnd
    before: Cursor
    """The cursor before it."""
    start: int
    """Rows that the lane has returned before it."""

    @property
    def stop(self) -> int:
        return self.start + (1 if isinstance(self.item, SourceEnd) else len(self.item) - self.item.first)


class HeldRows:
    """The rows of a `SourceLane`, in runs. Those after the last `forget` can be returned again, if they are held."""

    def __init__(self, source: SourceLane, *, hold: bool) -> None:
        self.source = source
        self.hold = hold
        self.position = 0
        """Rows that were returned since the lane was built; an end counts as one."""
        self._held: deque[_Held] = deque()
        self._at = 0  # index in `_held` of the next row
        self._after_held = source.cursor
        self._error: StreamPretrainError | None = None  # raised after the last held row

    @property
    def cursor(self) -> Cursor:
        """The cursor of the lane in the source."""
        if self._at == len(self._held):
            return self._after_held
        held = self._held[self._at]
        if self.position == held.start:
            return held.before
        assert isinstance(held.item, Group)
        return held.item.cursor_after(held.item.first + self.position - held.start)

    @property
    def ended(self) -> bool:
        """Whether all epochs are read."""
        return self._at == len(self._held) and self.source.plan.ended(self._after_held)

    def next_rows(self, most: int) -> tuple[Group | SourceEnd, range]:
        """The next rows of a group, at least one; none at the end of the last epoch, which is met once.

        Raises: as `SourceLane`.
        """
        assert not self.ended
        if self._at == len(self._held):
            self._read()
        held = self._held[self._at]
        if isinstance(held.item, SourceEnd):
            self.position += 1
            self._at += 1
            return held.item, range(0)
        group, first = held.item, held.item.first + self.position - held.start
        which = range(first, min(first + most, len(group)))
        self.position += len(which)
        if which.stop == len(group):
            self._at += 1
            if not self.hold:
                self.forget(self.position)
        return group, which

    def _read(self) -> None:
        if self._error is not None:
            raise self._error
        try:
            item = self.source.next_group()
        except StreamPretrainError as error:
            self._error = error  # raised at once if the lane rewinds and comes here again
            raise
        self._held.append(_Held(item, self._after_held, self.position))
        self._after_held = self.source.cursor

    def rewind(self, position: int) -> None:
        """Return to an earlier position."""
        self.position = position
        while self._at and self._held[self._at - 1].stop > position:
            self._at -= 1
        assert self._at == len(self._held) or self._held[self._at].start <= position

    def forget(self, position: int) -> None:
        """Hold only rows after a position."""
        while self._held and self._held[0].stop <= position:
            self._held.popleft()
            self._at -= 1
        assert self._at >= 0
