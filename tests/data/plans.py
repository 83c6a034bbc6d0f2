"""Plans of small corpora, and what their lanes and steps give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stream_pretrain.config import Config, DataConfig, ObjectiveConfig, TrainConfig
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus, PinnedSource
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.lanes.cursor import Cursor, Skipped
from stream_pretrain.data.lanes.group import Group
from stream_pretrain.data.lanes.lane import Lane
from stream_pretrain.data.lanes.readers import Readers
from stream_pretrain.data.lanes.step_rows import StepRows, merged
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors, first_cursors
from stream_pretrain.data.rows.train_rows import TrainRows
from tests.corpora import word_tokenizer

TOKENIZER = word_tokenizer()


def plan_for(folder: Path, **options: object) -> StreamPlan:
    in_data = {name: value for name, value in options.items() if name in DataConfig.__dataclass_fields__}
    in_train = {name: value for name, value in options.items() if name in TrainConfig.__dataclass_fields__}
    in_objective = {name: value for name, value in options.items() if name in ObjectiveConfig.__dataclass_fields__}
    config = Config(
        data=DataConfig(**{"dataset": str(folder), "sequence_length": 64, "lanes": 4, "window_bytes": 12_000} | in_data),
        train=TrainConfig(**{"max_steps": 1000, "global_batch_size": 8} | in_train),
        objective=ObjectiveConfig(**in_objective),
    )
    return stream_plan(config, TOKENIZER)


def pinned_of(shards: Sequence[Shard], lanes: int, window_bytes: int) -> PinnedCorpus:
    source = PinnedSource("x", None, tuple(shards), name="", window_bytes=window_bytes, bundles=(), group_rows=16)
    return PinnedCorpus((source,), lanes)


def lane(plan: StreamPlan, number: int, cursors: LaneCursors | None = None) -> Lane:
    sources = plan.sources
    readers = [Readers(source) for source in sources]
    return Lane(plan, number, plan.encoder.build(), readers, cursors or (Cursor(),) * len(sources))


class LaneRow(NamedTuple):
    """A row, and what was skipped before it."""

    source: int
    group: Group
    row: int
    """Of the group."""
    skipped: list[Skipped]


def row_of(lane: Lane) -> LaneRow | None:
    """The next row of a lane; None at the end of all, behind which it can report what was skipped."""
    for source, group, which in lane.take(1):
        return LaneRow(source, group, which.start, lane.report_skipped())
    return None


def next_row(lane: Lane, rows_a_step: int = 2) -> LaneRow | None:
    """The next row of a lane that gives every step as many."""
    given = sum(cursor.rows for cursor in lane.cursors)
    if given % rows_a_step == 0:
        lane.begin_step(given // rows_a_step)
    lane.step = given // rows_a_step
    return row_of(lane)


def rows_of(lane: Lane, count: int) -> list[list[int]]:
    picks = [row_of(lane) for _ in range(count)]
    return [pick[1].rows.input_ids[pick[2]].tolist() for pick in picks if pick is not None]


def texts_of(row: list[int]) -> list[int]:
    """Numbers of the documents that begin in a row."""
    tokens = TOKENIZER.convert_ids_to_tokens(row)
    return [
        int("".join(token.removeprefix("##") for token in tokens[i + 1 : i + 7]))
        for i, token in enumerate(tokens)
        if token == "doc"
    ]


def unmasked(rows: TrainRows) -> list[list[int]]:
    """The ids of the rows before some were replaced for masked language modelling."""
    ids = rows.input_ids.copy()
    row, slot = np.nonzero(rows.labels >= 0)
    ids[row, rows.label_positions[row, slot]] = rows.labels[row, slot]
    found: list[list[int]] = ids.tolist()
    return found


def next_step(streams: Sequence[StepStream]) -> StepRows:
    """The next step of all ranks together, which agree on it as they do in training."""
    while True:
        read = [stream.read() for stream in streams]
        given = np.sum([stream.given(rows) for stream, rows in zip(streams, read, strict=True)], axis=0)
        settled = [stream.settle(given) for stream in streams]
        if all(settled):
            return merged(read)


def cursors_of(step: StepRows) -> list[LaneCursors]:
    """Where all lanes stand behind a step of all ranks."""
    return [tuple(Cursor(*cursor) for cursor in lane) for lane in step.cursors.tolist()]


def ledger(
    plan: StreamPlan, steps: int, workers: int, cursors: list[LaneCursors] | None = None, step: int = 0
) -> tuple[list, list[LaneCursors]]:
    """What the steps see, as plain values; and where the lanes stand after them."""
    seen = []
    cursors = list(cursors or first_cursors(plan.layout.lanes, len(plan.sources)))
    with StepStream(plan, cursors, step=step, workers=workers) as stream:
        for _ in range(steps):
            rows = next(stream)
            seen.append(
                [rows.row_lane.tolist(), rows.trained.buffer.tolist()],
            )
            cursors = cursors_of(rows)
    return seen, cursors


def read_through(folder: Path, **options: object) -> tuple[list[Skipped], list[Cursor]]:
    """What the lanes skip in an epoch, two where not said otherwise, and where they stand then."""
    plan = plan_for(folder, **{"lanes": 2, "max_epochs": 1, "on_bad_shard": "skip"} | options)
    skipped, cursors = [], []
    for reading in (lane(plan, number) for number in range(plan.layout.lanes)):
        while (row := row_of(reading)) is not None:
            skipped += row[3]
        skipped += reading.report_skipped()
        cursors += reading.cursors
    return skipped, cursors
