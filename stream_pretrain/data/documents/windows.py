"""A shard cut into windows, in forward passes that the lanes of a process share.

What a window is depends on the format: line_windows.py, paragraph_and_file_windows.py, parquet.py. `block` is the number of a
window in its shard, from 0. A window depends on the shard and its number alone: not on who reads it, from where, or what was
read before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.errors import ContentError

W = TypeVar("W")

W_co = TypeVar("W_co", covariant=True)


class Pass(Protocol[W_co]):
    """The windows of a shard, read forward once."""

    stripe: Stripe
    """The stripe that it was opened for."""
    block: int
    """The first block that can still be read."""

    @property
    def blocks(self) -> int:
        """Number of windows of the shard; known once read() has reached its end."""

    def read(self, block: int) -> W_co | None:
        """A window, `block >= self.block`; None where the shard ends before it. Raises as ShardBytes or ShardFile does."""

    def close(self) -> None: ...


class Windows(ABC, Generic[W]):
    """The windows of one shard, for every lane of this process that reads a stripe of it. Used by one thread.

    A shard that is not seekable to every window is `shared`: read once for all lanes. A window that a pass reads on its way to
    that of another lane is kept for its lane, at most `most_kept` for each; a lane too far behind or ahead for that gets its
    own pass, from its own restart point. Otherwise each stripe has its own pass.

    A stripe is read in order, from the block that follow() names. Invariants: there are no more passes than followed stripes,
    and no window in `kept` lies before `next_of` its stripe.
    """

    def __init__(self, *, shared: bool, most_kept: int) -> None:
        self.shared = shared
        self.most_kept = most_kept
        self.next_of: dict[Stripe, int] = {}
        self.kept: dict[int, W] = {}
        self.passes: list[Pass[W]] = []
        self.blocks: int | None = None  # of the shard, once a pass has reached its end

    @abstractmethod
    def open_pass(self, stripe: Stripe, block: int, restart: RestartPoint) -> Pass[W]:
        """A pass with `block` next, from the restart point of this block or of one before it."""

    @abstractmethod
    def passes_block(self, passed: int, block: int, restart: RestartPoint) -> bool:
        """Whether a new pass from `restart` to `block` reads the block `passed` on its way."""

    def follow(self, stripe: Stripe, block: int) -> None:
        """Register a lane that will read this stripe from this block on."""
        self.next_of[stripe] = block

    def leave(self, stripe: Stripe) -> bool:
        """Deregister the lane of a stripe; true where no lane of the process reads the shard any more."""
        del self.next_of[stripe]
        self.kept = {block: window for block, window in self.kept.items() if not stripe.has(block)}
        while len(self.passes) > len(self.next_of):
            self.passes.pop(0).close()
        return not self.next_of

    def read(self, stripe: Stripe, block: int, restart: RestartPoint) -> W | None:
        """The window of a block of the stripe; None where the shard ends before it.

        restart: that of this window or of an earlier one.
        Raises: ContentError for damage on the way: the pass is closed, and other lanes find the damage for themselves;
        TransportError, SourceError.
        """
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
        except ContentError:  # in the window of another lane, which finds it for itself; a seek table may lead around it
            self._close_pass(reading)
            reading = self.open_pass(stripe, block, restart)
            self.passes.append(reading)
        try:
            window = reading.read(block)
        except ContentError:  # nothing after the damage is read; other lanes find it for themselves
            self._close_pass(reading)
            raise
        if window is None:
            self.blocks = reading.blocks
        return window

    def _close_pass(self, reading: Pass[W]) -> None:
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
            if self.shared:  # the lanes start at different blocks: the pass starts at the first that any of them needs
                awaited = (b for b in self.next_of.values() if b not in self.kept and b < block)
                earliest = min((b for b in awaited if self.passes_block(b, block, restart)), default=block)
            reading = self.open_pass(stripe, earliest, restart)
        self.passes.append(reading)  # the least recently used pass comes first
        return reading

    def _keeps(self, block: int, reader: Stripe) -> bool:
        """Whether the pass that reads for `reader` keeps the window of a block on its way."""
        for stripe, next_block in self.next_of.items():
            if stripe != reader and stripe.has(block) and block >= next_block:
                kept = [b for b in self.kept if stripe.has(b)]
                return block not in kept and len(kept) < self.most_kept
        return False
