"""Cuts a long document into pieces for tokenization: a pure function of its text and of tokens that must not be cut."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from tokenizers import AddedToken

PIECE_CHARACTERS = 65_536

# Literal, so that cuts do not depend on the Unicode version of Python: white space and punctuation.
WHITE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

_SIGNS = (
    "!-/:-@\\[-`{-~\xa1-\xa9\xab-\xb1\xb4\xb6-\xb8\xbb\xbf\u2010-\u2027\u2030-\u205e"
    "\u3001-\u3003\u3008-\u3011\uff01-\uff0f\uff1a-\uff20"
)

_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"

_PLACES = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        rf".*[^{WHITE}{_SIGNS}](?=[{WHITE}])",  # after a word, before white space: every tokenizer splits there
        rf".*[^{WHITE}](?=[{WHITE}])",
        rf".*[^{WHITE}{_SIGNS}](?=[{_SIGNS}])",
        rf".*[{_IDEOGRAPHS}]",
    )
]

_JOINERS = re.compile("[\u0e33\u0eb3\u200c\u200d\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")

_FLAGS = re.compile("[\U0001f1e6-\U0001f1ff]")

_NEIGHBOURS = 8
"""Characters on either side that a normalizer may combine across a cut."""

_LONGEST_RUN = 256
"""The most white space beside a token that absorbs it."""


def piece_edges(text: str, uncut: re.Pattern[str] | None = None) -> list[int]:
    """Offsets that cut a document into pieces: [0, ..., len(text)].

    Tokenizers are slower than linear on megabytes without white space, and a group of a few rows should not tokenize all of a
    long document. A cut is before the last white space in the second half of a piece; where there is none, before
    punctuation, after an ideograph, or else between two characters that no normalizer combines. No match of `uncut` is cut.
    """
    edges = [0]
    while len(text) - edges[-1] > PIECE_CHARACTERS:
        half, end = edges[-1] + PIECE_CHARACTERS // 2, edges[-1] + PIECE_CHARACTERS
        cut = _place(text, half, end)
        span = None if uncut is None else _span_across(text, cut, uncut)
        if span is not None:
            cut = span[0] if span[0] > half else min(span[1], end)
        edges.append(cut)
    edges.append(len(text))
    return edges


def uncut_pattern(tokens: Iterable[AddedToken]) -> re.Pattern[str] | None:
    """Text that must not be cut: added tokens that are recognised in a text, with the context that they depend on."""
    patterns = []
    for token in tokens:
        before = rf"[{WHITE}]*" if token.lstrip else r"\w*" if token.single_word else ""
        after = rf"[{WHITE}]*" if token.rstrip else r"\w*" if token.single_word else ""
        content = re.escape(token.content)
        patterns.append(before + (f"(?i:{content})" if token.normalized else content) + after)
    return re.compile("|".join(sorted(patterns, key=len, reverse=True))) if patterns else None


def _place(text: str, half: int, end: int) -> int:
    """The best place for a cut after `half` and up to `end`."""
    for pattern in _PLACES:
        stop = end
        while (found := pattern.match(text, half, stop)) is not None:
            if _separates(text, found.end()):
                return found.end()
            stop = found.end() - 1
    return next((cut for cut in range(end, half, -1) if _separates(text, cut)), end)


def _separates(text: str, cut: int) -> bool:
    """Whether a cut separates no characters that a normalizer or a reader combines."""
    before, after = text[cut - 1], text[cut]
    if before.isascii() and after.isascii():
        return before + after != "\r\n"
    if before == "\u200d" or _JOINERS.match(after) or unicodedata.category(after)[0] == "M":
        return False
    if _FLAGS.match(before) and _FLAGS.match(after):
        return False
    left, right = text[cut - _NEIGHBOURS : cut], text[cut : cut + _NEIGHBOURS]
    return all(
        unicodedata.normalize(form, left + right) == unicodedata.normalize(form, left) + unicodedata.normalize(form, right)
        for form in ("NFC", "NFKC")
    )


def _span_across(text: str, cut: int, uncut: re.Pattern[str]) -> tuple[int, int] | None:
    """The span of a match that a cut would split; None if there is none."""
    reach = len(uncut.pattern) + _LONGEST_RUN
    spans = (found.span() for found in uncut.finditer(text, max(0, cut - reach), cut + reach))
    return next((span for span in spans if span[0] < cut < span[1]), None)
