"""How many rows a lane tokenizes, packs and masks together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from stream_pretrain.data.lanes.mixture import Shares
from stream_pretrain.data.lanes.row_layout import RowLayout

GROUP_POSITIONS = 65_536
"""Positions of a full group: its fixed cost is small compared with its rows."""

POSITIONS_OF_ALL_LANES = 1 << 20
"""Positions of one full group of every lane, at most: a resume tokenizes them again."""

FEWEST_ROWS = 16
"""Rows of the smallest full group, and of the first groups, which are small so that the first batch comes early."""

MOST_ROWS = 128


def full_group_rows(sequence_length: int, lanes: int, share: float) -> int:
    """Rows of a full group of a source with this share of the rows."""
    positions = min(GROUP_POSITIONS * share, POSITIONS_OF_ALL_LANES / lanes)
    return min(max(FEWEST_ROWS, int(positions) // sequence_length), MOST_ROWS)


def first_step_rows(first: Shares, layout: RowLayout) -> list[int]:
    """The most rows that a lane contributes of each source to the first step."""
    of_all = layout.lanes * sum(first.parts)
    return [math.ceil(Fraction(layout.global_batch_size * part, of_all)) for part in first.parts]


@dataclass(frozen=True)
class GroupSizes:
    """Rows of the groups of a source: a function of the rows that the lane has returned of it before."""

    full: int
    """Rows of a full group."""
    first_step: int
    """Rows that a lane contributes of the source to the first step; no group extends beyond them."""
    lanes: int

    def after(self, rows: int, lane: int) -> int:
        """Rows of the group that a lane begins after `rows` rows; fewer where the window ends before.

        Groups grow: 16, 32, 64 rows. The first full group ends earlier in each lane than in the next, so that lanes refill in
        different steps. With eight lanes, full groups of 128 rows and 32 rows of each lane in the first step:

            lane 0    16  16  32  64    128   128 ...
            lane 3    16  16  32  64     48   128 ...
            lane 7    16  16  32  64    112   128 ...
        """
        grown = min(FEWEST_ROWS << (rows // FEWEST_ROWS + 1).bit_length() - 1, self.full)
        if rows < self.first_step:
            return min(grown, self.first_step - rows)
        if grown < self.full:
            return grown
        end = self._full_from + math.ceil(self.full * (lane + 1) / self.lanes)
        return min(self.full, end - rows) if rows < end else self.full

    @property
    def _full_from(self) -> int:
        """Rows after which groups of every lane are full."""
        grown = (FEWEST_ROWS << ((self.full - 1) // FEWEST_ROWS).bit_length()) - FEWEST_ROWS
        return max(grown, self.first_step)
