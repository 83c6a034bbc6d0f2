"""The texts of a window until they are tokenized, in little memory."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise

from stream_pretrain.data.rows.engine import Text

PART_CHARACTERS = 8192
"""Texts are held in parts of at least this."""

SHORT_TEXT = 512
"""Characters. The texts of a part are joined where they are shorter on average, since each str takes 50 bytes more than its
text; others are not copied."""


class ShuffledText:
    """Texts that are read once, from the first to the last. Parts that were read are dropped."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._parts = deque[tuple[int, Text | list[Text]]]()
        """The number of texts in each part, and the texts: joined, or each by itself."""
        held: list[str] = []
        characters = 0
        for text in texts:
            held.append(text)
            characters += len(text)
            if characters >= PART_CHARACTERS:
                self._hold(held, characters)
                held, characters = [], 0
        self._hold(held, characters)

    def _hold(self, texts: list[str], characters: int) -> None:
        are_short = characters < SHORT_TEXT * len(texts)
        self._parts.append((len(texts), _compact("".join(texts)) if are_short else [_compact(text) for text in texts]))

    def take(self, edges: Sequence[int]) -> list[Text]:
        """The next texts, some as UTF-8. edges: where each begins, and where the last ends, as offsets in characters."""
        texts: list[Text] = []
        while (first := len(texts)) < len(edges) - 1:
            count, part = self._parts.popleft()
            stop = min(first + count, len(edges) - 1)
            rest: str | list[Text]
            if isinstance(part, list):
                texts += part[: stop - first]
                rest = part[stop - first :]
            else:
                whole, start = part if isinstance(part, str) else part.decode(), edges[first]
                texts += [whole[begin - start : end - start] for begin, end in pairwise(edges[first : stop + 1])]
                rest = whole[edges[stop] - start :]
            if stop < first + count:
                self._parts.appendleft((first + count - stop, rest))
        return texts


def _compact(text: str) -> Text:
    """A text as it is, or as UTF-8 where that is smaller: one character of a script makes all of a str wide."""
    if text.isascii():
        return text
    encoded = text.encode()
    return encoded if sys.getsizeof(encoded) < sys.getsizeof(text) else text
