"""The texts of a window until they are tokenized, in little memory."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise

PART_CHARACTERS = 8192
"""Short texts are joined up to this, since each str takes 50 bytes more than its text."""


class ShuffledText:
    """Consecutive texts, read once from the front. Parts that were read are dropped."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._parts: deque[tuple[int, str | bytes]] = deque()
        """The end of each part, in characters, and its text."""
        self._part = ""
        self._start = self._stop = 0  # of the part that is read
        held: list[str] = []
        start = stop = 0
        for text in texts:
            if stop - start + len(text) > PART_CHARACTERS:
                self._parts.append((stop, _compact("".join(held))))
                held, start = [], stop
            held.append(text)
            stop += len(text)
        self._parts.append((stop, _compact("".join(held))))

    def between(self, edges: Sequence[int]) -> list[str]:
        """The texts between neighbouring edges, which are offsets in characters; they ascend, also from call to call.

        No text that was given to the constructor may contain an edge.
        """
        texts: list[str] = []
        while len(texts) < len(edges) - 1:
            if edges[len(texts) + 1] > self._stop:
                self._open(edges[len(texts) + 1])
            part, start = self._part, self._start
            here = edges[len(texts) : bisect_right(edges, self._stop, len(texts) + 1)]
            texts += [part[begin - start : end - start] for begin, end in pairwise(here)]
        return texts

    def _open(self, edge: int) -> None:
        """Move to the part that ends at an edge or after it."""
        while self._stop < edge:
            self._start = self._stop
            self._stop, part = self._parts.popleft()
        self._part = part if isinstance(part, str) else part.decode()


def _compact(text: str) -> str | bytes:
    """A text as it is, or as UTF-8 where that is smaller: one character of a script makes all of a str wide."""
    if text.isascii():
        return text
    encoded = text.encode()
    return encoded if sys.getsizeof(encoded) < sys.getsizeof(text) else text
