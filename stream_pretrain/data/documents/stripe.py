"""The part of a unit that a lane reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stripe:
    """Windows first, first + count, first + 2 count... of a unit; by default, all of them.

    A unit is a shard, or a bundle of small ones, which is always read whole.
    """

    unit: int
    first: int = 0
    count: int = 1
