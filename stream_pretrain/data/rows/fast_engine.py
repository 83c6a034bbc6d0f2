"""A tokenizer engine that is faster than `tokenizers` and gives the same ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain, compress, product
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.rows.engine import Text
from stream_pretrain.data.rows.tokenizers_engine import TokenizersEngine
from stream_pretrain.errors import EngineError

WITHOUT_IT = "the same command resumes with tokenizers"

_STEPS = ("normalizer", "pre_tokenizer")


class UnsupportedTokenizerError(ValueError):
    """An engine cannot be used for a tokenizer; the message completes "nanotoken does not support ..."."""


class Flat(Protocol):
    """A package that makes ids of whole texts."""

    name: ClassVar[str]
    """Of the package that pip takes."""

    @staticmethod
    def check(serialized: str) -> None:
        """Refuse a tokenizer, the JSON of `tokenizers`, by its parts; needs no package. Raises: UnsupportedTokenizerError."""

    def __init__(self, serialized: str) -> None:
        """Raises: UnsupportedTokenizerError where the package itself refuses it."""

    def encode(self, texts: Sequence[Text]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """As `Engine.encode`."""

    def forget(self) -> None:
        """Clear caches."""


class FastEngine:
    """A fast package for whole texts. Documents are cut by `tokenizers`, which also makes the ids of a piece that needs to know
    that it continues a document."""

    def __init__(self, serialized: str, flat: type[Flat], version: str) -> None:
        """serialized: the JSON of `tokenizers`. Raises: UnsupportedTokenizerError; EngineError where the package fails."""
        self.serialized = serialized
        try:
            self.flat = flat(serialized)
        except UnsupportedTokenizerError:
            raise
        except Exception as error:  # packages document no errors, and one may be installed and broken
            raise EngineError(f"{flat.name} {version} cannot be loaded: {error}; {WITHOUT_IT}") from error
        self.version = version
        self.plain = TokenizersEngine(serialized)

    @property
    def name(self) -> str:
        return self.flat.name

    @property
    def other_ids(self) -> str:
        """Start of a message, which a text follows."""
        return f"{self.name} {self.version} gives other ids than tokenizers {self.plain.version}"

    @property
    def depends_on_start(self) -> bool:
        return self.plain.depends_on_start

    def forget(self) -> None:
        self.flat.forget()
        self.plain.forget()

    def piece_edges(self, text: str) -> list[int]:
        return self.plain.piece_edges(text)

    def encode(self, texts: Sequence[Text], continues: Sequence[bool] = ()) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """As `Engine.encode`. Raises: EngineError where the package fails."""
        if not any(continues) or not self.depends_on_start:
            return self._of_flat(texts)
        ids, lengths = self._of_flat(["" if within else text for text, within in zip(texts, continues, strict=True)])
        parts = np.split(ids, np.cumsum(lengths)[:-1])
        for i in compress(range(len(texts)), continues):
            parts[i], lengths[i : i + 1] = self.plain.encode([texts[i]], [True])
        return np.concatenate(parts), lengths

    def _of_flat(self, texts: Sequence[Text]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        try:
            return self.flat.encode(texts)
        except Exception as error:  # packages document no errors
            raise EngineError(f"{self.name} {self.version} fails: {error}; {WITHOUT_IT}") from error


def documents_only(serialized: str) -> str:
    """The tokenizer, the JSON of `tokenizers`, without parts that do not affect the ids of documents.

    Special tokens are removed, so that their names in a text are text.
    """
    content: dict[str, Any] = json.loads(serialized)
    added = [token for token in content["added_tokens"] if not token["special"]]
    unused = dict.fromkeys(("post_processor", "decoder", "truncation", "padding"))
    return json.dumps({**content, **unused, "added_tokens": added}, ensure_ascii=False)


def refuse_unknown_parts(serialized: str, model: str, parts: frozenset[str]) -> None:
    """Refuse a tokenizer, the JSON of `tokenizers`, with other parts than these. Raises: UnsupportedTokenizerError."""
    content = json.loads(serialized)
    if content["model"]["type"] != model:
        raise UnsupportedTokenizerError(content["model"]["type"])
    for name in chain.from_iterable(_types(content[step]) for step in _STEPS):
        if name not in parts:
            raise UnsupportedTokenizerError(name)
    special = [token["content"] for token in content["added_tokens"] if token["special"]]
    others = [token["content"] for token in content["added_tokens"] if not token["special"]]
    for name, other in product(special, others):
        if _overlap(name.lower(), other.lower()):
            raise UnsupportedTokenizerError(f"added tokens that overlap, such as {other} and {name}")


def _overlap(special: str, other: str) -> bool:
    """Whether `other` may begin within a match of `special`, which `tokenizers` finds first, so that it misses both."""
    tails = (special[start:] for start in range(len(special)))
    return any(tail.startswith(other) or other.startswith(tail) for tail in tails)


def _types(stage: dict[str, Any] | None) -> Iterator[str]:
    """The type of a stage, or the types of its parts."""
    if stage is None:
        return
    if stage["type"] == "Sequence":
        for inner in stage.get("normalizers") or stage.get("pretokenizers") or ():
            yield from _types(inner)
    else:
        yield stage["type"]
