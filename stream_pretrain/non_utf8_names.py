"""File names that are not UTF-8: file systems take any bytes, which Python decodes to lone surrogates."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_BYTES = re.compile("[\udc80-\udcff]")


def escaped(text: str) -> str:
    r"""The text with `\xe9` for a byte that is not UTF-8, for messages and records."""
    return _BYTES.sub(lambda found: rf"\x{ord(found[0]) - 0xDC00:02x}", text)


def in_shell(words: Iterable[str]) -> str:
    """A command, quoted for a shell."""
    return " ".join(shlex.quote(word) if escaped(word) == word else _quoted_bytes(word) for word in words)


def _quoted_bytes(word: str) -> str:
    return "$'" + escaped(word.replace("\\", r"\\").replace("'", r"\'")) + "'"


@contextmanager
def utf8_name(name: str) -> Iterator[str]:
    """Like `utf8_path`, for a folder or a Hub id."""
    with utf8_path(Path(name)) as path:
        yield name if path == Path(name) else str(path)


@contextmanager
def utf8_path(folder: Path) -> Iterator[Path]:
    """A UTF-8 path of the folder, if need be by a link, for libraries that open no other."""
    if escaped(str(folder)) == str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / "folder"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link
