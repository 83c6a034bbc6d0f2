"""What a window holds: documents, and what was skipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from stream_pretrain.config import TextDocuments, template_fields
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.documents.texts import MANY, BadDocumentError, NoTextError
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.restart_point import RestartPoint

if TYPE_CHECKING:
    pass


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
    """Windows of documents of one shard, for the lanes of this process."""

    def follow(self, stripe: Stripe, block: int) -> None: ...

    def leave(self, stripe: Stripe) -> bool: ...

    def read(self, stripe: Stripe, block: int, restart: RestartPoint) -> Documents | None: ...

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


Found = TypeVar("Found")


def documents_of(
    found: Iterable[tuple[int, Found]], text_of: Callable[[Found], str], restart: RestartPoint, options: ReadOptions
) -> Documents:
    """The texts of what was found in a window, each given with its offset, and what had to be skipped or was left out."""
    texts: list[str] = []
    offsets: list[int] = []
    skips: list[Skip] = []
    empty: dict[str, Skip] = {}
    filtered = 0
    longest = math.inf if options.max_characters is None else options.max_characters
    seen: set[str] = set()
    for offset, candidate in found:
        try:
            text = text_of(candidate)
        except BadDocumentError as bad:
            skips.append(Skip(offset, str(bad)))
            continue
        except NoTextError as none:
            if options.min_characters:
                filtered += 1
            else:
                first = empty.get(none.reason) or Skip(offset, str(none), 0)
                empty[none.reason] = replace(first, documents=first.documents + 1)
            continue
        if not options.min_characters <= len(text) <= longest or text in seen:
            filtered += 1
            continue
        if options.drop_duplicates:
            seen.add(text)
        texts.append(text)
        offsets.append(offset)
    return Documents(texts, offsets, skips, restart, filtered, tuple(empty.values()))


def nothing_usable(documents: Documents) -> bool:
    return not documents.texts and not documents.filtered and len(documents.skips) >= MANY


TOO_LONG = "line too long"
