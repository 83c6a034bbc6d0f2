"""Text to token ids, in batches: flat arrays from here on."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer, Normalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from stream_pretrain.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PIECE_CHARACTERS = 65_536
_UP_TO_LAST_SPACE = re.compile(r".*\s", re.DOTALL)
# Characters that a normalizer may change by what stands beside them, with short plain text between them: a call for each word
# of a text in another script would take longer than the table saves. Control characters are left out before accents are moved.
_NOT_PLAIN = re.compile(r"([^\t\n\r -~]+(?:[\t\n\r -~]{1,8}[^\t\n\r -~]+)*)")


def piece_edges(text: str) -> list[int]:
    """Where a long document is cut before it is tokenized: [0, ..., len(text)], a pure function of the text.

    Tokenizers slow down more than linearly on megabytes without white space, and a long document must not be
    tokenized whole for the few rows of one group. Cuts fall behind the last white space of the second half of a
    piece, where there is one.
    """
    edges = [0]
    while len(text) - edges[-1] > PIECE_CHARACTERS:
        half, end = edges[-1] + PIECE_CHARACTERS // 2, edges[-1] + PIECE_CHARACTERS
        found = _UP_TO_LAST_SPACE.match(text, half, end)
        edges.append(found.end() if found else end)
    edges.append(len(text))
    return edges


@dataclass(frozen=True)
class Encoder:
    """A tokenizer reduced to `texts -> flat ids`, and the special tokens a segment is framed with.

    It travels to worker processes as JSON text and is built there.
    """

    serialized: str
    prefix: tuple[int, ...]
    """Ids in front of every segment, [CLS] for BERT."""
    suffix: tuple[int, ...]
    """Ids behind every segment, [SEP] for BERT."""
    document_end: tuple[int, ...]
    """Ids behind the last token of a document, end-of-text for causal models."""
    pad: int
    """Id that fills the end of a row."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, *, causal: bool) -> Encoder:
        """From a loaded fast tokenizer. Causal models end documents, masked ones frame segments.

        Raises: ModelError where the tokenizer does not show what it frames a text with.
        """
        serialized: str = tokenizer.backend_tokenizer.to_str()
        framed = _build(serialized).encode("a", add_special_tokens=True)
        special = framed.special_tokens_mask
        if 0 not in special:
            raise ModelError(
                f"tokenizer {tokenizer.name_or_path}: it makes no token of 'a'; use one with a token for what is unknown"
            )
        first, last = special.index(0), len(special) - special[::-1].index(0)
        prefix, suffix = tuple(framed.ids[:first]), tuple(framed.ids[last:])
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
        return cls(
            serialized=serialized,
            prefix=prefix,
            suffix=() if causal else suffix,
            document_end=(end,) if causal and end is not None else (),
            pad=0 if pad is None else pad,
        )

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides the ids."""
        framing = [self.prefix, self.suffix, self.document_end, self.pad]
        return hashlib.sha256(f"{framing} {self.serialized}".encode()).hexdigest()

    def build(self) -> BatchTokenizer:
        """The tokenizer itself."""
        return BatchTokenizer(self.serialized)


def _build(serialized: str) -> Tokenizer:
    """A tokenizer that neither truncates nor pads, and to which special-token strings in a document are plain text."""
    tokenizer = Tokenizer.from_str(serialized)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


class BatchTokenizer:
    """A tokenizer from texts to flat ids."""

    def __init__(self, serialized: str) -> None:
        """serialized: as `tokenizers` writes it, JSON."""
        self.tokenizer = _build(serialized)
        self.normalize: Callable[[str], str] | None = None
        normalizer = self.tokenizer.normalizer
        of_bert = isinstance(normalizer, BertNormalizer) and isinstance(self.tokenizer.pre_tokenizer, BertPreTokenizer)
        # Added tokens may be looked for before the text is normalized, and other pre-tokenizers may ask where a piece was.
        if of_bert and all(token.special for token in self.tokenizer.get_added_tokens_decoder().values()):
            self.normalize = _bert_normalize(normalizer)
            self.tokenizer.normalizer = None

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids of all texts one after the other, int32 [tokens], and the number of tokens of each, int64 [texts]."""
        if self.normalize is not None:
            texts = list(map(self.normalize, texts))
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        return np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum())), lengths


def _bert_normalize(normalizer: Normalizer) -> Callable[[str], str]:
    """What BERT's normalizer makes of a text, sooner.

    It takes a third of the time of a tokenizer, since `tokenizers` keeps where each character came from. An ASCII
    character that is no control character it changes whatever stands beside it: a table does the same. Others are left to it.
    """
    ascii_table = {code: normalizer.normalize_str(chr(code)) or None for code in range(128)}

    def normalize(text: str) -> str:
        if text.isascii():
            return text.translate(ascii_table)
        runs = _NOT_PLAIN.split(text)  # plain ASCII and others by turns
        runs[::2] = [run.translate(ascii_table) for run in runs[::2]]
        runs[1::2] = map(normalizer.normalize_str, runs[1::2])
        return "".join(runs)

    return normalize
