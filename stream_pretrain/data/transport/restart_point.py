"""Where the decompression of a shard can start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RestartPoint:
    """Decompression can start at byte `compressed` of the file, where byte `uncompressed` of its content comes from."""

    compressed: int = 0
    uncompressed: int = 0
