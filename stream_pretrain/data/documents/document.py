"""What a reader gives: the documents of a window, what was left out of them, and how it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from stream_pretrain.config import TextDocuments, template_fields
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.restart_point import RestartPoint


@dataclass(frozen=True)
class Skip:
    """What no row is made of. `offset` is an uncompressed byte of a line format, else a row number."""

    offset: int
    """Of the first of the documents."""
    reason: str
    documents: int = 1


@dataclass(frozen=True)
class Documents:
    """What one window holds, in the order of the shard."""

    texts: list[str]
    offsets: list[int]
    """Where each text stands in the shard: an uncompressed byte of a line format, else a row number."""
    skips: list[Skip]
    """Documents that could not be used, one by one."""
    restart: RestartPoint
    filtered: int = 0
    """Documents left out by their length or as copies of another of the window."""
    empty: tuple[Skip, ...] = ()
    """Documents without text, all of a reason as one."""

    @property
    def read(self) -> int:
        """Documents of the window, whatever became of them."""
        return len(self.texts) + len(self.skips) + self.filtered + sum(one.documents for one in self.empty)


class DocumentReader(Protocol):
    """Windows of documents of one shard, for the lanes of this process; used by one thread.

    A lane calls follow() once for its stripe, read() for each window of it in order, and leave() at the end.
    """

    def follow(self, stripe: Stripe, block: int) -> None:
        """Say that a lane will read this stripe from this window on."""

    def leave(self, stripe: Stripe) -> bool:
        """Say that a lane is done with a stripe; true when no lane of the process reads the shard any more."""

    def read(self, stripe: Stripe, block: int, restart: RestartPoint) -> Documents | None:
        """A window of the stripe, the same whoever reads it; None when the shard ends before it.

        restart: that of this window or of any before it; the nearer it is, the less is decompressed again.
        Raises: ContentError for a damaged or unusable shard, TransportError, SourceError for one that was replaced.
        """

    def offset_of(self, block: int) -> int:
        """Where a window begins, as documents count it: an uncompressed byte of a line format, else a row number."""

    def documents_from(self, stripe: Stripe, block: int) -> int | None:
        """How many documents a stripe holds from a window on; None where the shard does not tell."""


@dataclass(frozen=True)
class ReadOptions:
    """How documents are found in a shard."""

    text_field: str
    window_bytes: int
    max_line_bytes: int
    transport: TransportOptions
    text_template: str | None = None
    """Instead of one field, several in braces with text around them."""
    min_characters: int = 0
    max_characters: int | None = None
    drop_duplicates: bool = False
    text_documents: TextDocuments = "line"

    @property
    def fields(self) -> list[str]:
        """Dotted names of the fields that make the text."""
        return [self.text_field] if self.text_template is None else template_fields(self.text_template)
