"""A tokenizer as rows are made with it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stream_pretrain.data.rows.engine import Engine
from stream_pretrain.data.rows.tokenizer_file import SpecialTokens, for_documents, pieces_like_special_tokens, without_pieces
from stream_pretrain.data.rows.tokenizers_engine import TokenizersEngine, plain_tokenizer
from stream_pretrain.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Encoder:
    """What a run needs of a tokenizer: the special tokens that frame segments, and what its engine is built from.

    It travels to worker processes, and each builds an engine of its own.
    """

    serialized: str
    """As `tokenizers` writes it, JSON."""
    prefix: tuple[int, ...]
    """Ids in front of every segment, [CLS] for BERT."""
    suffix: tuple[int, ...]
    """Ids behind every segment, [SEP] for BERT."""
    document_end: tuple[int, ...]
    """Ids behind the last token of a document, end-of-text for causal models."""
    pad: int
    """Id that fills the end of a row."""
    kept: tuple[int, ...] = ()
    """Ids of special tokens of the user's own that are recognised in documents."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What is read otherwise than the tokenizer's file says, one line each, to be shown once."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, special_tokens: SpecialTokens = "text") -> Encoder:
        """From a loaded fast tokenizer, with all it frames a text and ends a document with: an objective uses some of it.

        Raises: ModelError where the tokenizer does not show what it frames a text with.
        """
        file = for_documents(tokenizer, special_tokens)
        serialized, built = file.serialized, plain_tokenizer(file.serialized)
        pieces = pieces_like_special_tokens(built)
        if pieces:
            serialized = without_pieces(serialized, pieces)
        framed = built.encode("a", add_special_tokens=True)
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
            suffix=suffix,
            document_end=() if end is None else (end,),
            pad=0 if pad is None else pad,
            kept=file.kept,
            notes=file.notes,
        )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all in the tokenizer's file that decides the ids."""
        content = json.loads(self.serialized)
        vocabulary = [content["model"].pop(name, None) for name in ("vocab", "merges")]
        framing = [self.prefix, self.suffix, self.document_end, self.pad]
        said = json.dumps([framing, vocabulary, _what_is_set(content)], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()

    def build(self) -> Engine:
        """The engine that makes the ids."""
        return TokenizersEngine(self.serialized)


def _what_is_set(value: Any) -> Any:
    """Settings without those that are off: a later version of `tokenizers` may write some that there were not before."""
    if isinstance(value, dict):
        return {name: _what_is_set(inner) for name, inner in value.items() if inner is not None and inner is not False}
    return [_what_is_set(inner) for inner in value] if isinstance(value, list) else value
