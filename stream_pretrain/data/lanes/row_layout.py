"""Layout of the rows of a run."""

from __future__ import annotations

from dataclasses import dataclass

from stream_pretrain.data.rows.packing import Packing


@dataclass(frozen=True)
class RowLayout:
    """Layout of the rows of a run over lanes, steps and positions: fixed at its first start."""

    lanes: int
    global_batch_size: int
    """Rows of a step."""
    sequence_length: int
    """Positions of a row."""
    packing: Packing
    seed: int

    @property
    def positions_of_step(self) -> int:
        """Positions of the rows of a full step, padding included."""
        return self.global_batch_size * self.sequence_length

    def micro_batches(self, most_rows: int, world: int) -> tuple[int, int]:
        """Rows of a micro-batch, at most `most_rows`, and micro-batches of a step on each of `world` ranks."""
        rows_of_rank = -(-self.global_batch_size // world)
        size = min(most_rows, rows_of_rank)
        return size, -(-rows_of_rank // size)


def part_of(numbers: range, part: int, parts: int) -> range:
    """One of `parts` parts of neighbouring numbers, whose sizes differ by at most one: the lanes of a rank; the rows of a step
    that a rank trains on."""
    count = len(numbers)
    return numbers[count * part // parts : count * (part + 1) // parts]
