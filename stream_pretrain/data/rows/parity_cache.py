"""Results of comparing fast engines with `tokenizers` on this machine, in a small file of the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from contextlib import suppress
from pathlib import Path

import tokenizers

from stream_pretrain.data.rows import engine_probes

_MOST_RESULTS = 1000
"""The oldest are dropped first."""


def cache_file() -> Path:
    """Path in XDG_CACHE_HOME, else in ~/.cache. Raises: RuntimeError for a user without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "stream_pretrain" / "engines.json"


def key_of(serialized: str, name: str, version: str) -> str:
    """Hash of a tokenizer, an engine, and everything else that a result depends on."""
    parts = [serialized, name, version, tokenizers.__version__, engine_probes.VERSION, platform.machine()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def lookup(key: str) -> str | None:
    """The difference from `tokenizers`, empty where the ids are the same; None where they were not compared."""
    return _read().get(key)


def store(key: str, difference: str) -> None:
    """Store a result, where the cache can be written; without it, engines are compared at each start."""
    results = dict(list({**_read(), key: difference}.items())[-_MOST_RESULTS:])
    with suppress(OSError, RuntimeError):
        path = cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        # A unique name: another run may write at the same time, and the last one wins.
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".engines-")
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(results, file, indent=1)
            Path(draft).replace(path)
        except OSError:
            Path(draft).unlink()
            raise


def _read() -> dict[str, str]:
    """All results; none where the file is missing or malformed, or the user has no home."""
    try:
        content = json.loads(cache_file().read_bytes())
    except (OSError, ValueError, RuntimeError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: difference for key, difference in content.items() if isinstance(difference, str)}
