"""Names that are no text: file systems take any bytes, and Python has those that are not UTF-8 as lone surrogates."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_BYTES = re.compile("[\udc80-\udcff]")


def escaped(text: str) -> str:
    r"""The text with `\xe9` in place of a byte that is not UTF-8, as all that is shown or recorded has it."""
    return _BYTES.sub(lambda found: rf"\x{ord(found[0]) - 0xDC00:02x}", text)


def in_shell(words: Iterable[str]) -> str:
    """A command as a shell takes it."""
    return " ".join(shlex.quote(word) if escaped(word) == word else _quoted_bytes(word) for word in words)


def _quoted_bytes(word: str) -> str:
    return "$'" + escaped(word.replace("\\", r"\\").replace("'", r"\'")) + "'"


@contextmanager
def utf8_name(name: str) -> Iterator[str]:
    """As `utf8_path`, of what may be an id on the Hub in place of a folder."""
    with utf8_path(Path(name)) as path:
        yield name if path == Path(name) else str(path)


@contextmanager
def utf8_path(folder: Path) -> Iterator[Path]:
    """The folder by a path that is UTF-8, for libraries that open no other: where it is none, over a link."""
    if escaped(str(folder)) == str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / "folder"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link
