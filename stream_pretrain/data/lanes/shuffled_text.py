"""The texts of a window while they wait for their turn: in few bytes, and no longer than they are needed."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise

PART_CHARACTERS = 8192
"""Short texts are joined up to this, since each str takes 50 bytes more than its text."""


class ShuffledText:
    """Texts one behind the other, read once from the front. Parts of them that were read are dropped."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._parts: deque[tuple[int, str | bytes]] = deque()
        """Where each part stops, in characters, and what is in it."""
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
        """The texts between neighbouring edges: ascending counts of the characters in front, which no later call goes behind.

        No text that was given may lie across one of them.
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
        """Go on to the part that ends at an edge or behind it."""
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
