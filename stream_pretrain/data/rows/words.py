"""Word boundaries from token ids alone.

WordPiece: a token with the prefix ## continues a word, every other token begins one; equal to the tokenizer's `word_ids`.

Byte-level BPE and SentencePiece: a word is a run of letters, of digits or of other characters, with the space before it, as
in the pattern of GPT-2. Whether a token begins one follows from its first character and the last one of the token before. It
differs from `word_ids` on purpose where those serve masking badly: words of SentencePiece include punctuation, and are
sentences in scripts without spaces, where every token is a word here; those of GPT-2 end at combining marks (Hindi). It
differs by necessity in contractions and runs of white space: 0.1 to 0.6 % of the words of English prose, measured with the
tokenizer of GPT-2.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.errors import ModelError

CLASSES = 8

_CONTINUES, BEGINS_ALWAYS, _SPACE, _BLANK, _LETTER, _DIGIT, _SIGN, _UNSPACED = range(CLASSES)

# At the end of a token _SPACE is one, BEGINS_ALWAYS other white space. At its beginning _BLANK is spaces and nothing else.


def _begins(last: int, first: int) -> bool:
    """Whether a word begins at a token, given its first character and the last one of the token before it."""
    if first in (_CONTINUES, BEGINS_ALWAYS):
        return first == BEGINS_ALWAYS
    if first == _BLANK:
        return last not in (_SPACE, BEGINS_ALWAYS)
    return last != _SPACE and (last != first or first == _UNSPACED)


# At last * CLASSES + first.
BEGINS = np.array([_begins(last, first) for last in range(CLASSES) for first in range(CLASSES)])


def token_edges(tokenizer: Any, tokens: dict[str, int], vocabulary_size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """`opens` and `closes` of a vocabulary."""
    serialized = json.loads(tokenizer.backend_tokenizer.to_str())
    model = serialized["model"]
    stages = json.dumps([serialized["normalizer"], serialized["pre_tokenizer"], serialized["decoder"]], ensure_ascii=False)
    edges_of: Callable[[str], tuple[int, int]]
    if model["type"] == "WordPiece":
        prefix = model["continuing_subword_prefix"]

        def edges_of(token: str) -> tuple[int, int]:
            return (_CONTINUES if token.startswith(prefix) else BEGINS_ALWAYS), _LETTER
    elif model["type"] in ("BPE", "Unigram") and '"ByteLevel"' in stages:

        def edges_of(token: str) -> tuple[int, int]:
            return _edges(b"".join(_BYTE_LEVEL.get(character, character.encode()) for character in token))
    elif model["type"] in ("BPE", "Unigram") and "▁" in stages:

        def edges_of(token: str) -> tuple[int, int]:
            byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
            return _edges(bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode())
    else:
        raise ModelError(
            f"the ids of tokenizer {tokenizer.name_or_path} do not tell where words begin (not WordPiece, byte-level BPE or "
            "SentencePiece): use --objective.selection token"
        )
    edges = np.zeros((2, vocabulary_size), dtype=np.uint8)
    for token, token_id in tokens.items():
        edges[:, token_id] = edges_of(token)
    return edges[0], edges[1]


def _edges(text: bytes) -> tuple[int, int]:
    """Classes of the first and the last character of a token, which may begin or end inside a character."""
    inside = re.match(rb"[\x80-\xbf]*", text)
    assert inside is not None
    if inside.end() == len(text):
        return _CONTINUES, _LETTER
    # A truncated character is completed to one close by, nearly always of the same script.
    last = re.search(rb"[^\x80-\xbf][\x80-\xbf]*\Z", text)
    assert last is not None
    missing = max(0, _bytes_of_character(last[0][0]) - len(last[0]))
    whole = (text[inside.end() :] + b"\x80" * missing).decode(errors="replace")
    closes = _character_class(whole[-1])
    if inside.end() > 0:
        return _CONTINUES, closes
    if whole[0] == " ":
        return (BEGINS_ALWAYS if whole.strip(" ") else _BLANK), closes
    return _character_class(whole[0]), closes


def _bytes_of_character(first_byte: int) -> int:
    return 1 if first_byte < 0xC0 else 2 if first_byte < 0xE0 else 3 if first_byte < 0xF0 else 4


def _character_class(character: str) -> int:
    if character.isspace():
        return _SPACE if character == " " else BEGINS_ALWAYS
    category = unicodedata.category(character)
    if category[0] in "LM":
        return _UNSPACED if re.match(_UNSPACED_SCRIPTS, character) else _LETTER
    return _DIGIT if category[0] == "N" else _SIGN


# Thai, Lao, Tibetan, Myanmar, Khmer, Chinese and Japanese.
_UNSPACED_SCRIPTS = "[\u0e00-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\ua4cf\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"


def _byte_level_alphabet() -> dict[str, bytes]:
    """The character for each byte in byte-level BPE: itself where it is printable, else the next from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): bytes([byte]) for byte in printable} | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}


_BYTE_LEVEL = _byte_level_alphabet()
