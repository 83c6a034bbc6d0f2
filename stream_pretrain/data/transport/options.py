"""Options for fetching the bytes of shards."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stream_pretrain.data.transport.http_session import Sessions
from stream_pretrain.data.transport.store_memory import StoreMemory
from stream_pretrain.units import MIB

BLOCK_BYTES = 8 * MIB
"""Stored bytes of one request to a remote store."""


@dataclass(frozen=True)
class TransportOptions:
    """How shards are fetched.

    Units: seconds; `retry_deadline` counts the time without a new KiB, `read_timeout` that after which a connection is taken
    for dead.
    """

    storage_options: Mapping[str, Any] = field(default_factory=dict)
    retry_deadline: float = 1800.0
    block_bytes: int = BLOCK_BYTES
    read_timeout: float = 60.0
    memory: StoreMemory = field(default_factory=StoreMemory, compare=False, repr=False)
    """What is known of the stores; `Readers` give each stream its own."""
    sessions: Sessions | None = field(default=None, compare=False, repr=False)
    """Connections to reuse, where many small files are read."""
    cancelled: threading.Event | None = field(default=None, compare=False, repr=False)
    """Set once the bytes are no longer needed: reads then return fewer of them."""
