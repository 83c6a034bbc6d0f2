"""The engine of the package `gigatoken`: BPE. Used by name only: its ids differ in rare scripts, and its cache grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.rows.engine import Text, decoded
from stream_pretrain.data.rows.fast_engine import UnsupportedTokenizerError, documents_only, refuse_unknown_parts

_PARTS = frozenset({"NFC", "Replace", "Prepend", "ByteLevel", "Split"})


class Gigatoken:
    """`gigatoken`, in the calling thread."""

    name: ClassVar = "gigatoken"

    @staticmethod
    def check(serialized: str) -> None:
        refuse_unknown_parts(serialized, "BPE", _PARTS)

    def __init__(self, serialized: str) -> None:
        from gigatoken.gigatoken_rs import load_hf_json

        self._load, self._content = load_hf_json, documents_only(serialized)
        try:
            self.tokenizer = load_hf_json(self._content)
        except RuntimeError as error:
            raise UnsupportedTokenizerError(str(error).splitlines()[0]) from error

    def encode(self, texts: Sequence[Text]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        layout = self.tokenizer.encode_batch(decoded(texts), parallel=False).layout
        ends = layout.offsets.data
        return layout.content.data[ends[0] : ends[-1]].view(np.int32), np.diff(ends)

    def forget(self) -> None:
        self.tokenizer = self._load(self._content)
