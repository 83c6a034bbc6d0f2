"""What this machine knows of fast engines: whether each gives the ids of `tokenizers`, in a small file of the user's cache."""

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

_MOST_ANSWERS = 1000
"""Kept; the oldest are forgotten first."""


def answers_file() -> Path:
    """Where answers are kept: in XDG_CACHE_HOME, else ~/.cache. Raises: RuntimeError for a user without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "stream_pretrain" / "engines.json"


def key_of(serialized: str, name: str, version: str) -> str:
    """The question: a tokenizer, an engine, and everything else that an answer depends on."""
    asked = [serialized, name, version, tokenizers.__version__, engine_probes.VERSION, platform.machine()]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def known(key: str) -> str | None:
    """What was found: "" where the ids are the same, else what differs; None where nothing is known."""
    return _read().get(key)


def keep(key: str, answer: str) -> None:
    """Keep an answer, where the cache can be written; else it is found out again each time."""
    answers = {**_read(), key: answer}
    kept = dict(list(answers.items())[-_MOST_ANSWERS:])
    with suppress(OSError, RuntimeError):
        path = answers_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: another run may write at the same time, and the last one wins.
        number, draft = tempfile.mkstemp(dir=path.parent, prefix=".engines-")
        try:
            with open(number, "w", encoding="utf-8") as file:
                json.dump(kept, file, indent=1)
            Path(draft).replace(path)
        except OSError:
            Path(draft).unlink()
            raise


def _read() -> dict[str, str]:
    """All answers; none where the file is missing or not one of answers, or the user has no home."""
    try:
        content = json.loads(answers_file().read_bytes())
    except (OSError, ValueError, RuntimeError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: answer for key, answer in content.items() if isinstance(answer, str)}
