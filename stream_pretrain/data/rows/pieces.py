"""Where a long document is cut before it is tokenized: a pure function of its text and of the tokens that stay whole."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from tokenizers import AddedToken

PIECE_CHARACTERS = 65_536

# Written out, so that a cut does not depend on the Unicode version of Python: white space and punctuation that stands alone.
WHITE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

_SIGNS = (
    "!-/:-@\\[-`{-~\xa1-\xa9\xab-\xb1\xb4\xb6-\xb8\xbb\xbf\u2010-\u2027\u2030-\u205e"
    "\u3001-\u3003\u3008-\u3011\uff01-\uff0f\uff1a-\uff20"
)

_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"

_PLACES = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        rf".*[^{WHITE}{_SIGNS}](?=[{WHITE}])",  # behind a word that white space follows: there tokenizers split, all of them
        rf".*[^{WHITE}](?=[{WHITE}])",
        rf".*[^{WHITE}{_SIGNS}](?=[{_SIGNS}])",
        rf".*[{_IDEOGRAPHS}]",
    )
]

_JOINERS = re.compile("[\u0e33\u0eb3\u200c\u200d\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")

_FLAGS = re.compile("[\U0001f1e6-\U0001f1ff]")

_NEIGHBOURS = 8
"""Characters on either side that a normalizer may join across a cut."""

_LONGEST_RUN = 256
"""White space beside a token that takes it in is looked for so far."""


def piece_edges(text: str, whole: re.Pattern[str] | None = None) -> list[int]:
    """Where a document is cut into pieces: [0, ..., len(text)].

    Tokenizers slow down more than linearly on megabytes without white space, and a long document must not be
    tokenized whole for the few rows of one group. A cut is in front of the last white space of the second half of a
    piece; where there is none, in front of punctuation, behind an ideograph, or else between two characters that do not
    belong together. Nothing that `whole` matches is cut.
    """
    edges = [0]
    while len(text) - edges[-1] > PIECE_CHARACTERS:
        half, end = edges[-1] + PIECE_CHARACTERS // 2, edges[-1] + PIECE_CHARACTERS
        cut = _place(text, half, end)
        parted = None if whole is None else _parted(text, cut, whole)
        if parted is not None:
            cut = parted[0] if parted[0] > half else min(parted[1], end)
        edges.append(cut)
    edges.append(len(text))
    return edges


def kept_whole(tokens: Iterable[AddedToken]) -> re.Pattern[str] | None:
    """What no cut may part: added tokens that are recognised in a text, with what beside them decides that."""
    patterns = []
    for token in tokens:
        before = rf"[{WHITE}]*" if token.lstrip else r"\w*" if token.single_word else ""
        behind = rf"[{WHITE}]*" if token.rstrip else r"\w*" if token.single_word else ""
        content = re.escape(token.content)
        patterns.append(before + (f"(?i:{content})" if token.normalized else content) + behind)
    return re.compile("|".join(sorted(patterns, key=len, reverse=True))) if patterns else None


def _place(text: str, half: int, end: int) -> int:
    """The best place for a cut behind `half` and up to `end`."""
    for pattern in _PLACES:
        stop = end
        while (found := pattern.match(text, half, stop)) is not None:
            if _parts(text, found.end()):
                return found.end()
            stop = found.end() - 1
    return next((cut for cut in range(end, half, -1) if _parts(text, cut)), end)


def _parts(text: str, cut: int) -> bool:
    """Whether the characters on both sides of a cut have nothing to do with each other, for a normalizer or an eye."""
    before, behind = text[cut - 1], text[cut]
    if before.isascii() and behind.isascii():
        return before + behind != "\r\n"
    if before == "\u200d" or _JOINERS.match(behind) or unicodedata.category(behind)[0] == "M":
        return False
    if _FLAGS.match(before) and _FLAGS.match(behind):
        return False
    left, right = text[cut - _NEIGHBOURS : cut], text[cut : cut + _NEIGHBOURS]
    return all(
        unicodedata.normalize(form, left + right) == unicodedata.normalize(form, left) + unicodedata.normalize(form, right)
        for form in ("NFC", "NFKC")
    )


def _parted(text: str, cut: int, whole: re.Pattern[str]) -> tuple[int, int] | None:
    """Where what must stay whole begins and ends that a cut would part; None if it parts nothing."""
    reach = len(whole.pattern) + _LONGEST_RUN
    spans = (found.span() for found in whole.finditer(text, max(0, cut - reach), cut + reach))
    return next((span for span in spans if span[0] < cut < span[1]), None)
