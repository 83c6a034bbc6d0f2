"""Which documents are trained on: others are dropped here for their length, as duplicates, without text, or as held out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from stream_pretrain.data.documents.document import Documents, ReadOptions, Skip
from stream_pretrain.data.documents.text_fields import MANY, BadDocumentError, NoTextError
from stream_pretrain.data.transport.restart_point import RestartPoint

Candidate = TypeVar("Candidate")


def usable_documents(
    candidates: Iterable[tuple[int, Candidate]],
    text_of: Callable[[Candidate], str],
    restart: RestartPoint,
    options: ReadOptions,
) -> Documents:
    """The usable documents of a window, and what was skipped, filtered or empty, for every reader.

    candidates: with their offsets in the shard.
    text_of: raises BadDocumentError for a document that is skipped, NoTextError for one without text.
    """
    texts: list[str] = []
    offsets: list[int] = []
    skips: list[Skip] = []
    empty: dict[str, Skip] = {}
    filtered = 0
    shortest, distinct = options.min_characters, options.drop_duplicates
    longest = math.inf if options.max_characters is None else options.max_characters
    seen: set[str] = set()
    for offset, candidate in candidates:
        try:
            text = text_of(candidate)
        except BadDocumentError as bad:
            skips.append(Skip(offset, str(bad)))
            continue
        except NoTextError as none:
            if shortest:
                filtered += 1
            else:
                first = empty.get(none.reason) or Skip(offset, str(none), 0)
                empty[none.reason] = replace(first, documents=first.documents + 1)
            continue
        if not shortest <= len(text) <= longest or (distinct and text in seen):  # too short, too long, a duplicate
            filtered += 1
            continue
        if distinct:
            seen.add(text)
        texts.append(text)
        offsets.append(offset)
    return Documents(texts, offsets, skips, restart, filtered, tuple(empty.values()))


def nothing_usable(documents: Documents) -> bool:
    """Whether all documents of a window are bad, and too many for a shard of the format in its name."""
    return documents.all_bad is not None and len(documents.skips) >= MANY


def without_held_out(documents: Documents, heldout_fraction: float) -> Documents:
    """The documents of a window without those that are held out for evaluation."""
    if heldout_fraction == 0:
        return documents
    train = [i for i, text in enumerate(documents.texts) if not is_heldout(text, heldout_fraction)]
    return replace(
        documents,
        texts=[documents.texts[i] for i in train],
        offsets=[documents.offsets[i] for i in train],
        members=[documents.members[i] for i in train] if documents.members else (),
    )


def is_heldout(text: str, fraction: float) -> bool:
    """Whether a document is held out for evaluation: by its text alone, so that its duplicates are, too."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64
