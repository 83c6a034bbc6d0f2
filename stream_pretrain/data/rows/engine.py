"""The protocol of tokenizer engines: texts to flat ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Text = str | bytes
"""A text, or its UTF-8."""


class Engine(Protocol):
    """Tokenizes texts, as a pure function. One per reading process, used by one thread."""

    @property
    def name(self) -> str:
        """Name of the package; checkpoints record name and version."""

    @property
    def version(self) -> str: ...

    @property
    def depends_on_start(self) -> bool:
        """Whether a text has other ids at the start of a document than within it."""

    def encode(self, texts: Sequence[Text], continues: Sequence[bool] = ()) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Concatenated ids of all texts, int32 [tokens], and the number of tokens of each, int64 [texts].

        No special tokens are added, and their names in a text are text. continues: which texts continue a document; none
        if empty.
        """

    def piece_edges(self, text: str) -> list[int]:
        """Offsets that cut a long document into pieces: [0, ..., len(text)]; a pure function of the text."""

    def forget(self) -> None:
        """Clear caches."""


def decoded(texts: Iterable[Text]) -> list[str]:
    """The texts, for a package that takes no UTF-8."""
    return [text if isinstance(text, str) else text.decode() for text in texts]
