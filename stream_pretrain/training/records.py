"""What a run appends to: one line of JSON for each event, every line whole.

metrics.jsonl      one line per logged step
quarantine.jsonl   skipped documents
bad_steps.jsonl    documents of steps that changed nothing

A line that was appended has been handed to the system. `sync_records` brings all of them to the disk: it is for the thread
that writes checkpoints, so that training waits for no disk, and a checkpoint finds every line of the steps before it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stream_pretrain.training.disk import replace_file, sync, writing
from stream_pretrain.training.reading import lines_of, parsed

RECORDS = ("metrics.jsonl", "quarantine.jsonl", "bad_steps.jsonl")


def append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Append lines to a record: all of them or, where the disk refuses a part, none.

    Raises: CheckpointError.
    """
    content = b"".join(map(_encoded, lines))
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            _write_whole(descriptor, content)
        finally:
            os.close(descriptor)


def replace_last(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Put lines in the place of the last one of a record. Raises: CheckpointError, with the record as it was."""
    with writing(path):
        content = path.read_bytes()
        replace_file(path, [content[: _last_line(content)], *map(_encoded, lines)])


def has_evaluation(metrics: Path, step: int) -> bool:
    """Whether the last line of a record of metrics is of this step, with an evaluation."""
    content = metrics.read_bytes() if metrics.exists() else b""
    if not content:
        return False
    last = json.loads(content[_last_line(content) :])
    return last["step"] == step and "eval/loss" in last


def trim_after(path: Path, step: int | None) -> None:
    """Keep of a record the lines with a "step" up to `step` (None: none), so that a resumed run logs each once.

    A last line that a kill has torn goes too. A file that is not there stays so. Raises: CheckpointError.
    """
    if path.exists():
        with writing(path):
            lines = (line for line in lines_of(path) if step is not None and _is_up_to(step, line))
            replace_file(path, (line.rstrip(b"\n") + b"\n" for line in lines))


def sync_records(out: Path) -> None:
    """Bring the records of OUT to the disk. Raises: CheckpointError."""
    for path in filter(Path.exists, (out / name for name in RECORDS)):
        with writing(path):
            sync(path)
    with writing(out):
        sync(out)


def _last_line(content: bytes) -> int:
    """Where it begins."""
    return content.rfind(b"\n", 0, -1) + 1


def _encoded(line: Mapping[str, Any]) -> bytes:
    # A name that is not UTF-8 has lone surrogates, for which JSON has escapes.
    return json.dumps(line, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace") + b"\n"


def _write_whole(descriptor: int, content: bytes) -> None:
    """Write all of it, or leave the file as long as it was: a disk that fills up takes a part, and says so only then."""
    before, rest = os.fstat(descriptor).st_size, memoryview(content)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except BaseException:
        os.ftruncate(descriptor, before)
        raise


def _is_up_to(step: int, line: bytes) -> bool:
    try:
        record = parsed(line)
    except ValueError:  # torn
        return False
    return isinstance(record, dict) and isinstance(record.get("step"), int) and record["step"] <= step
