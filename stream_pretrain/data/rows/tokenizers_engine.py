"""The engine of the package `tokenizers`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer, Normalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, PreTokenizer

from stream_pretrain.data.rows.engine import Text, decoded
from stream_pretrain.data.rows.pieces import WHITE, piece_edges, uncut_pattern
from stream_pretrain.data.rows.tokenizer_file import stages_within_a_text

# Characters that a normalizer may combine with their neighbours, with short plain text between them: a call per word of a text
# in another script would cost more than the table saves. BERT drops control characters before it strips accents.
_NOT_PLAIN = re.compile(r"([^\t\n\r -~]+(?:[\t\n\r -~]{1,8}[^\t\n\r -~]+)*)")


def plain_tokenizer(serialized: str) -> Tokenizer:
    """A tokenizer without truncation and padding, for which special-token strings in a document are text."""
    tokenizer = Tokenizer.from_str(serialized)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


class TokenizersEngine:
    """The engine of the library `tokenizers`."""

    name = "tokenizers"

    def __init__(self, serialized: str) -> None:
        """serialized: the JSON of `tokenizers`."""
        self.tokenizer = plain_tokenizer(serialized)
        self.normalize: Callable[[str], str] | None = None
        normalizer = self.tokenizer.normalizer
        added = self.tokenizer.get_added_tokens_decoder().values()
        self.uncut = uncut_pattern(token for token in added if not token.special)
        of_bert = isinstance(normalizer, BertNormalizer) and isinstance(self.tokenizer.pre_tokenizer, BertPreTokenizer)
        # Added tokens may be matched before normalization, and other pre-tokenizers may need original offsets.
        if of_bert and self.uncut is None:
            self.normalize = _bert_normalize(normalizer)
            self.tokenizer.normalizer = None

    @property
    def version(self) -> str:
        return tokenizers.__version__

    @property
    def depends_on_start(self) -> bool:
        return self.within is not None

    def forget(self) -> None:
        clear = getattr(self.tokenizer.model, "_clear_cache", None)
        if clear is not None:
            clear()

    def piece_edges(self, text: str) -> list[int]:
        return piece_edges(text, self.uncut)

    def encode(self, texts: Sequence[Text], continues: Sequence[bool] = ()) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        strings = decoded(texts)
        if any(continues) and self.within is not None:
            ids = self._ids(["" if within else text for text, within in zip(strings, continues, strict=True)])
            for i in itertools.compress(range(len(strings)), continues):
                ids[i] = self.within.ids(strings[i])
        else:
            ids = self._ids(strings)
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        return np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum())), lengths

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if self.normalize is not None:
            texts = list(map(self.normalize, texts))
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    @cached_property
    def within(self) -> WithinText | None:
        """The tokenizer of pieces that continue a document; None where they need no other."""
        stages = stages_within_a_text(self.tokenizer)
        if stages is None:
            return None
        return min((WithinText(self.tokenizer, stages, reach) for reach in _REACHES), key=WithinText.faults)


Reach = Literal["nothing", "piece", "word"]

_REACHES: tuple[Reach, ...] = ("nothing", "piece", "word")


@dataclass(frozen=True)
class WithinText:
    """A tokenizer for pieces that continue a text. Many tokenizers put a space before a text, some before every word."""

    tokenizer: Tokenizer
    """The one for complete texts."""
    stages: tuple[Normalizer | None, PreTokenizer | None]
    """Its stages without their effect on the start of a text..."""
    reach: Reach
    """...and the part of a piece they apply to: nothing, all of it, or the word that the cut splits."""

    def ids(self, text: str) -> list[int]:
        """Ids of a piece."""
        end = {"nothing": 0, "piece": len(text), "word": len(_WHITE.split(text, maxsplit=1)[0])}[self.reach]
        own = self.tokenizer.normalizer, self.tokenizer.pre_tokenizer
        self.tokenizer.normalizer, self.tokenizer.pre_tokenizer = self.stages
        head = self._encode(text[:end])
        self.tokenizer.normalizer, self.tokenizer.pre_tokenizer = own
        return head + self._encode(text[end:])

    def faults(self) -> int:
        """Number of test texts with other ids in two pieces: probed, since stages do not show their effect."""
        found = 0
        for first, second in _CUT_TEXTS:
            uncut, pieces = self._encode(first + second), self._encode(first) + self.ids(second)
            same_words = not _WHITE.match(second)  # cut inside of a word, the tokens differ, but not the text
            found += self.tokenizer.decode(uncut) != self.tokenizer.decode(pieces) if same_words else uncut != pieces
        return found

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


_WHITE = re.compile(f"[{WHITE}]")

_CUT_TEXTS = [
    ("a letter", " of a word, and more"),
    ("the end", "\nof a line"),
    ("two", "  spaces and\ta tab"),
    ("in a wo", "rd, and be hind it"),
    ("x", "x x"),
    ("สวัส", "ดีชาวโลก ก"),
    ("語", "文"),
    ("7", "8"),
]


def _bert_normalize(normalizer: Normalizer) -> Callable[[str], str]:
    """BERT's normalizer with a table for ASCII. It takes a third of the time of the tokenizer, since it tracks offsets.

    It maps an ASCII character, other than control characters, independently of its neighbours, as a table does.
    """
    ascii_table = {code: normalizer.normalize_str(chr(code)) or None for code in range(128)}

    def normalize(text: str) -> str:
        if text.isascii():
            return text.translate(ascii_table)
        runs = _NOT_PLAIN.split(text)  # plain ASCII at even indices, others at odd ones
        runs[::2] = [run.translate(ascii_table) for run in runs[::2]]
        runs[1::2] = map(normalizer.normalize_str, runs[1::2])
        return "".join(runs)

    return normalize
