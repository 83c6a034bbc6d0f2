"""The part of a unit that a lane reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stripe:
    """Windows first, first + count, first + 2 count... of a unit; by default, all of them.

    A unit is a shard, or a bundle of small ones, which is always read completely.
    """

    unit: int
    first: int = 0
    count: int = 1

    def block(self, window: int) -> int:
        """The number in the unit of a window of the stripe."""
        return self.first + window * self.count

    def has(self, block: int) -> bool:
        """Whether a window of the unit belongs to the stripe."""
        return block % self.count == self.first
