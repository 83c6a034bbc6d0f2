"""What a run trained on, step by step: written by its processes, read by the verifying one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stream_pretrain.data.rows.labels import IGNORED
from stream_pretrain.data.rows.train_rows import TrainRows
from stream_pretrain.training.steps.loop import StepResult

KILLED = b'{"killed": true}\n'
"""The last line of a process that was killed on purpose, or whose worker was."""


class RecordedSegment(NamedTuple):
    """The part of a document in a row, and its digest."""

    epoch: int
    shard: int
    offset: int
    tokens: int
    digest: str
    """Of the tokens as the model sees them, and of the labels."""

    @property
    def document(self) -> tuple[int, int, int]:
        """Epoch, shard and offset."""
        return self[:3]


@dataclass(frozen=True)
class RecordedStep:
    """A step of all ranks."""

    step: int
    loss: float
    """Sum over the labels of all ranks."""
    labels: int
    rows: tuple[str, ...]
    """Digests of the rows that were trained on: ids, labels, positions of the labels, source and segments."""
    segments: tuple[tuple[RecordedSegment, ...], ...]
    """Of each row, as they were read."""
    at: float
    """`time.monotonic` when the step was done."""

    @property
    def mean_loss(self) -> float:
        return self.loss / max(1, self.labels)


def line_of(result: StepResult, at: float) -> bytes:
    """What a rank writes of a step."""
    record = {
        "step": result.step,
        "loss": result.loss,
        "labels": result.labels,
        "rows": _digests(result.rows_trained),
        "segments": _segments(result),
        "at": at,
    }
    return json.dumps(record).encode() + b"\n"


def steps_of(files: Sequence[Path]) -> tuple[dict[int, RecordedStep], bool]:
    """The steps that all ranks of a start recorded, from a file each, and whether one was killed on purpose."""
    ranks, killed = [], False
    for file in files:
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        complete = list(takewhile(lambda line: line.endswith(b"\n"), lines))  # the last one is cut by a kill
        killed = killed or KILLED in complete
        ranks.append({record["step"]: record for line in complete if line != KILLED for record in [json.loads(line)]})
    first, *others = ranks
    shared = [step for step in first if all(step in other for other in others)]
    return {step: _of_all([rank[step] for rank in ranks]) for step in shared}, killed


def _of_all(ranks: Sequence[dict[str, Any]]) -> RecordedStep:
    return RecordedStep(
        step=ranks[0]["step"],
        loss=ranks[0]["loss"],
        labels=ranks[0]["labels"],
        rows=tuple(digest for rank in ranks for digest in rank["rows"]),
        segments=tuple(tuple(RecordedSegment(*segment) for segment in row) for rank in ranks for row in rank["segments"]),
        at=max(rank["at"] for rank in ranks),
    )


def _digests(rows: TrainRows) -> list[str]:
    found = []
    for row in range(len(rows)):
        segments = rows.segments[:, rows.segments_of(range(row, row + 1))].copy()
        segments[0] -= row * rows.length
        found.append(_digest(rows.records[row].tobytes(), segments.tobytes()))
    return found


def _segments(result: StepResult) -> list[list[list[int | str]]]:
    """Of each row that was read, in the order of the lanes."""
    rows = result.rows_seen.trained
    labels = np.full((len(rows), rows.length), IGNORED, dtype=np.int32)
    row, slot = np.nonzero(rows.labels != IGNORED)
    labels[row, rows.label_positions[row, slot]] = rows.labels[row, slot]
    ids, labels_of = rows.input_ids.reshape(-1), labels.reshape(-1)
    found: list[list[list[int | str]]] = [[] for _ in range(len(rows))]
    starts = rows.segment_start[rows.segment_tokens > 0].tolist()
    for one, start in zip(result.rows_seen.segments(), starts, strict=True):
        part = slice(start, start + one.tokens)
        digest = _digest(ids[part].tobytes(), labels_of[part].tobytes())
        found[one.row].append([one.epoch, one.shard, one.offset, one.tokens, digest])
    return found


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()
