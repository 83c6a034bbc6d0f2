"""The engine of the package `fastokens`: byte-level BPE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.rows.engine import Text, decoded
from stream_pretrain.data.rows.fast_engine import UnsupportedTokenizerError, documents_only, refuse_unknown_parts

_PARTS = frozenset({"NFC", "Lowercase", "Replace", "Prepend", "ByteLevel", "Digits", "Split"})


class Fastokens:
    """`fastokens`. In a data worker it uses one thread, as RAYON_NUM_THREADS says."""

    name: ClassVar = "fastokens"

    @staticmethod
    def check(serialized: str) -> None:
        refuse_unknown_parts(serialized, "BPE", _PARTS)

    def __init__(self, serialized: str) -> None:
        import fastokens

        try:
            self.tokenizer = fastokens.Tokenizer.from_json_str(documents_only(serialized))
        except ValueError as error:
            raise UnsupportedTokenizerError(str(error)) from error

    def encode(self, texts: Sequence[Text]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        ids, ends = self.tokenizer.encode_batch_flat(decoded(texts))
        stops: NDArray[np.int64] = np.frombuffer(ends, dtype=np.int64)
        return np.frombuffer(ids, dtype=np.int32), np.diff(stops)

    def forget(self) -> None:
        """It has no cache to clear."""
