"""The engine of the package `nanotoken`: WordPiece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.rows.engine import Text
from stream_pretrain.data.rows.fast_engine import UnsupportedTokenizerError, documents_only, refuse_unknown_parts

_PARTS = frozenset(
    {
        *("BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"),
        *("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits"),
    }
)


class Nanotoken:
    """`nanotoken`, in the calling thread. It keeps up to a million words, about 200 MB."""

    name: ClassVar = "nanotoken"

    @staticmethod
    def check(serialized: str) -> None:
        refuse_unknown_parts(serialized, "WordPiece", _PARTS)

    def __init__(self, serialized: str) -> None:
        import nanotoken

        try:
            self.tokenizer = nanotoken.Tokenizer.from_json(documents_only(serialized)).backend
        except nanotoken.UnsupportedTokenizerError as error:
            raise UnsupportedTokenizerError(str(error)) from error

    def encode(self, texts: Sequence[Text]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        ids, ends = self.tokenizer.encode_batch(texts, add_special_tokens=False, parallel=False)
        return ids.view(np.int32), np.diff(ends)

    def forget(self) -> None:
        self.tokenizer.clear_cache()
