"""How a tokenizer's file is read for documents: never by chance, and with the special tokens that documents may use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import Tokenizer
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SpecialTokens = Literal["text", "keep"]

# What a model's settings call drawing at random: BPE that forgets merges, Unigram that samples from the best segmentations.
_CHANCE = ("dropout", "alpha", "nbest_size")
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_NAMED = 5
"""So many of the user's tokens are named in a line."""


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer as documents are read with it, in the JSON of `tokenizers`; the one that is exported stays as it came."""

    serialized: str
    kept: tuple[int, ...]
    """Ids of special tokens that are recognised in documents."""
    notes: tuple[str, ...]
    """What is read otherwise than the file says, one line each."""


def for_documents(tokenizer: PreTrainedTokenizerFast, special_tokens: SpecialTokens) -> TokenizerFile:
    """Read a loaded tokenizer's file for documents.

    special_tokens: what the special tokens of the user's own are in a document; those that the model itself has a use for
    (mask, separator, padding...) are always text.
    """
    serialized: str = tokenizer.backend_tokenizer.to_str()
    content = json.loads(serialized)
    chance = {name: value for name in _CHANCE if (value := content["model"].get(name))}
    content["model"].update(dict.fromkeys(chance))
    notes = [
        f"tokenizer {tokenizer.name_or_path}: {name} {value} draws at random and is switched off, so that a document has the "
        "same ids at every reading; exports keep it"
        for name, value in chance.items()
    ]
    roles = {str(getattr(tokenizer, role)) for role in _ROLES if getattr(tokenizer, role, None) is not None}
    own = [token for token in content["added_tokens"] if token["special"] and token["content"] not in roles]
    if own and special_tokens == "keep":
        for token in own:
            token["special"] = False  # to `tokenizers`: found in a text although its special tokens are not
        notes.append(f"special tokens in documents are tokens, never drawn as a random replacement: {_names(own)}")
    elif own:
        notes.append(
            f"special tokens in documents are read as text: {_names(own)}; --data.special-tokens keep has them as tokens"
        )
    elif special_tokens == "keep":
        notes.append(f"--data.special-tokens keep changes nothing: tokenizer {tokenizer.name_or_path} has none of your own")
    kept = own if special_tokens == "keep" else []
    changed = bool(chance or kept)
    return TokenizerFile(
        json.dumps(content, ensure_ascii=False) if changed else serialized,
        tuple(token["id"] for token in kept),
        tuple(notes),
    )


def _names(tokens: Sequence[dict[str, Any]]) -> str:
    names = [token["content"] for token in tokens]
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def stages_within_a_text(tokenizer: Tokenizer) -> tuple[Normalizer | None, PreTokenizer | None] | None:
    """Normalizer and pre-tokenizer for a text that goes on where another ended: nothing is put, or cut off, in front.

    None where they are the tokenizer's own.
    """
    own = [
        None if stage is None else json.loads(stage.__getstate__()) for stage in (tokenizer.normalizer, tokenizer.pre_tokenizer)
    ]
    within = [None if stage is None else _within(stage) for stage in own]
    if within == own:
        return None
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    stages: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": within[0],
        "pre_tokenizer": within[1],
        "model": empty,
    }
    built = Tokenizer.from_str(json.dumps(stages))
    return built.normalizer, built.pre_tokenizer


def _within(stage: dict[str, Any]) -> dict[str, Any] | None:
    """A stage without what it does to the beginning of a text; None where that is all it does."""
    match stage["type"]:
        case "Sequence":
            parts = "normalizers" if "normalizers" in stage else "pretokenizers"
            return {**stage, parts: [part for part in map(_within, stage[parts]) if part is not None]}
        case "Prepend":
            return None
        case "Strip":
            return {**stage, "strip_left": False}
        case "Metaspace":
            return {**stage, "prepend_scheme": "never"}
        case "ByteLevel" if "add_prefix_space" in stage:
            return {**stage, "add_prefix_space": False}
    return stage
