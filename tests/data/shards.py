"""Shards read to their ends: their windows, documents, and what was skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.document import Documents, ReadOptions, Skip
from stream_pretrain.data.documents.reader import open_reader
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.stored_bytes import StoredBytes

OPTIONS = ReadOptions("text", window_bytes=1 << 20, max_line_bytes=1 << 20, transport=TransportOptions())
EVERY_WINDOW = Stripe(0)


def shard_of(path: Path) -> Shard:
    (shard,) = resolve(DataConfig(dataset=str(path))).shards
    return shard


def windows_of(path: Path, stripe: Stripe = EVERY_WINDOW, **options: object) -> list[Documents]:
    """The windows of a stripe of a file."""
    reader = open_reader(shard_of(path), replace(OPTIONS, **options))
    reader.follow(stripe, stripe.first)
    windows: list[Documents] = []
    while (found := reader.read(stripe, stripe.block(len(windows)), RestartPoint())) is not None:
        windows.append(found)
    assert reader.leave(stripe)
    return windows


def read(path: Path, **options: object) -> tuple[list[tuple[int, str]], list[Skip]]:
    """Texts of a file with their offsets, and what was skipped."""
    windows = windows_of(path, **options)
    texts = [pair for window in windows for pair in zip(window.offsets, window.texts, strict=True)]
    return texts, [skip for window in windows for skip in window.skips]


@contextmanager
def received() -> Iterator[list[int]]:
    """Sizes of the blocks that shards receive from their stores meanwhile, repeated ones included."""
    sizes: list[int] = []

    def counted(self: StoredBytes, fetch: Callable[[], bytes | bytearray]) -> bytes | bytearray:
        sizes.append(len(block := uncounted(self, fetch)))
        return block

    uncounted = StoredBytes._received
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredBytes, "_received", counted)
        yield sizes
