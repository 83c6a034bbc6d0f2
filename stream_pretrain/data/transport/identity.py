"""Values that distinguish a file from another one of the same name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def identity_of(info: Mapping[str, Any]) -> dict[str, str]:
    """The most reliable value, by kind, in fsspec's info of an object that changes with its content; no modification time."""
    values = {
        "md5": info.get("md5Hash"),
        "crc32c": info.get("crc32c"),
        "sha": info.get("sha"),
        "etag": bare_etag(info.get("ETag") or info.get("etag")),
    }
    return dict([(kind, str(value)) for kind, value in values.items() if value][:1])


def bare_etag(etag: str | None) -> str | None:
    """An ETag without quotes, and without the mark of a weak one, which responses may or may not have."""
    return etag if etag is None else etag.removeprefix("W/").strip('"')
