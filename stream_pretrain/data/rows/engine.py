"""The protocol of tokenizer engines: texts to flat ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """Makes ids of texts, as a pure function. One per process that reads, used by one thread."""

    @property
    def name(self) -> str:
        """Of the package that makes the ids; checkpoints keep name and version."""

    @property
    def version(self) -> str: ...

    @property
    def tells_beginnings(self) -> bool:
        """Whether a text has other ids at the start of a document than inside of it."""

    def encode(self, texts: Sequence[str], continues: Sequence[bool] = ()) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Concatenated ids of all texts, int32 [tokens], and the number of tokens of each, int64 [texts].

        No special tokens are added, and their names in a text are text. continues: which texts continue a document; none
        if empty.
        """

    def piece_edges(self, text: str) -> list[int]:
        """Where a long document is cut into pieces: [0, ..., len(text)]; a pure function of the text."""

    def forget(self) -> None:
        """Clear caches."""
