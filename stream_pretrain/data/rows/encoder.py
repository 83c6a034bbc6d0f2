"""The properties of a tokenizer that rows need."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from stream_pretrain.data.rows.engine import Engine
from stream_pretrain.data.rows.fast_engine import FastEngine, Flat
from stream_pretrain.data.rows.fastokens_engine import Fastokens
from stream_pretrain.data.rows.gigatoken_engine import Gigatoken
from stream_pretrain.data.rows.nanotoken_engine import Nanotoken
from stream_pretrain.data.rows.tokenizer_file import SpecialTokens, for_documents, pieces_like_special_tokens, without_pieces
from stream_pretrain.data.rows.tokenizers_engine import TokenizersEngine, plain_tokenizer
from stream_pretrain.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


FLAT: dict[str, type[Flat]] = {flat.name: flat for flat in (Nanotoken, Fastokens, Gigatoken)}


@dataclass(frozen=True)
class Encoder:
    """The special tokens that frame segments, and the tokenizer that an engine is built from."""

    serialized: str
    """The JSON of `tokenizers`."""
    prefix: tuple[int, ...]
    """Ids before every segment, [CLS] for BERT."""
    suffix: tuple[int, ...]
    """Ids after every segment, [SEP] for BERT."""
    document_end: tuple[int, ...]
    """Ids after the last token of a document, end-of-text for causal models."""
    pad: int
    """Id of padding."""
    kept: tuple[int, ...] = ()
    """Ids of special tokens that the user added and documents may contain."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Differences from the tokenizer file, one line each."""
    engine: str = field(default="tokenizers", compare=False)
    """The package that tokenizes; it does not change the ids."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, special_tokens: SpecialTokens = "text") -> Encoder:
        """From a loaded fast tokenizer. An objective selects the special tokens that it uses (`framed`). Raises: ModelError."""
        file = for_documents(tokenizer, special_tokens)
        serialized, built = file.serialized, plain_tokenizer(file.serialized)
        pieces = pieces_like_special_tokens(built)
        if pieces:
            serialized = without_pieces(serialized, pieces)
        framed = built.encode("a", add_special_tokens=True)
        special = framed.special_tokens_mask
        if 0 not in special:
            raise ModelError(
                f"tokenizer {tokenizer.name_or_path} has neither a token for 'a' nor an unknown token: use another one"
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

    @property
    def framing(self) -> int:
        """Special tokens of a segment."""
        return len(self.prefix) + len(self.suffix)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything in the tokenizer that affects the ids."""
        content = json.loads(self.serialized)
        vocabulary = [content["model"].pop(name, None) for name in ("vocab", "merges")]
        special = [self.prefix, self.suffix, self.document_end, self.pad]
        hashed = json.dumps([special, vocabulary, _without_unset(content)], sort_keys=True)
        return hashlib.sha256(hashed.encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_built"}  # built where it is used

    def build(self) -> Engine:
        """The engine. It is built once: that may take seconds, and processes that are forked later share its memory."""
        return self._built

    @cached_property
    def _built(self) -> Engine:
        if self.engine == TokenizersEngine.name:
            return TokenizersEngine(self.serialized)
        return FastEngine(self.serialized, FLAT[self.engine], version(self.engine))


def _without_unset(value: Any) -> Any:
    """Settings without null and false values, which a later version of `tokenizers` may add."""
    if isinstance(value, dict):
        return {name: _without_unset(inner) for name, inner in value.items() if inner is not None and inner is not False}
    return [_without_unset(inner) for inner in value] if isinstance(value, list) else value
