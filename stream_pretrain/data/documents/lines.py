"""The reader of JSON lines and of text, whose document is a line, a paragraph or a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any

import orjson

from stream_pretrain.config import TextDocuments
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.csv_rows import HEAD_BYTES
from stream_pretrain.data.documents.document import DocumentReader, Documents, ReadOptions, Skip
from stream_pretrain.data.documents.filters import nothing_usable, usable_documents
from stream_pretrain.data.documents.json_files import json_fault
from stream_pretrain.data.documents.line_windows import BYTE_ORDER_MARK, LinePass, LineWindows
from stream_pretrain.data.documents.paragraph_and_file_windows import FilePass, ParagraphPass, one_document, paragraphs
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.documents.text_fields import (
    BLANK,
    NOT_UTF8,
    BadDocumentError,
    NoTextError,
    encodable,
    text_getter,
    wrong_field,
)
from stream_pretrain.data.transport.compression import CODECS, HTML, XML, binary_format, looks_like
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.errors import ContentError, SourceError


@dataclass(frozen=True)
class _Unit:
    """What a document is: a line, a paragraph or a file."""

    pass_over: type[LinePass]
    split: Callable[[bytes, int, int], Iterator[tuple[int, bytes]]]
    """(bytes of a window, their offset in the shard, most bytes of a line) -> documents with their offsets in the shard."""
    too_long: str


class LineDocuments(DocumentReader):
    """JSON lines (an object a line) or plain text (a document is a line, a paragraph or the file). Only LF ends a line."""

    def __init__(self, shard: Shard, options: ReadOptions) -> None:
        if shard.format == "text" and options.text_template is not None:
            raise SourceError(f"{shard.name}: a line of text has no fields for --data.text-template: leave the option out")
        self.shard = shard
        self.options = options
        self.unit = _UNITS[options.text_documents if shard.format == "text" else "line"]
        self.windows = LineWindows(
            self._open,
            self.unit.pass_over,
            compressed=shard.compression != "none",
            window_bytes=options.window_bytes,
            max_line_bytes=options.max_line_bytes,
            most_kept=options.most_kept,
        )
        self.text_of: Callable[[bytes], str] = plain_text if shard.format == "text" else json_text(options)

    def follow(self, stripe: Stripe, block: int) -> None:
        self.windows.follow(stripe, block)

    def leave(self, stripe: Stripe) -> bool:
        return self.windows.leave(stripe)

    def _open(self, restart: RestartPoint) -> ShardBytes:
        transport = self.options.transport
        if self.shard.compression == "none" and any(stripe.count > 1 for stripe in self.windows.next_of):
            # A stripe of a plain shard needs every k-th window: fetch that and its last line, not the windows between.
            window = self.options.window_bytes
            transport = replace(transport, block_bytes=min(transport.block_bytes, window + window // 16))
        return ShardBytes(self.shard.url, self.shard.compression, self.shard.size, restart, transport, self.shard.identity)

    def read(self, stripe: Stripe, block: int, restart: RestartPoint) -> Documents | None:
        window = self.windows.read(stripe, block, restart)
        if window is None:
            return None
        longest = self.options.max_line_bytes
        candidates = self.unit.split(window.lines, window.offset, longest)
        text_of = self.text_of if len(window.lines) <= longest else self._text_of_short
        documents = usable_documents(candidates, text_of, window.restart, self.options)
        documents = replace(documents, stored=window.stored, content_bytes=len(window.lines))
        if window.overlong is not None:
            documents.skips.append(Skip(window.overlong, self.unit.too_long))
        if block == 0:
            self._check_first_window(window.lines, documents)
        return documents

    def offset_of(self, block: int) -> int:
        return block * self.options.window_bytes

    def _text_of_short(self, line: bytes) -> str:
        if len(line) > self.options.max_line_bytes:
            raise BadDocumentError(self.unit.too_long)
        return self.text_of(line)

    def _head(self) -> bytes:
        """The first bytes of the content."""
        with closing(self._open(RestartPoint())) as content:
            return bytes(content.read()).removeprefix(BYTE_ORDER_MARK)[:HEAD_BYTES]

    def _check_first_window(self, lines: bytes, documents: Documents) -> None:
        is_first_too_long = bool(documents.skips) and not documents.texts and not lines.strip()  # it is not in `lines`
        content = self._head() if is_first_too_long else lines
        fault = other_encoding(content) or self._other_format(content[:512])
        if fault is None and self.shard.format == "jsonl":
            fault = self._json_fault(content, documents)
        if fault is None and nothing_usable(documents):
            first = documents.skips[0]
            fault = (
                f"no document in its first window; {len(documents.skips)} lines skipped, "
                f"the first at byte {first.offset}: {first.reason}"
            )
        if fault is not None:
            raise ContentError(f"{self.shard.name}: {fault}")

    def _other_format(self, head: bytes) -> str | None:
        """What the content of a compressed shard is, where it certainly is no text."""
        match binary_format(head):
            case None:
                return None
            case found if found in CODECS:
                return f"is compressed twice, its content is {found} again: decompress it once"
            case found:
                return f"holds {found}, not lines"

    def _json_fault(self, content: bytes, documents: Documents) -> str | None:
        bad = documents.all_bad
        fault = None
        if documents.skips or not documents.texts:
            fault = json_fault(content, self.shard, self.options.fields, usable=bool(documents.texts))
        if fault is None and bad is not None:
            fault = diagnose(content)
        return fault or wrong_field(_objects(content), self.options.fields, bad)


_SPLIT_AT_ONCE = 4096
"""Bytes. Short lines take less time to split together, long ones to find and to copy once."""


def lines_with_offsets(lines: bytes, offset: int, longest: int) -> Iterator[tuple[int, bytes]]:  # noqa: ARG001 (as `paragraphs`)
    """The lines that are not blank, with their offsets in the shard."""
    start = 0
    while start < len(lines):
        stop = lines.rfind(b"\n", start, start + _SPLIT_AT_ONCE)
        if stop < 0:
            stop = lines.find(b"\n", start + _SPLIT_AT_ONCE)
        found = lines[start : len(lines) if stop < 0 else stop]
        for line in found.split(b"\n") if len(found) < _SPLIT_AT_ONCE else (found,):
            if line and not line.isspace():
                yield offset + start, line
            start += len(line) + 1


_UNITS: dict[TextDocuments, _Unit] = {
    "line": _Unit(LinePass, lines_with_offsets, "line too long"),
    "blank-line": _Unit(ParagraphPass, paragraphs, "paragraph too long"),
    "file": _Unit(FilePass, one_document, "file too long"),
}


def plain_text(document: bytes) -> str:
    """The text of a document whose lines end in LF or CRLF, which becomes LF. Raises BadDocumentError, NoTextError."""
    try:
        text = document.removesuffix(b"\r").replace(b"\r\n", b"\n").decode()
    except UnicodeDecodeError:
        raise BadDocumentError(NOT_UTF8) from None
    if text.isspace():  # U+3000 and the like; a line that is blank in ASCII is no document
        raise NoTextError(BLANK)
    return text


def json_text(options: ReadOptions) -> Callable[[bytes], str]:
    """A function from a JSON line to its text; of duplicate keys, the last counts."""
    text_of = text_getter(options.text_field, options.text_template)

    def text_of_line(line: bytes) -> str:
        try:
            return text_of(orjson.loads(line))  # which refuses lone surrogates
        except orjson.JSONDecodeError:
            return encodable(text_of(_parse_leniently(line)))

    return text_of_line


def _objects(lines: bytes) -> Iterator[object]:
    """The values of the lines that are JSON."""
    for _, line in lines_with_offsets(lines, 0, 0):
        with suppress(BadDocumentError):
            yield _parse_leniently(line)


def _parse_leniently(line: bytes) -> Any:
    """JSON as Python writes it: NaN, Infinity, integers of any size and lone surrogates, which orjson refuses."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        raise BadDocumentError(NOT_UTF8) from None
    except (ValueError, RecursionError):
        raise BadDocumentError("not JSON") from None


def other_encoding(head: bytes) -> str | None:
    """What text is in place of UTF-8, by the first bytes of a shard: its mark, or zeros in every other byte."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "is UTF-32, not UTF-8: convert it"
    zeros = [head[first:200:2].count(0) for first in (0, 1)]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or (max(zeros) > 20 and min(zeros) < 5):
        return "is UTF-16, not UTF-8: convert it"
    return None


def diagnose(lines: bytes) -> str | None:
    """What is wrong with a .jsonl shard that starts without a usable line, and what to do; None where that is unknown."""
    first = lines[:65536].lstrip().split(b"\n", 1)[0].strip()
    if lines[:200].count(0) > 20:
        return "is UTF-16, not UTF-8: convert it"
    if b"\r" in first:
        return "ends its lines with CR alone: convert them to LF"
    found = looks_like(lines[:512])
    return f"looks like {found}, not JSON lines: fetch it again" if found in (HTML, XML) else None
