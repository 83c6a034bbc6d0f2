"""File names that are not UTF-8: file systems take any bytes, which Python decodes to lone surrogates."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

_BYTES = re.compile("[\udc80-\udcff]")


def escaped(text: str) -> str:
    r"""The text with `\xe9` for a byte that is not UTF-8, for messages and records."""
    return _BYTES.sub(lambda found: rf"\x{ord(found[0]) - 0xDC00:02x}", text)


def in_shell(words: Iterable[str]) -> str:
    """A command, quoted for a shell."""
    return " ".join(shlex.quote(word) if escaped(word) == word else _quoted_bytes(word) for word in words)


def _quoted_bytes(word: str) -> str:
    return "$'" + escaped(word.replace("\\", r"\\").replace("'", r"\'")) + "'"
