"""Corpora of files that tests name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.resolve import resolve


def write(root: Path, *names: str) -> Path:
    """Files whose content is their name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def names(dataset: object, **options: Any) -> list[str]:
    return [shard.name for shard in resolve(DataConfig(dataset=str(dataset), **options)).shards]
