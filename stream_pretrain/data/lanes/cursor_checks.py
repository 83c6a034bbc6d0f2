"""Checks that the cursors of a checkpoint are possible in its run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.mixture import PARTS
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.errors import CheckpointError

_MOST_WINDOWS = 2**32


def refuse_impossible(cursors: Sequence[Sequence[Cursor]], plan: StreamPlan, step: int, where: Path | str) -> None:
    """Raises: CheckpointError for cursors that no run of this plan can have after a step, as far as shard sizes show.

    where: what they were read from.
    """
    for number, lane in enumerate(cursors):
        of_lane = f"{where}: lane {number}"
        if len(lane) != len(plan.sources):
            raise _impossible(f"{of_lane} has cursors for {len(lane)} sources, the run has {len(plan.sources)}")
        for source, cursor in zip(plan.sources, lane, strict=True):
            fault = fault_of(source, number, cursor)
            if fault is not None:
                raise _impossible(f"{of_lane}, {f'source {source.name}, ' if source.name else ''}{fault}")
    rows, requested = sum(cursor.rows for lane in cursors for cursor in lane), step * plan.layout.global_batch_size
    # The last step of a run has fewer; one that is given more epochs afterwards has had several of these.
    ends = min(max(cursor.epoch for cursor in lane) for lane in cursors)
    if not requested - ends * (plan.layout.global_batch_size - 1) <= rows <= requested:
        raise _impossible(f"{where}: the lanes have given {rows} rows in {step} steps of {plan.layout.global_batch_size}")


def fault_of(source: SourcePlan, lane: int, cursor: Cursor) -> str | None:
    """What is wrong with a single cursor; None where it is possible."""
    for name, value in cursor._asdict().items():
        if value < 0 and name != "credit":
            return f"{name} is {value}"
    if abs(cursor.credit) > 2 * PARTS:
        return f"credit is {cursor.credit}"
    if cursor.taken > cursor.rows or cursor.taken > source.group_sizes.after(cursor.rows - cursor.taken, lane):
        return f"taken is {cursor.taken} of {cursor.rows} rows"
    if cursor.bytes_read > (cursor.epoch + 1) * source.bytes_of_epoch:
        return f"{cursor.bytes_read} bytes are read of {source.bytes_of_epoch} an epoch"
    if cursor.window > _MOST_WINDOWS:
        return f"window is {cursor.window}"
    if source.ended(cursor):
        return None
    stripes = source.stripes(cursor.epoch, lane)
    if cursor.stripe > len(stripes):
        return f"stripe is {cursor.stripe} of {len(stripes)}"
    if cursor.stripe == len(stripes):
        return None
    stripe = stripes[cursor.stripe]
    shard, *others = source.shards_of(stripe.unit)
    if others:
        wrong = cursor.window > 1 or cursor.compressed > 0
        return f"window is {cursor.window}, byte {cursor.compressed}, of a bundle, which is one window" if wrong else None
    if shard.size is None or shard.format not in ("jsonl", "text"):
        return None
    if cursor.compressed > shard.size:
        return f"compressed is {cursor.compressed}, but {shard.name} has {shard.size} bytes"
    if shard.compression == "none":
        if cursor.uncompressed != cursor.compressed:
            return f"uncompressed is {cursor.uncompressed}, but {shard.name} is not compressed"
        last = stripe.block(cursor.window - 1)
        if cursor.window and last * source.read.window_bytes >= shard.size:
            return f"window is {cursor.window}, but {shard.name} has fewer"
    block = stripe.block(cursor.window)
    if cursor.uncompressed > max(block * source.read.window_bytes - 1, 0):
        return f"uncompressed is {cursor.uncompressed}, behind where window {block} of {shard.name} begins"
    return None


def _impossible(what: str) -> CheckpointError:
    return CheckpointError(f"{what}: the files of the checkpoint are not of one run; use another one")
