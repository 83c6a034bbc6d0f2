"""Which documents the rows of some steps are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stream_pretrain.data.lanes.step_rows import Segment
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
                yield step, rows.segments()
            if step == steps.stop - 1:
                return


def write_parquet(path: Path, plan: StreamPlan, steps: Iterator[tuple[int, list[Segment]]]) -> int:
    """Write the segments of steps, a row group every few; returns how many. It has its name once it is complete."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    written, records = 0, list[tuple[object, ...]]()
    try:
        with unfinished.open("wb") as raw, pq.ParquetWriter(raw, SCHEMA, compression="zstd") as file:
            for step, segments in steps:
                for one in segments:
                    source, shard = plan.sources[one.source].name, plan.shards[one.shard].name
                    records.append((step, one.row, source, one.epoch, shard, one.offset, one.tokens))
                if len(records) >= ROW_GROUP:
                    file.write_table(_table(records))
                    written, records = written + len(records), []
            if records:
                file.write_table(_table(records))
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return written + len(records)


def _table(records: Sequence[tuple[object, ...]]) -> pa.Table:
    return pa.table([list(column) for column in zip(*records, strict=True)], SCHEMA)
