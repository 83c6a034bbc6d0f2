"""Texts that engines are compared on: 5,000 fixed ones in all scripts, and some with the tokens of a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from stream_pretrain.data.randomness import PROBE, keyed_generator, uniform_uint32
from stream_pretrain.data.rows.tokenizer_probe import probe_texts

VERSION = 1
"""Raised when the texts change: results of comparisons are valid for these."""

COUNT = 5000

_LONGEST = 48
_MOST_DRAWS = 2 * COUNT * (1 + _LONGEST)
_MEGABYTE = 1 << 20

# Blocks of Unicode, literal, so that the texts do not depend on the Unicode version of Python; with unassigned code points.
_BLOCKS = (
    *((0x20, 0x7F), (0xA0, 0x250), (0x250, 0x300), (0x370, 0x400), (0x400, 0x530), (0x530, 0x590), (0x590, 0x600)),
    *((0x600, 0x700), (0x700, 0x750), (0x750, 0x800), (0x800, 0x8A0), (0x8A0, 0x900), (0x900, 0x980), (0x980, 0xA00)),
    *((0xA00, 0xA80), (0xA80, 0xB00), (0xB00, 0xB80), (0xB80, 0xC00), (0xC00, 0xC80), (0xC80, 0xD00), (0xD00, 0xD80)),
    *((0xD80, 0xE00), (0xE00, 0xE80), (0xE80, 0xF00), (0xF00, 0x1000), (0x1000, 0x10A0), (0x10A0, 0x1100)),
    *((0x1100, 0x1200), (0x1200, 0x13A0), (0x13A0, 0x1400), (0x1400, 0x1680), (0x1680, 0x1780), (0x1780, 0x1800)),
    *((0x1800, 0x1A00), (0x1A00, 0x1C00), (0x1C00, 0x1D00), (0x1D00, 0x1DC0), (0x1E00, 0x2000), (0x2000, 0x2070)),
    *((0x2070, 0x2190), (0x2190, 0x2400), (0x2400, 0x2600), (0x2600, 0x27C0), (0x27C0, 0x2C00), (0x2C00, 0x2E00)),
    *((0x2E00, 0x3040), (0x3040, 0x3100), (0x3100, 0x3400), (0x3400, 0x4E00), (0x4E00, 0xA000), (0xA000, 0xA700)),
    *((0xA700, 0xAC00), (0xAC00, 0xD7A4), (0xD7A4, 0xD800), (0xE000, 0xF900), (0xF900, 0xFB00), (0xFB00, 0xFE00)),
    *((0xFE00, 0xFF00), (0xFF00, 0x10000), (0x10000, 0x10800), (0x10800, 0x11000), (0x11000, 0x12000), (0x12000, 0x16000)),
    *((0x16000, 0x1B000), (0x1B000, 0x1D000), (0x1D000, 0x1E000), (0x1E000, 0x1F000), (0x1F000, 0x1FB00)),
    *((0x1FB00, 0x20000), (0x20000, 0x2EBF0), (0x2F800, 0x2FA20), (0x30000, 0x323B0), (0xE0000, 0xE01F0)),
)

# Characters and words that tokenizers treat specially; texts are drawn from one pool each.
_POOLS = (
    [*"aeioucnsyAEIOUCNSY", *map(chr, (*range(0x300, 0x370), *range(0x1AB0, 0x1AD0), *range(0x20D0, 0x20F1)))],
    [*"가각힣\u1112\u1161\u11ab\u3131", *map(chr, range(0x1100, 0x1200, 7)), *map(chr, range(0xAC00, 0xD7A4, 997)), " "],
    [*"中文漢字かなカナ、。ｶﾞ豈𠀀", *map(chr, range(0x4E00, 0xA000, 1009)), "a", "1", " ", "\u3000"],
    [*"👩👨👧🏳🏴❤✋1", "\u200d", "\ufe0f", "\u20e3", "🏽", "🇩🇪", "🇫🇷", "👩\u200d🔬", *map(chr, range(0xE0020, 0xE0080, 9))],
    [*"ab ", *map(chr, (*range(0x20), *range(0x7F, 0xA0))), "\xad", "\ufeff", "\u200b", "\u2060", "\u061c"],
    [
        *" \t\n\r\x0b\x0c\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000",
        *map(chr, range(0x2000, 0x200B)),
        *("\r\n", "    ", "a", "."),
    ],
    [*"0123456789.,-+%/:eE ", "٣", "۴", "५", "๖", "²", "½", "Ⅷ", "①", "𝟙", "1,234.5", "0x", "1e-9"],
    [
        *"אבגדשׁשּׂابتثلاﷺﻻ ",
        *map(chr, (*range(0x591, 0x5C8, 5), *range(0x64B, 0x660))),
        *("\u200e", "\u200f", "\u202e", "\u2067", "a"),
    ],
    [*"\ud7ff\ue000\uf8ff\ufdd0\ufffc\ufffd\ufffe\uffff\U0001ffff\U000effff\U0010ffff", "a", " "],
    [*"İıIiſsẞßKkÅåΣσςǅǆŉΐﬁﬂ", "i\u0307", "Ω", " "],
    ["'s", "'S", "'ll", "'LL", "'re", "'ve", "'d", "'t", "’s", "n't", "it", " I", "'", '"', "“", "x ", "ſ"],
    [*"!?.,;:()[]{}<>|\\/@#$%^&*-_=+~`'\"¿¡«»…–—·§¶†‡•", "a", " ", "\n"],
    [
        *("[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]", "<s>", "</s>", "<pad>", "<mask>", "<unk>", "<|endoftext|>"),
        *("[mask]", " ", "a"),
    ],
    ["<0x0A>", "##ing", "▁", "Ġ", "Ċ", "##", "[unused1]", "<|im_start|>", "<bos>", "<eos>", "<extra_id_0>", "\xa0", " ", "b"],
    [
        *("def ", "return", "    ", "\t", "\n", "{", "}", "_x", "CamelCase", "snake_case", "!=", "->", "::", "// "),
        *("#", "0xFF", ";"),
    ],
    [
        *("the ", "of", " and", "in", "un", "believ", "able", "ing ", "Tokeniz", "ation", "s", ".", ", ", "2024"),
        *("-", "e\u0301", "ü"),
    ],
)


def probes(own: Sequence[str] = ()) -> list[str]:
    """The fixed texts, and some with each of a tokenizer's `own` tokens."""
    texts = [*probe_texts(), "", _megabyte()]
    draws = iter(uniform_uint32(keyed_generator(PROBE, VERSION), _MOST_DRAWS).tolist())
    for number in range(COUNT - len(texts)):
        which, of_block = divmod(number, 2)
        if of_block:
            texts.append(_of_block(draws, *_BLOCKS[which % len(_BLOCKS)]))
        else:
            pool = _POOLS[which % len(_POOLS)]
            texts.append("".join(pool[next(draws) % len(pool)] for _ in range(1 + next(draws) % _LONGEST)))
    for token in own:
        texts += token, f"a{token}a", f" {token} ", f"{token}{token}", token.swapcase()
    return texts


def _of_block(draws: Iterator[int], first: int, stop: int) -> str:
    """Characters of a block, some of them replaced by a space, an ASCII letter, or a combining mark."""
    characters = []
    for _ in range(1 + next(draws) % _LONGEST):
        kind, number = next(draws) % 16, next(draws)
        others = {0: 0x20, 1: 0x20, 2: 0x61 + number % 26, 3: 0x301}
        characters.append(chr(others.get(kind, first + number % (stop - first))))
    return "".join(characters)


def _megabyte() -> str:
    """A word of a megabyte."""
    letters = uniform_uint32(keyed_generator(PROBE, VERSION, _MEGABYTE), _MEGABYTE) % 26 + ord("a")
    return letters.astype(np.uint8).tobytes().decode("ascii")
