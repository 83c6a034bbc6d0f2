"""The cursors of all lanes as stream.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.errors import CheckpointError
from stream_pretrain.typed_json import from_json

CURSOR_VERSION = 5
"""Of what `stream.json` holds; raised when the fields of a cursor change, or the rows that follow from one."""

LaneCursors = tuple[Cursor, ...]
"""The cursors of a lane, one for each source."""


def stream_state(step: int, cursors: Sequence[LaneCursors]) -> dict[str, Any]:
    """The content of `stream.json`: the cursors of all lanes after a number of steps."""
    lanes = [{"sources": [list(cursor) for cursor in lane]} for lane in cursors]
    return {"version": CURSOR_VERSION, "step": step, "fields": list(Cursor._fields), "lanes": lanes}


def cursors_from(state: Mapping[str, Any], step: int, lanes: int, where: Path | str) -> list[LaneCursors]:
    """Cursors from a `stream_state`. where: what it is read from, for errors.

    Raises: CheckpointError for another version, step or number of lanes.
    """
    if state.get("version") != CURSOR_VERSION:
        raise CheckpointError(
            f"{where}: cursors of version {state.get('version')}, this program reads version {CURSOR_VERSION}"
        )
    if state.get("fields") != list(Cursor._fields):
        raise CheckpointError(f"{where}: fields are not those of cursors of version {CURSOR_VERSION}")
    if state.get("step") != step:
        raise CheckpointError(f"{where}: cursors of step {state.get('step')}, not of step {step}")
    found = from_json(list[dict[str, list[list[int]]]], state.get("lanes"), f"{where}: lanes")
    if len(found) != lanes:
        raise CheckpointError(f"{where}: cursors of {len(found)} lanes, the run has {lanes}")
    for number, lane in enumerate(found):
        if lane.keys() != {"sources"} or any(len(cursor) != len(Cursor._fields) for cursor in lane["sources"]):
            raise CheckpointError(f"{where}: lane {number} has no cursor of {len(Cursor._fields)} numbers a source")
    return [tuple(Cursor(*cursor) for cursor in lane["sources"]) for lane in found]


def with_checksum(state: dict[str, Any]) -> dict[str, Any]:
    """A `stream_state` that `refuse_changed` can check: a run keeps the file of a checkpoint whose manifest it deletes."""
    return {**state, "sha256": _digest(state)}


def refuse_changed(state: Mapping[str, Any], where: Path) -> None:
    """Refuse a state that was changed since a run wrote it; earlier versions wrote no checksum. Raises: CheckpointError."""
    if "sha256" in state and state["sha256"] != _digest(state):
        raise CheckpointError(f"{where}: was changed since the run wrote it (its sha256 is another one)")


def _digest(state: Mapping[str, Any]) -> str:
    content = json.dumps([state[name] for name in ("version", "step", "fields", "lanes")])
    return hashlib.sha256(content.encode()).hexdigest()


def first_cursors(lanes: int, sources: int = 1) -> list[LaneCursors]:
    """The cursors at the start of a run."""
    return [(Cursor(),) * sources for _ in range(lanes)]
