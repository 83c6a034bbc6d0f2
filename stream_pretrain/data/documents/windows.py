"""A shard's bytes cut into windows of whole lines, in one forward pass shared by the lanes of a process.

Window b is the lines that start in [b x window_bytes, (b + 1) x window_bytes) of the uncompressed shard. It depends on
no other window: reading begins one byte early, to see whether a line starts at the block's first byte, and goes on to
the end of the last line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.shard import ShardBytes
from stream_pretrain.errors import ContentError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""UTF-8's, in front of the first line, which begins behind it."""


@dataclass(frozen=True)
class Window:
    """The lines of one block, as bytes."""

    offset: int
    """Uncompressed offset of the first line."""
    lines: bytes
    restart: RestartPoint
    """Where decompression can start to read this window again."""
    overlong: int | None = None
    """Uncompressed offset of a last line that was longer than allowed and is not in `lines`."""


W = TypeVar("W")

W_co = TypeVar("W_co", covariant=True)


class Pass(Protocol[W_co]):
    """Windows of a shard, read forward."""

    stripe: Stripe
    """Whose lane opened it."""
    block: int
    """The next block that can be read."""

    @property
    def blocks(self) -> int:
        """How many the shard has; to be asked where its end was met."""

    def read(self, block: int) -> W_co | None:
        """The window of a block that does not lie before `self.block`; None when the shard ends before it."""

    def close(self) -> None: ...


class Windows(ABC, Generic[W]):
    """The windows of one shard, for every lane of this process that reads a stripe of it.

    A shard that cannot be entered at every window is read once for all of them: a window that the pass meets on its way
    to another lane's is kept for its lane, at most `KEPT` for each. A lane too far behind or ahead for that gets a pass
    of its own, from its own restart point. Where every window can be entered, each stripe has its own pass.
    """

    KEPT = 2

    def __init__(self, *, shared: bool) -> None:
        self.shared = shared
        self.next_of: dict[Stripe, int] = {}
        self.kept: dict[int, W] = {}
        self.passes: list[Pass[W]] = []
        self.blocks: int | None = None  # of the shard, once a pass has met its end

    @abstractmethod
    def open_pass(self, stripe: Stripe, block: int, restart: RestartPoint) -> Pass[W]:
        """A pass whose next block is this one, from the restart point of a block that is not before it."""

    @abstractmethod
    def comes_by(self, passed: int, block: int, restart: RestartPoint) -> bool:
        """Whether a new pass has to read a block on its way to another one."""

    def follow(self, stripe: Stripe, block: int) -> None:
        """Say that a lane will read this stripe from this block on."""
        self.next_of[stripe] = block

    def leave(self, stripe: Stripe) -> bool:
        """Say that a lane is done with a stripe; true when no lane of the process reads the shard any more."""
        del self.next_of[stripe]
        self.kept = {block: window for block, window in self.kept.items() if block % stripe.count != stripe.first}
        while len(self.passes) > len(self.next_of):
            self.passes.pop(0).close()
        return not self.next_of

    def read(self, stripe: Stripe, block: int, restart: RestartPoint) -> W | None:
        """The window of a block of the stripe, or None when the shard ends before it."""
        window = self.kept.pop(block, None)
        if window is None and (self.blocks is None or block < self.blocks):
            window = self._advance(stripe, block, restart)
        self.next_of[stripe] = block + stripe.count
        return window

    def _advance(self, stripe: Stripe, block: int, restart: RestartPoint) -> W | None:
        reading = self._pass_for(stripe, block, restart)
        try:
            for passed in range(reading.block, block):
                if self.shared and self._keeps(passed, stripe):
                    window = reading.read(passed)
                    if window is None:
                        break
                    self.kept[passed] = window
        except ContentError:  # in the window of another lane, which meets it by itself; perhaps there is a way around it
            self._give_up(reading)
            reading = self.open_pass(stripe, block, restart)
            self.passes.append(reading)
        try:
            window = reading.read(block)
        except ContentError:  # what lies behind the damage is no lane's any more; another lane finds it by itself
            self._give_up(reading)
            raise
        if window is None:
            self.blocks = reading.blocks
        return window

    def _give_up(self, reading: Pass[W]) -> None:
        self.passes.remove(reading)
        reading.close()

    def _pass_for(self, stripe: Stripe, block: int, restart: RestartPoint) -> Pass[W]:
        usable = [p for p in self.passes if p.block <= block and (self.shared or p.stripe == stripe)]
        if usable:
            reading = max(usable, key=lambda p: p.block)
            self.passes.remove(reading)
        else:
            if len(self.passes) >= max(1, len(self.next_of)):
                self.passes.pop(0).close()
            earliest = block
            if self.shared:  # the lanes begin at different blocks: the pass begins at the first that any of them needs
                awaited = (b for b in self.next_of.values() if b not in self.kept and b < block)
                earliest = min((b for b in awaited if self.comes_by(b, block, restart)), default=block)
            reading = self.open_pass(stripe, earliest, restart)
        self.passes.append(reading)  # the least recently used one comes first
        return reading

    def _keeps(self, block: int, reader: Stripe) -> bool:
        """Whether the pass that `reader` moves on keeps the window of a block it goes over."""
        for stripe, next_block in self.next_of.items():
            if stripe != reader and block % stripe.count == stripe.first and block >= next_block:
                kept = [b for b in self.kept if b % stripe.count == stripe.first]
                return block not in kept and len(kept) < self.KEPT
        return False


