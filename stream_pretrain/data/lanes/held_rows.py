"""The rows of a source in a lane, held until they are trained on, so that a step can be dealt again without reading."""

from __future__ import annotations

from collections import deque

from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.source_lane import SourceEnd, SourceLane, SourceRow
from stream_pretrain.errors import StreamPretrainError


class HeldRows:
    """The rows of a `SourceLane`. Those behind the last `forget` can be given again."""

    def __init__(self, source: SourceLane) -> None:
        self.source = source
        self._held: deque[SourceRow | SourceEnd] = deque()
        self._cursors = deque([source.cursor])  # in front of each that is held, and behind the last
        self._next = 0
        self._error: StreamPretrainError | None = None  # behind the last that is held

    @property
    def cursor(self) -> Cursor:
        """The cursor of the lane in the source."""
        return self._cursors[self._next]

    @property
    def ended(self) -> bool:
        """Whether all epochs are read."""
        return self.source.plan.ended(self.cursor)

    def next_row(self) -> SourceRow | SourceEnd:
        """The next row; at the end of the last epoch, once, what was skipped behind the last row. Raises: as `SourceLane`."""
        assert not self.ended
        if self._next == len(self._held):
            self._held.append(self._read())
            self._cursors.append(self.source.cursor)
        self._next += 1
        return self._held[self._next - 1]

    def _read(self) -> SourceRow | SourceEnd:
        if self._error is not None:
            raise self._error
        try:
            return self.source.next_row()
        except StreamPretrainError as error:
            self._error = error  # not waited for again where the lane returns
            raise

    def rewind(self, cursor: Cursor) -> None:
        """Return to an earlier place."""
        while self.cursor != cursor:
            self._next -= 1
            assert self._next >= 0

    def forget(self, cursor: Cursor) -> None:
        """Hold only rows after a cursor."""
        while self._cursors[0] != cursor:
            self._held.popleft()
            self._cursors.popleft()
            self._next -= 1
            assert self._next >= 0
