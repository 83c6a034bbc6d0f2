"""A fast engine that is broken on purpose: `tokenizers`, but for the texts with a word."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_pretrain.data.rows import encoder, engine_choice, installed_engines
from stream_pretrain.data.rows.engine import Text, decoded
from stream_pretrain.data.rows.fast_engine import documents_only
from stream_pretrain.data.rows.tokenizers_engine import TokenizersEngine


class Broken:
    """Takes the place of nanotoken."""

    name: ClassVar[str] = "nanotoken"
    word: ClassVar[str]

    @staticmethod
    def check(serialized: str) -> None: ...

    def __init__(self, serialized: str) -> None:
        self.plain = TokenizersEngine(documents_only(serialized))

    def encode(self, texts: Sequence[Text]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        return self.plain.encode([text.replace(self.word, "ball") for text in decoded(texts)])

    def forget(self) -> None: ...


def breaks_at(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine nanotoken have other ids than `tokenizers` for texts with a word."""
    monkeypatch.setattr(Broken, "word", word, raising=False)
    monkeypatch.setitem(encoder.FLAT, "nanotoken", Broken)
    for module in (encoder, engine_choice, installed_engines):
        monkeypatch.setattr(module, "version", lambda name: "0.1.0" if name == Broken.name else version(name))
