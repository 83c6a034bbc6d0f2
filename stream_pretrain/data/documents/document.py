"""What readers return: the documents of a window, and those that were left out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from stream_pretrain.config import TextDocuments, template_fields
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.errors import ContentError
from stream_pretrain.units import MIB

KEPT_BYTES = 4 * MIB
"""Bytes of windows that are kept in memory for each stripe, where a process has few lanes; two windows if these are larger."""


@dataclass(frozen=True)
class Skip:
    """Documents that are not used, and why."""

    offset: int
    """Of the first one: an uncompressed byte of a line format, otherwise a row number."""
    reason: str
    documents: int = 1
    member: int = 0
    """Number of their shard within the unit."""


@dataclass(frozen=True)
class Damage:
    """The rest of a shard of a bundle that cannot be read."""

    member: int
    offset: int
    """Of the first missing document, as in `Skip`."""
    documents: int | None
    """How many are missing; None where that is unknown."""
    error: ContentError


@dataclass(frozen=True)
class Documents:
    """The documents of one window, in the order of the shard."""

    texts: list[str]
    offsets: list[int]
    """Where each text is in the shard: an uncompressed byte of a line format, otherwise a row number."""
    skips: list[Skip]
    """Documents that could not be used, one entry each."""
    restart: RestartPoint
    filtered: int = 0
    """Documents left out by their length, or as duplicates within the window."""
    empty: tuple[Skip, ...] = ()
    """Documents without text, one entry for each reason."""
    stored: tuple[int, int] = (0, 0)
    """Stored bytes of the shard before the window and up to its end, independent of who reads it."""
    content_bytes: int = 0
    """Bytes of the content of the shard in its documents, used or not; the windows of a shard add up to its content."""
    members: Sequence[int] = ()
    """Number of the shard of each text within the unit; empty where the unit is one shard."""
    damaged: tuple[Damage, ...] = ()
    """The missing parts of a bundle."""

    @property
    def all_bad(self) -> str | None:
        """Why the first document was skipped, where all of them were."""
        return self.skips[0].reason if self.skips and not self.texts and not self.filtered else None

    @property
    def read(self) -> int:
        """Number of documents in the window, used or not."""
        return len(self.texts) + len(self.skips) + self.filtered + sum(one.documents for one in self.empty)

    def origin_of(self, index: int) -> tuple[int, int]:
        """Number of the shard of a text within the unit, and the offset there."""
        return self.members[index] if self.members else 0, self.offsets[index]


class DocumentReader(ABC):
    """The documents of one unit in windows, for the lanes of this process. Used by one thread.

    A lane calls follow() for its stripe, then read() for each of its windows in order, and leave() at the end. `block` is the
    number of a window in the shard.
    """

    @abstractmethod
    def follow(self, stripe: Stripe, block: int) -> None:
        """Register a lane that will read this stripe from this window on; called again when it begins to."""

    @abstractmethod
    def leave(self, stripe: Stripe) -> bool:
        """Deregister the lane of a stripe; true where no lane of the process reads the unit any more."""

    @abstractmethod
    def read(self, stripe: Stripe, block: int, restart: RestartPoint) -> Documents | None:
        """A window of the stripe, independent of who reads it; None where the unit ends before it.

        restart: that of this window or of an earlier one; the closer it is, the less is decompressed twice.
        Raises: ContentError for a damaged or unusable shard, TransportError, SourceError for one that was replaced.
        """

    @abstractmethod
    def offset_of(self, block: int) -> int:
        """Where a window starts: an uncompressed byte of a line format, otherwise a row number."""

    def documents_from(self, stripe: Stripe, block: int) -> int | None:  # noqa: ARG002 (of Parquet)
        """Number of documents of a stripe from a window on; None where the format does not have it."""
        return None


@dataclass(frozen=True)
class ReadOptions:
    """How documents are found in a shard."""

    text_field: str
    window_bytes: int
    max_line_bytes: int
    transport: TransportOptions
    text_template: str | None = None
    """Several fields in braces, with text around them, in place of one field."""
    min_characters: int = 0
    max_characters: int | None = None
    drop_duplicates: bool = False
    text_documents: TextDocuments = "line"
    kept_bytes: int = KEPT_BYTES
    """Of windows that lanes of a process keep for each other, for each lane."""

    @property
    def most_kept(self) -> int:
        """The most windows that are kept for a lane."""
        return max(2, self.kept_bytes // self.window_bytes)

    @property
    def fields(self) -> list[str]:
        """Dotted names of the fields that make the text."""
        return [self.text_field] if self.text_template is None else template_fields(self.text_template)
