"""The part of a shard that a lane reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stripe:
    """Windows first, first + count, first + 2 count... of a shard; by default, all of them."""

    shard: int
    first: int = 0
    count: int = 1
