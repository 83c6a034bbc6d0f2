"""All that decides the rows of every step."""

from __future__ import annotations

from dataclasses import dataclass

from stream_pretrain.data.lanes.lane_plan import LanePlan
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.objective import Objective


@dataclass(frozen=True)
class StreamPlan:
    """All that decides the rows of every step, besides the cursors."""

    lanes: LanePlan
    encoder: Encoder
    objective: Objective
