"""The lines of a shard, in windows.

Window b is the lines that start in [b x window_bytes, (b + 1) x window_bytes). Reading it starts one byte early, to see whether
a line starts at the first byte of that range, and ends with the last line. Offsets and sizes are bytes of the uncompressed
shard. A line ends at LF, which belongs to it but does not count towards `max_line_bytes`.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.documents.windows import Windows
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.units import KIB

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Of UTF-8, in front of the first line."""

SPARE_BYTES = 512 * KIB
"""Unused memory that a buffer may keep, so that it is not copied at every window."""


@dataclass(frozen=True)
class Window:
    """The lines that start in one block, as bytes."""

    offset: int
    """Of the first line."""
    lines: bytes
    restart: RestartPoint
    """Where reading this window again can start."""
    overlong: int | None = None
    """Offset of a last line that is too long, and not in `lines`."""
    stored: tuple[int, int] = field(default=(0, 0), compare=False)
    """Stored bytes of the shard before the block and up to its end."""


def _begin(block: int, window_bytes: int) -> int:
    """Where reading a block starts: at the byte before it, which shows whether a line starts at its first byte."""
    return max(block * window_bytes - 1, 0)


class LinePass:
    """One forward pass over a shard of lines. Used by one thread.

    Invariants: `buffer` holds the bytes [start, start + len(buffer)) and ends at the position of the stream; `chunks` holds the
    offset and restart point of each chunk that a byte of it came from, in order. At most a window, a line as long as allowed
    and a chunk are held.
    """

    def __init__(self, windows: LineWindows, stream: ShardBytes, stripe: Stripe, block: int) -> None:
        self.stream = stream
        self.stripe = stripe
        self.block = block
        self.window_bytes = windows.window_bytes
        self.max_line_bytes = windows.max_line_bytes
        self.compressed = windows.shared
        self.buffer = bytearray()
        self.start = stream.position
        self.ended = False
        self.chunks: deque[tuple[int, RestartPoint]] = deque()

    @property
    def blocks(self) -> int:
        return -(-self.stream.position // self.window_bytes)

    def close(self) -> None:
        self.stream.close()

    def read(self, block: int) -> Window | None:
        window = self._read(block)
        if window is None:
            return None
        if not self.compressed:
            following = _begin(block + self.stripe.count, self.window_bytes)
            if following > self.start + len(self.buffer):
                self.stream.prefetch(following)
        begin, end = block * self.window_bytes, (block + 1) * self.window_bytes
        self._drop_before(min(_begin(block + 1, self.window_bytes), self.start + len(self.buffer)))
        if sys.getsizeof(self.buffer) - len(self.buffer) > SPARE_BYTES:  # a bytearray keeps the memory of dropped bytes
            self.buffer = bytearray(self.buffer)
        return replace(window, stored=(self.stream.stored_bytes_before(begin), self.stream.stored_bytes_before(end - 1)))

    def _read(self, block: int) -> Window | None:
        assert block >= self.block
        self.block = block + 1
        begin, end = _begin(block, self.window_bytes), (block + 1) * self.window_bytes
        self._drop_before(begin)
        if not self._has(block * self.window_bytes):
            return None
        restart = self._restart_of(begin)
        self._has(end - 2)  # the last byte that can be the newline before a line of this window
        newline = self.buffer.find(b"\n", 0, end - 1 - begin)
        line = begin + newline + 1 if block else self._first_line()
        if (block and newline < 0) or not self._has(line):
            return Window(end, b"", restart)
        return self._window_of(block, line, end, restart)

    def _first_line(self) -> int:
        """Where the first line of the shard starts, which `buffer` begins with."""
        mark = len(BYTE_ORDER_MARK)
        return mark if self._has(mark - 1) and self.buffer.startswith(BYTE_ORDER_MARK) else 0

    def _window_of(self, block: int, line: int, end: int, restart: RestartPoint) -> Window:  # noqa: ARG002 (for other units)
        """The window of the lines from the one at `line` to the last that starts before `end`."""
        stop, overlong = self._end_of_last_line(line, end)
        lines = bytes(memoryview(self.buffer)[line - self.start : stop - self.start])
        return Window(line, lines, restart, overlong)

    def _end_of_last_line(self, line: int, end: int) -> tuple[int, int | None]:
        """Where the lines that start in [line, end) stop, and the offset of a last one that is too long, and left out."""
        searched = end - 1 - self.start
        last = self.buffer.rfind(b"\n", line - self.start, searched) + 1 or line - self.start
        while (found := self.buffer.find(b"\n", searched)) < 0 and len(self.buffer) - last <= self.max_line_bytes:
            searched = max(searched, len(self.buffer))
            if not self._fill():
                return self.start + len(self.buffer), None
        if found < 0 or found - last > self.max_line_bytes:
            # It is not buffered to its end: the next windows, in which no line starts, skip it.
            return self.start + last, self.start + last
        return self.start + found + 1, None

    def _drop_before(self, offset: int) -> None:
        """Drop the bytes before an offset, without reading those that are not in the buffer yet."""
        if offset > self.start + len(self.buffer):
            self.stream.skip_to(offset)
            self.buffer.clear()
            self.start = offset
        elif offset > self.start:
            del self.buffer[: offset - self.start]
            self.start = offset
        while len(self.chunks) > 1 and self.chunks[1][0] <= offset:
            self.chunks.popleft()

    def _restart_of(self, offset: int) -> RestartPoint:
        """Restart point of a byte in the buffer; in a plain shard, that byte itself."""
        if not self.compressed:
            return RestartPoint(offset, offset)
        return next(restart for begin, restart in reversed(self.chunks) if begin <= offset)

    def _has(self, offset: int) -> bool:
        """Whether the shard has a byte at an offset; if so, it is in the buffer."""
        while self.start + len(self.buffer) <= offset:
            if not self._fill():
                return False
        return True

    def _fill(self) -> bool:
        if self.ended:
            return False
        data = self.stream.read()
        if not data:
            self.ended = True
            return False
        self.chunks.append((self.start + len(self.buffer), self.stream.restart))
        self.buffer += data
        return True


class LineWindows(Windows[Window]):
    """The windows of a shard of lines. A compressed shard is decompressed once for all lanes; a plain one is seekable."""

    def __init__(
        self,
        open_bytes: Callable[[RestartPoint], ShardBytes],
        pass_over: type[LinePass] = LinePass,
        *,
        compressed: bool,
        window_bytes: int,
        max_line_bytes: int,
        most_kept: int = 2,
    ) -> None:
        super().__init__(shared=compressed, most_kept=most_kept)
        self.open_bytes = open_bytes
        self.pass_over = pass_over
        self.window_bytes = window_bytes
        self.max_line_bytes = max_line_bytes

    def open_pass(self, stripe: Stripe, block: int, restart: RestartPoint) -> LinePass:
        return self.pass_over(self, self.open_bytes(restart), stripe, block)

    def passes_block(self, passed: int, block: int, restart: RestartPoint) -> bool:  # noqa: ARG002
        return _begin(passed, self.window_bytes) >= restart.uncompressed
