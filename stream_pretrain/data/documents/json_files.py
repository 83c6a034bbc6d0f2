"""JSON that is not JSON lines: a file that is one array, one object around its records, or objects over several lines."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Sequence
from contextlib import suppress

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.transport.compression import CODECS
from stream_pretrain.non_utf8_names import in_shell

_SEARCHED = 128 * 1024
"""Bytes at the start of a file in which fields are searched."""

_LIST = re.compile(r'("(?:[^"\\]|\\.)+")\s*:\s*\[\s*\{')
"""A field that holds a list of objects, with its quotes, up to the start of the first object."""

_OBJECT = re.compile(r"[ \t]*\{")
"""An object that follows another one on the same line."""


def json_fault(content: bytes, shard: Shard, fields: Sequence[str], *, usable: bool) -> str | None:
    """What a file of JSON is that is not JSON lines, and how to convert it; None for JSON lines, and for no JSON.

    content: from the first byte on, with the first line to its end where that is known.
    fields: those of the text.
    usable: whether any line is a document, as the last object of a list may be.
    """
    first, newline, rest = content.lstrip().partition(b"\n")
    line = first.decode("utf-8", "replace").strip()
    goes_on, broken = _goes_on_or_is_broken(line, cut=not newline)
    if broken and not usable and _OBJECT.match(line, _end_of_value(line)):
        return f"has several objects on a line, not JSON lines: {_command(shard, '.')}"
    if broken or not line.startswith(("[", "{")):
        return None
    if line.startswith("["):
        return None if usable and not goes_on else f"is one JSON array, not JSON lines: {_command(shard, '.[]')}"
    if usable and not (goes_on and line.endswith(("{", "["))):
        return None
    if not goes_on and rest.strip():
        return None  # objects, a line each
    records = _records(content[:_SEARCHED].decode("utf-8", "replace"), fields[0].split(".")[0])
    if records is not None:
        return f"is one JSON object with its records in {records!r}, not JSON lines: {_command(shard, _all_of(records))}"
    return f"has objects over several lines, not JSON lines: {_command(shard, '.')}" if goes_on and newline else None


def _goes_on_or_is_broken(line: str, *, cut: bool) -> tuple[bool, bool]:
    """Whether JSON starts in a line and ends after it, or after its cut; and whether the line is no JSON at all."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        goes_on = error.pos >= len(line) or (cut and error.msg.startswith("Unterminated"))
        return goes_on, not goes_on
    except (ValueError, RecursionError):  # an integer of too many digits, or too deep
        return False, True
    return False, False


def _end_of_value(line: str) -> int:
    """Where the JSON value that a line begins with ends; the end of the line where it begins with none."""
    try:
        return json.JSONDecoder().raw_decode(line)[1]
    except (ValueError, RecursionError):
        return len(line)


def _records(text: str, field: str) -> str | None:
    """The field of an object that holds a list of objects, the first of which has the field of the text."""
    for found in _LIST.finditer(text):
        begin = found.end() - 1
        try:
            record, _ = json.JSONDecoder().raw_decode(text, begin)
        except (ValueError, RecursionError):  # longer than the searched text
            record = text[begin:]
        if field in record:
            with suppress(ValueError):  # a name with a wrong escape is no JSON
                return str(json.loads(found[1]))
    return None


def _all_of(field: str) -> str:
    return f".{field}[]" if re.fullmatch(r"[A-Za-z_]\w*", field, re.ASCII) else f".[{json.dumps(field)}][]"


def _command(shard: Shard, query: str) -> str:
    """The command that converts a file to JSON lines."""
    name = posixpath.basename(shard.name)
    stem = posixpath.splitext(name if shard.compression == "none" else posixpath.splitext(name)[0])[0]
    made = in_shell([f"{stem}.lines.jsonl"])
    if shard.compression == "none":
        return f"{in_shell(['jq', '-c', query, name])} > {made}"
    return f"{CODECS[shard.compression].command} {in_shell([name])} | {in_shell(['jq', '-c', query])} > {made}"