class LineWindows(Windows[Window]):
    """The windows of a shard of lines. A compressed one is decompressed once for all; a plain one is free to seek in."""

    def __init__(
        self, open_bytes: Callable[[RestartPoint], ShardBytes], *, compressed: bool, window_bytes: int, max_line_bytes: int
    ) -> None:
        super().__init__(shared=compressed)
        self.open_bytes = open_bytes
        self.window_bytes = window_bytes
        self.max_line_bytes = max_line_bytes

    def open_pass(self, stripe: Stripe, block: int, restart: RestartPoint) -> LinePass:
        return LinePass(self, self.open_bytes(restart), stripe, block)

    def comes_by(self, passed: int, block: int, restart: RestartPoint) -> bool:  # noqa: ARG002
        return _begin(passed, self.window_bytes) >= restart.uncompressed


def _begin(block: int, window_bytes: int) -> int:
    """The byte that reading a block begins with: the one before it, which says whether a line starts at its first."""
    return max(block * window_bytes - 1, 0)


class LinePass:
    """One forward reading of a shard."""

    def __init__(self, windows: LineWindows, stream: ShardBytes, stripe: Stripe, block: int) -> None:
        self.stream = stream
        self.stripe = stripe
        self.block = block  # the next block that can be read
        self.window_bytes = windows.window_bytes
        self.max_line_bytes = windows.max_line_bytes
        self.compressed = windows.shared
        self.buffer = bytearray()
        self.start = stream.position  # uncompressed offset of buffer[0]
        self.ended = False
        self.chunks: deque[tuple[int, RestartPoint]] = deque()

    @property
    def blocks(self) -> int:
        return -(-self.stream.position // self.window_bytes)

    def close(self) -> None:
        self.stream.close()

    def read(self, block: int) -> Window | None:
        """The window of `block`, which must not lie before `self.block`; None when the shard ends before it."""
        window = self._read(block)
        if window is not None and not self.compressed:
            following = _begin(block + self.stripe.count, self.window_bytes)
            if following > self.start + len(self.buffer):
                self.stream.expect(following)
        return window

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
        """The window whose block ends at `end`, and whose first line starts at `line`."""
        stop, overlong = self._end_of_last_line(line, end)
        lines = bytes(memoryview(self.buffer)[line - self.start : stop - self.start])
        return Window(line, lines, restart, overlong)

    def _end_of_last_line(self, line: int, end: int) -> tuple[int, int | None]:
        """Where the lines that start in [line, end) stop; a last one longer than allowed is left out, its offset named."""
        searched = end - 1 - self.start
        last = self.buffer.rfind(b"\n", line - self.start, searched) + 1 or line - self.start
        while (found := self.buffer.find(b"\n", searched)) < 0 and len(self.buffer) - last <= self.max_line_bytes:
            searched = max(searched, len(self.buffer))
            if not self._fill():
                return self.start + len(self.buffer), None
        if found < 0 or found - last > self.max_line_bytes:
            # Not held until its end is met: the next windows, in which no line starts, read past it.
            return self.start + last, self.start + last
        return self.start + found + 1, None

    def _drop_before(self, offset: int) -> None:
        """Forget bytes before an offset, or move the stream there when they were not read yet."""
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
        """RestartPoint point of the byte at an offset that lies in the buffer; in a plain shard, that byte itself."""
        if not self.compressed:
            return RestartPoint(offset, offset)
        found = self.chunks[0]
        for chunk in self.chunks:
            if chunk[0] > offset:
                break
            found = chunk
        return found[1]

    def _has(self, offset: int) -> bool:
        """Whether the shard has a byte at an offset; reads on until it is in the buffer."""
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
