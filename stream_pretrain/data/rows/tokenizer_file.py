"""The tokenizer file, adapted to documents: deterministic, with the special tokens that documents may contain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import Tokenizer
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from stream_pretrain.units import first_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


SpecialTokens = Literal["text", "keep"]

# Settings that make a tokenizer random: BPE dropout, and sampling of Unigram segmentations.
_CHANCE = ("dropout", "alpha", "nbest_size")

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_MOST_NAMES = 5
"""Tokens named in a line."""


@dataclass(frozen=True)
class TokenizerFile:
    """The tokenizer for documents, in the JSON of `tokenizers`; exports keep the original."""

    serialized: str
    kept: tuple[int, ...]
    """Ids of special tokens that are recognised in documents."""
    notes: tuple[str, ...]
    """Differences from the original, one line each."""


def for_documents(tokenizer: PreTrainedTokenizerFast, special_tokens: SpecialTokens) -> TokenizerFile:
    """The tokenizer for documents, from a loaded one.

    special_tokens: how special tokens that the user added are read in a document. Those with a role in the model (mask,
    separator, padding...) are always text.
    """
    serialized: str = tokenizer.backend_tokenizer.to_str()
    content = json.loads(serialized)
    chance = {name: value for name in _CHANCE if (value := content["model"].get(name))}
    content["model"].update(dict.fromkeys(chance))
    notes = [
        f"tokenizer {tokenizer.name_or_path}: {name} {value} is random and switched off while documents are read; exports "
        "keep it"
        for name, value in chance.items()
    ]
    roles = _roles(tokenizer)
    not_special = [token for token in content["added_tokens"] if token["content"] in roles and not token["special"]]
    for token in not_special:
        token["special"] = True
    own = [token for token in content["added_tokens"] if token["special"] and token["content"] not in roles]
    if own and special_tokens == "keep":
        for token in own:
            token["special"] = False  # so `tokenizers` finds it in a text
        notes.append(f"special tokens in documents are tokens, never drawn as a random replacement: {_names(own)}")
    elif own:
        notes.append(
            f"special tokens in documents are read as text: {_names(own)}; --data.special-tokens keep reads them as tokens"
        )
    elif special_tokens == "keep":
        notes.append(f"--data.special-tokens keep changes nothing: tokenizer {tokenizer.name_or_path} has none of your own")
    kept = kept_tokens(tokenizer, special_tokens)
    changed = bool(chance or kept or not_special)
    return TokenizerFile(
        json.dumps(content, ensure_ascii=False) if changed else serialized,
        kept,
        tuple(notes),
    )


def kept_tokens(tokenizer: PreTrainedTokenizerFast, special_tokens: SpecialTokens) -> tuple[int, ...]:
    """Ids of special tokens that the user added, where documents keep them."""
    tokens, roles = tokenizer.added_tokens_decoder, _roles(tokenizer)
    own = (token_id for token_id, token in tokens.items() if token.special and token.content not in roles)
    return tuple(own) if special_tokens == "keep" else ()


def _roles(tokenizer: PreTrainedTokenizerFast) -> set[str]:
    """The special tokens with a role in the model."""
    return {str(getattr(tokenizer, role)) for role in _ROLES if getattr(tokenizer, role, None) is not None}


def _names(tokens: Sequence[dict[str, Any]]) -> str:
    return first_of([token["content"] for token in tokens], _MOST_NAMES)


def pieces_like_special_tokens(tokenizer: Tokenizer) -> list[str]:
    """Special tokens that the model also produces from text: Unigram, and BPE with such merges."""
    unknown = getattr(tokenizer.model, "unk_token", None)  # any text may become the unknown token
    found = []
    for token_id, token in tokenizer.get_added_tokens_decoder().items():
        texts = [token.content, f"a{token.content}a", f" {token.content} "]
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False) if token.special else []
        if token.content != unknown and any(token_id in encoding.ids for encoding in encodings):
            found.append(token.content)
    return found


def without_pieces(serialized: str, names: Sequence[str]) -> str:
    """The tokenizer with these pieces renamed to strings that no text contains; ids stay the same."""
    content = json.loads(serialized)
    model = content["model"]
    renamed = {name: f"\uffff{name}\uffff" for name in names}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(piece, piece): token_id for piece, token_id in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:
        inside = len(model.get("continuing_subword_prefix") or "")
        model["merges"] = [merge for merge in model["merges"] if not renamed.keys() & _pieces_of(merge, inside)]
    for token in content["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    return json.dumps(content, ensure_ascii=False)


def _pieces_of(merge: str | Sequence[str], inside: int) -> set[str]:
    """The two pieces of a merge and their result; inside: length of the prefix of a piece inside of a word."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return {first, second, first + second[inside:]}


def stages_within_a_text(tokenizer: Tokenizer) -> tuple[Normalizer | None, PreTokenizer | None] | None:
    """Normalizer and pre-tokenizer for a text that continues another: they add and strip nothing at its start.

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
    """A stage without its effect on the start of a text; None where it has no other effect."""
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
