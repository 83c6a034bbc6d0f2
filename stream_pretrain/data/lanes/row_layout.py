"""How the rows of a run are laid out."""

from __future__ import annotations

from dataclasses import dataclass

from stream_pretrain.data.rows.packing import Packing


@dataclass(frozen=True)
class RowLayout:
    """How the rows of a run are laid out over lanes, steps and positions: fixed at its first start."""

    lanes: int
    global_batch_size: int
    """Rows of a step."""
    sequence_length: int
    """Positions of a row."""
    packing: Packing
    seed: int

    @property
    def rows_per_lane(self) -> int:
        """Rows that every lane gives to a step."""
        return self.global_batch_size // self.lanes
