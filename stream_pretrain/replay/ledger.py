"""Which documents the rows of some steps are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.errors import CheckpointError
from stream_pretrain.replay.recorded_run import RecordedRun

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("row", pa.int32()),
        ("source", pa.string()),
        ("epoch", pa.int32()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("tokens", pa.int32()),
    ]
)
"""A record for each part of a document in a row. tokens: with special tokens, as the row has them."""

ROW_GROUP = 100_000
"""Records of a row group."""


class Segment(NamedTuple):
    """A part of a document in a row of a step."""

    step: int
    row: int
    """Of the step."""
    source: int
    epoch: int
    shard: int
    """Of all sources."""
    offset: int
    """Of the document: an uncompressed byte of a line format, otherwise a row number."""
    tokens: int


def replayed(
    run: RecordedRun, steps: range, workers: int, report: Callable[[str], None]
) -> Iterator[tuple[int, list[Segment]]]:
    """The steps with the segments of their rows, read from the nearest cursors before them. Raises: as a run does."""
    begin, cursors, _ = run.cursors_before(steps.start - 1)
    with StepStream(run.plan, cursors, step=begin, workers=workers) as stream:
        for rows in stream:
            step = rows.step + 1
            report(f"step {step:,} of {steps.stop - 1:,}")
            if not len(rows.trained):
                raise CheckpointError(f"the corpus ends before step {step:,}: was it changed since the run?")
            if step in steps:
                yield step, segments_of(rows, step)
            if step == steps.stop - 1:
                return


def segments_of(rows: StepRows, step: int) -> list[Segment]:
    """The segments of the rows of a step, in order."""
    trained = rows.trained
    of_documents = trained.segment_tokens > 0  # the others are padding
    row = trained.segment_start[of_documents] // trained.length
    columns = np.column_stack([row, trained.source[row], rows.origins, trained.segment_tokens[of_documents]])
    return [Segment(step, *values) for values in columns.tolist()]


def write_parquet(path: Path, plan: StreamPlan, steps: Iterator[tuple[int, list[Segment]]]) -> int:
    """Write the segments of steps, a row group every few; returns how many. It has its name once it is whole."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    written, waiting = 0, list[Segment]()
    names = [shard.name for shard in plan.shards]
    sources = [source.name for source in plan.sources]

    def table() -> pa.Table:
        columns = [
            [segment.step for segment in waiting],
            [segment.row for segment in waiting],
            [sources[segment.source] for segment in waiting],
            [segment.epoch for segment in waiting],
            [names[segment.shard] for segment in waiting],
            [segment.offset for segment in waiting],
            [segment.tokens for segment in waiting],
        ]
        return pa.table(columns, SCHEMA)

    try:
        with unfinished.open("wb") as raw, pq.ParquetWriter(raw, SCHEMA, compression="zstd") as file:
            for _, segments in steps:
                waiting += segments
                if len(waiting) >= ROW_GROUP:
                    file.write_table(table())
                    written, waiting = written + len(waiting), []
            if waiting:
                file.write_table(table())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return written + len(waiting)
