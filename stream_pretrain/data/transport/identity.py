"""What tells a file from another one of its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def identity_of(info: Mapping[str, Any]) -> dict[str, str]:
    """The surest of what fsspec tells of an object that changes with its content, by its kind; no time of change is that."""
    told = {
        "md5": info.get("md5Hash"),
        "crc32c": info.get("crc32c"),
        "sha": info.get("sha"),
        "etag": bare_etag(info.get("ETag") or info.get("etag")),
    }
    return dict([(kind, str(value)) for kind, value in told.items() if value][:1])


def bare_etag(etag: str | None) -> str | None:
    """An ETag without its quotes, and without the mark of a weak one, which one answer may have and another not."""
    return etag if etag is None else etag.removeprefix("W/").strip('"')
