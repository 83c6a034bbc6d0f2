"""The folder of a run, and where a start in it begins."""

from __future__ import annotations

import json
from pathlib import Path

from stream_pretrain.training.start.resume import Start


def place(start: Start) -> tuple[Path | None, str | None]:
    return start.checkpoint, start.parent


def run_json(out: Path) -> dict[str, object]:
    content = json.loads((out / "run.json").read_text())
    assert isinstance(content, dict)
    return content
