"""Where the decompression of a shard can start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RestartPoint:
    """Decompression can start at byte `compressed` of the file, which is byte `uncompressed` of its content."""

    compressed: int = 0
    uncompressed: int = 0
