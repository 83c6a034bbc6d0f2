"""JSON-lines records of a run (metrics, quarantine, bad steps), appended atomically.

An appended line is with the operating system. `sync_records` flushes all to the disk, in the thread that writes checkpoints: so
training never waits for the disk, and a checkpoint has every line of the steps before it.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stream_pretrain.training.files.atomic_files import replace_file, sync, writing
from stream_pretrain.training.files.out_files import RECORDS
from stream_pretrain.training.files.retried_reads import lines_of, parsed, read_bytes


def append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Append lines to a record: all of them, or none where the disk fails. Raises: CheckpointError."""
    content = b"".join(map(_encoded, lines))
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            _write_whole(descriptor, content)
        finally:
            os.close(descriptor)


def replace_last(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Replace the last line of a record. Raises: CheckpointError, with the record as it was."""
    content = read_bytes(path)
    begin_of_last = content.rfind(b"\n", 0, -1) + 1
    with writing(path):
        replace_file(path, [content[:begin_of_last], *map(_encoded, lines)])


def has_evaluation(metrics: Path, step: int) -> bool:
    """Whether the last line of the metrics is of this step and has an evaluation. Raises: CheckpointError."""
    line = next(iter(deque(lines_of(metrics), maxlen=1)), b"") if metrics.exists() else b""
    return _step_of(line) == step and "eval/loss" in parsed(line)


def best_evaluation(metrics: Path, after: int | None = None) -> tuple[float, int] | None:
    """The lowest held-out loss in the metrics, after `trim_after`, and its step.

    after: the step up to which losses are those of other documents. Raises: CheckpointError.
    """
    lines = (parsed(line) for line in lines_of(metrics) if b'"eval/loss"' in line) if metrics.exists() else ()
    found = ((line.get("eval/loss"), line["step"]) for line in lines if after is None or line["step"] > after)
    return min(((loss, step) for loss, step in found if isinstance(loss, float)), default=None)  # null is not finite


def trim_after(path: Path, step: int | None, report: Callable[[str], None]) -> None:
    """Drop the lines of a record after a step (None: all), so that a resumed run logs each step once.

    A torn last line is dropped too; other damaged lines are reported. A missing file is not created. Raises: CheckpointError.
    """
    if not path.exists():
        return
    damaged: list[int] = []

    def kept() -> Iterator[bytes]:
        for number, line in enumerate(lines_of(path), start=1):
            found = _step_of(line)
            if found is None:
                damaged.append(number)
            elif step is not None and found <= step:
                yield line.rstrip(b"\n") + b"\n"
        if damaged and damaged[-1] == number:
            damaged.pop()

    with writing(path):
        replace_file(path, kept())
    if damaged and step is not None:
        report(f"{path}: damaged lines removed: {len(damaged)}, the first is line {damaged[0]}")


def sync_records(out: Path) -> None:
    """Flush the records of OUT to the disk. Raises: CheckpointError."""
    for path in filter(Path.exists, (out / name for name in RECORDS)):
        with writing(path):
            sync(path)
    with writing(out):
        sync(out)


def _encoded(line: Mapping[str, Any]) -> bytes:
    # Lone surrogates of a name that is not UTF-8 become JSON escapes.
    return json.dumps(line, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace") + b"\n"


def _write_whole(descriptor: int, content: bytes) -> None:
    """Write all of it, or truncate the file to its old length: a full disk takes a part before it fails."""
    before, rest = os.fstat(descriptor).st_size, memoryview(content)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except BaseException:
        os.ftruncate(descriptor, before)
        raise


def _step_of(line: bytes) -> int | None:
    """The step of a line; None for a damaged line."""
    try:
        step = parsed(line)["step"]
    except (ValueError, TypeError, KeyError):
        return None
    return step if isinstance(step, int) else None
