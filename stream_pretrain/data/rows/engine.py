"""Texts to flat ids: what makes them is behind one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """What makes the ids of texts: a pure function of them. A process that reads has one, and one thread uses it."""

    @property
    def name(self) -> str:
        """Of the library, as a package index knows it: checkpoints keep it with the version."""

    @property
    def version(self) -> str: ...

    @property
    def tells_beginnings(self) -> bool:
        """Whether the beginning of a text has other ids than the same characters further on."""

    def encode(self, texts: Sequence[str], goes_on: Sequence[bool] = ()) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids of all texts one after the other, int32 [tokens], and the number of tokens of each, int64 [texts].

        No special tokens are added, and their names in a text are text. goes_on: which of the texts are pieces of a
        document that is cut in front of them; none if empty.
        """

    def piece_edges(self, text: str) -> list[int]:
        """Where a long document is cut before it is tokenized: [0, ..., len(text)]; a pure function of the text."""

    def forget(self) -> None:
        """Drop what is remembered of texts, so that they are tokenized anew."""
