"""Compares the ids of a fast engine with `tokenizers`: at the start, and for a sample of the documents of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.randomness import chosen
from stream_pretrain.data.rows import parity_cache
from stream_pretrain.data.rows.engine import Engine
from stream_pretrain.data.rows.fast_engine import WITHOUT_IT, FastEngine
from stream_pretrain.errors import EngineError

BATCH_CHARACTERS = 1 << 18
"""Characters that are compared at once, which bounds the memory."""

SAMPLED = 1 / 2000
"""Probability that a document is compared: about 0.05 % of the bytes."""

FIRST_CHARACTERS = 1 << 16
"""Characters that all lanes compare before the first row of a run."""

_SHOWN = 40
"""Characters of a text that a message shows."""


def differing(engine: Engine, plain: Engine, texts: Iterable[str]) -> Iterator[int]:
    """Indices of texts with other ids, cut into pieces as in the stream. Raises: EngineError where the engine fails."""
    for first, batch in _batches(texts):
        ours, theirs = (_ids(one, batch) for one in (engine, plain))
        for number, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            if not np.array_equal(our, their):
                yield first + number


def refuse_other_ids(
    engine: Engine, texts: Sequence[str], key: Sequence[int], named: Callable[[int], str], *, first_characters: int = 0
) -> None:
    """Compare a sample of the documents of a window before its rows; a difference is stored in the parity cache.

    key: of the window; it decides the sample. named: the name of a document. first_characters: this part of the first
    documents is compared as well. Raises: EngineError with the name of a document.
    """
    if not isinstance(engine, FastEngine):
        return
    compared = {index: texts[index] for index in chosen(len(texts), SAMPLED, *key)}
    for index, text in enumerate(texts):
        if first_characters <= 0:
            break
        compared.setdefault(index, text[:first_characters])
        first_characters -= len(text)
    indices = list(compared)
    for number in differing(engine, engine.plain, compared.values()):
        index = indices[number]
        why = f"{engine.other_ids} for {excerpt(engine, engine.plain, compared[index])}"
        parity_cache.store(parity_cache.key_of(engine.serialized, engine.name, engine.version), why)
        raise EngineError(f"{named(index)}: {why}; {WITHOUT_IT}")


def _batches(texts: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Texts with the number of the first."""
    batch: list[str] = []
    first = characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield first, batch
            batch, first, characters = [], first + len(batch), 0
    if batch:
        yield first, batch


def _ids(engine: Engine, texts: Sequence[str]) -> list[NDArray[np.int32]]:
    """The ids of each text."""
    cut = [[text[begin:end] for begin, end in pairwise(engine.piece_edges(text))] for text in texts]
    continues = [piece > 0 for pieces in cut for piece in range(len(pieces))]
    ids, lengths = engine.encode(list(chain.from_iterable(cut)), continues)
    ends = np.cumsum(lengths)[np.cumsum([len(pieces) for pieces in cut]) - 1]
    return np.split(ids, ends[:-1])


def excerpt(engine: Engine, plain: Engine, text: str) -> str:
    """A short part of a text with a difference, for a message: escaped, with its code points."""

    def differs(part: str) -> bool:
        return next(differing(engine, plain, [part]), None) is not None

    halves = text
    while halves and len(text) > 1:
        middle = len(text) // 2
        halves = next((part for part in (text[:middle], text[middle:]) if differs(part)), "")
        text = halves or text
    for _ in range(min(len(text), _SHOWN) - 1):
        text = next((part for part in (text[1:], text[:-1]) if differs(part)), text)
    points = " ".join(f"U+{ord(character):04X}" for character in text[:_SHOWN] if not character.isascii())
    return ascii(text[:_SHOWN]) + (f" ({points})" if points else "")
