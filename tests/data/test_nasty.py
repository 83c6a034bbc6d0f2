"""Malformed and unusual files: one policy each, and every document that is not read is accounted for."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import tracemalloc
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import zstandard

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.document import ReadOptions
from stream_pretrain.data.documents.reader import open_reader, windows_of
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.errors import ContentError
from stream_pretrain.units import MIB

NASTY = Path(__file__).resolve().parents[3] / "shared" / "data" / "nasty"
MANIFEST = NASTY / "manifest.json"


@dataclass(frozen=True)
class Policy:
    """What reading a file gives: documents, skipped ones by reason, and how it ends."""

    documents: int
    skipped: dict[str, int] = field(default_factory=dict)
    offsets: tuple[int, ...] = ()
    """Of the skipped ones, in order."""
    error: str | None = None
    """A phrase of the ContentError that reading ends with."""


# Windows of 100 kB. A damaged shard gives the windows before the damage; the one it is met in is left out.
KINDS = ("a number", "an object with fields nested", "a boolean")
HOLDS_NO_TEXT = {f"field 'text' holds {kind}, not text": 2 for kind in KINDS}
EIGHTEEN_WITHOUT_TEXT = Policy(42, {**HOLDS_NO_TEXT, "no field text": 6, "text is null": 2, "text is blank": 4})
POLICIES = {
    "truncated.jsonl.zst": Policy(488, error="from uncompressed byte 786432 on: it is not finished where the shard ends"),
    "corrupt-middle.jsonl.zst": Policy(
        697,
        {"not JSON": 3},
        (756382, 759011, 760818),
        error="that begins at compressed byte 0 (uncompressed 0) cannot be decompressed from uncompressed byte 1048576 on",
    ),
    "corrupt-second-frame.jsonl.zst": Policy(202, error="frame that begins at compressed byte 80499 (uncompressed 360927)"),
    "bad-checksum.jsonl.zst": Policy(700, error="from uncompressed byte 1048576 on: Restored data doesn't match checksum"),
    "corrupt-no-checksum.jsonl.zst": Policy(1000),  # nothing in the file tells that five of the texts are wrong
    "zero-bytes.jsonl.zst": Policy(0),
    "empty-frame.jsonl.zst": Policy(0),
    "magic-only.jsonl.zst": Policy(0, error="it is not finished where the shard ends: the shard was cut short"),
    "garbage.jsonl.zst": Policy(0, error="no zstd frame begins at compressed byte 0"),
    "plain-named-zst.jsonl.zst": Policy(0, error="what is there looks like plain JSON text"),
    "gzip-named-zst.jsonl.zst": Policy(0, error="what is there looks like gzip"),
    "trailing-garbage.jsonl.zst": Policy(
        141, error="begins at compressed byte 69300 (uncompressed 298225); what is there looks"
    ),
    "html-error-page.jsonl.zst": Policy(0, error="what is there looks like an HTML page"),
    "git-lfs-pointer.jsonl.zst": Policy(0, error="looks like a Git LFS pointer in place of the data"),
    "multi-frame.jsonl.zst": Policy(1000),
    "skippable-frames.jsonl.zst": Policy(600),
    "empty-frames-between.jsonl.zst": Policy(400),
    "pzstd.jsonl.zst": Policy(8000),
    "no-content-size.jsonl.zst": Policy(1000),
    "long-27.jsonl.zst": Policy(1000),
    "long-28.jsonl.zst": Policy(1000),
    "long-30.jsonl.zst": Policy(1000),
    "long-31.jsonl.zst": Policy(1000),
    "level-22-ultra.jsonl.zst": Policy(1000),
    "concatenated-members.jsonl.gz": Policy(700),
    "truncated.jsonl.gz": Policy(700, error="from uncompressed byte 1024812 on: it is not finished where the shard ends"),
    "bad-crc.jsonl.gz": Policy(912, error="incorrect data check"),
    "bgzip-like.jsonl.gz": Policy(1000),
    "good.jsonl.xz": Policy(400),
    "good.jsonl.bz2": Policy(400),
    "good.jsonl.lz4": Policy(400),
    "concatenated.jsonl.bz2": Policy(400),
    "zero-bytes.jsonl": Policy(0),
    "only-blank-lines.jsonl": Policy(0),
    "blank-lines-between.jsonl": Policy(40),
    "crlf.jsonl": Policy(40),
    "bom.jsonl": Policy(40),
    "bom.jsonl.zst": Policy(40),
    "bom-midway.jsonl": Policy(39, {"not JSON": 1}, (37094,)),
    "no-final-newline.jsonl": Policy(40),
    "no-final-newline.jsonl.zst": Policy(40),
    "invalid-utf8.jsonl": Policy(37, {"not UTF-8": 3}, (5968, 31992, 48902)),
    "latin-1.jsonl": Policy(0, error="no document in its first window; 20 lines skipped, the first at byte 0: not UTF-8"),
    "utf-16.jsonl": Policy(0, error="is UTF-16, not UTF-8: convert it"),
    "invalid-json-lines.jsonl": Policy(34, {"not JSON": 6}, (3817, 9365, 20183, 33684, 39926, 49656)),
    "invalid-json-lines.jsonl.zst": Policy(34, {"not JSON": 6}, (3817, 9365, 20183, 33684, 39926, 49656)),
    "all-lines-bad.jsonl": Policy(0, error="no document in its first window; 200 lines skipped, the first at byte 0: not JSON"),
    "field-missing-null-or-not-text.jsonl": EIGHTEEN_WITHOUT_TEXT,
    "field-missing-null-or-not-text.jsonl.zst": EIGHTEEN_WITHOUT_TEXT,
    "json-values-not-objects.jsonl": Policy(10, {"not an object": 6, "no field text": 1}, (0, 11, 14, 19, 24, 32, 35)),
    "nested-field.jsonl": Policy(0, error="has no text in field 'text'; fields seen: id, doc.body.text, title. Name one with"),
    "other-field-content.jsonl.zst": Policy(0, error="has no text in field 'text'; fields seen: content, url. Name one with"),
    "schema-drift.jsonl.zst": Policy(600),
    "schema-drift-late.jsonl.zst": Policy(16000),
    "pile-style-meta.jsonl.zst": Policy(100),
    "duplicate-keys.jsonl": Policy(30),  # the last one counts
    "nan-infinity.jsonl": Policy(40),
    "huge-integers.jsonl": Policy(39, {"not JSON": 1}, (3958,)),
    "deep-nesting.jsonl": Policy(19, {"not JSON": 1}, (7151,)),
    "unicode-line-separators.jsonl": Policy(40),
    "nul-characters.jsonl": Policy(20, {"not JSON": 1}, (36307,)),
    "lone-surrogates.jsonl": Policy(
        1, {"text has lone surrogates": 10}, (0, 1644, 3369, 3733, 4910, 5828, 6196, 6955, 8763, 10292)
    ),
    "control-characters-raw.jsonl": Policy(10, {"not JSON": 2}, (0, 22)),
    "not-nfc-emoji-rtl.jsonl": Policy(9),
    "json-array-file.jsonl": Policy(0, error="is one JSON array, not JSON lines"),
    "pretty-printed.jsonl": Policy(0, error="has objects over several lines, not JSON lines"),
    "cr-only.jsonl": Policy(0, error="ends its lines with CR alone"),
    "two-objects-on-a-line.jsonl": Policy(10, {"not JSON": 1}, (0,)),
    "one-line.jsonl": Policy(1),
    "same-document-1000-times.jsonl.zst": Policy(1000),
    "one-50MB-document.jsonl.zst": Policy(21),
    "bomb-200MB-of-x.jsonl.zst": Policy(5, {"line too long": 1}, (0,)),
    "100k-tiny-documents.jsonl.zst": Policy(100_000),
    "wide-2000-fields.jsonl.zst": Policy(30),
}


def entries() -> dict[str, dict[str, Any]]:
    if not MANIFEST.exists():
        pytest.skip("needs the malformed files in ../shared/data/nasty")
    return {entry["file"]: entry for entry in json.loads(MANIFEST.read_text("utf-8"))["entries"]}


def shards_of(name: str) -> tuple[Shard, ...]:
    assert name in entries()
    return resolve(DataConfig(dataset=str(NASTY / name))).shards


def read(shard: Shard, text_field: str = "text") -> tuple[list[tuple[int, str]], list[tuple[int, str]], str | None]:
    """Texts and what was skipped, with their offsets, and the error that reading ended with."""
    options = ReadOptions(text_field, 100_000, 64 * MIB, TransportOptions())
    texts: list[tuple[int, str]] = []
    skipped: list[tuple[int, str]] = []
    try:
        for found in windows_of(shard, options):
            texts += zip(found.offsets, found.texts, strict=True)
            skipped += [(skip.offset, skip.reason) for skip in found.skips]
            skipped += [(one.offset, one.reason.split(";")[0]) for one in found.empty for _ in range(one.documents)]
    except ContentError as error:
        return texts, skipped, str(error)
    return texts, skipped, None


def test_every_file_has_a_policy() -> None:
    assert set(POLICIES) == {name for name in entries() if not name.endswith("/")}


@pytest.mark.parametrize("name", POLICIES)
def test_a_file_gives_its_documents_or_says_what_is_wrong_with_it(name: str) -> None:
    policy, entry = POLICIES[name], entries()[name]
    texts, skipped, error = read(shards_of(name)[0])
    assert len(texts) == policy.documents
    assert Counter(reason for _, reason in skipped) == policy.skipped
    assert not policy.offsets or tuple(offset for offset, _ in skipped) == policy.offsets
    bad = [offset for offset, reason in skipped if not reason.startswith(("no field", "text is null", "text is blank"))]
    assert len(set(bad)) == len(bad)
    if policy.error is None:
        assert error is None
        if "non_blank_lines" in entry:
            assert len(texts) + len(skipped) == entry["non_blank_lines"], "nothing is lost in silence"
    else:
        assert error is not None
        assert policy.error in error
        assert name in error
        assert "\n" not in error


def opened(path: Path) -> Any:
    """The content of a file, by the usual library for its compression."""
    match path.suffix:
        case ".zst":
            decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
            return decompressor.stream_reader(path.open("rb"), read_across_frames=True)
        case ".lz4":
            return pytest.importorskip("lz4.frame").open(path)
        case ending:
            return {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(ending, open)(path, "rb")


def content_of(path: Path) -> bytes:
    """The content up to about the damage."""
    pieces = []
    with opened(path) as file, suppress(zstandard.ZstdError, EOFError, OSError, zlib.error):
        while piece := file.read(4096):
            pieces.append(piece)
    return b"".join(pieces)


def lines_of(content: bytes) -> list[tuple[int, bytes]]:
    """The lines that are not blank, with their offsets; a mark of the byte order is no part of the first."""
    lines = content.split(b"\n")
    offsets = list(accumulate((len(line) + 1 for line in lines), initial=0))
    if content.startswith(b"\xef\xbb\xbf"):
        lines[0], offsets[0] = lines[0][3:], 3
    return [(offset, line) for offset, line in zip(offsets, lines, strict=False) if line.strip()]


def text_of(line: bytes) -> str | None:
    """The text of a line as Python's own json module finds it, where there is one that can be encoded again."""
    if len(line) > 64 * MIB:
        return None
    try:
        text = json.loads(line.decode())["text"]
        text = "\n\n".join(text) if isinstance(text, list) else text
        text.encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return str(text) if text.strip() else None


@pytest.mark.parametrize("name", POLICIES)
def test_the_texts_and_where_they_stand_are_those_that_other_programs_find(name: str) -> None:
    entry, path = entries()[name], NASTY / name
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(entry["sha256"]), "not the file of the manifest"
    lines = lines_of(content_of(path))
    found = [(offset, text_of(line)) for offset, line in lines]
    expected = [(offset, text) for offset, text in found if text is not None]
    texts, skipped, error = read(shards_of(name)[0])
    if error is None:
        assert texts == expected
        without = [offset for offset, text in found if text is None]
        assert {offset for offset, _ in skipped} <= set(without), "documents without text are named by the first of them"
        assert len(skipped) == len(without)
    else:  # how much comes before damage depends on the library
        known = min(len(texts), len(expected))
        assert texts[:known] == expected[:known]
        assert known >= 0.97 * len(texts)
    if "bad_lines" in entry:
        assert [offset for offset, _ in skipped] == [lines[number - 1][0] for number in entry["bad_lines"]]
    if "recovered_lines_equal_to_the_original" in entry:
        assert len(texts) <= entry["recovered_lines_equal_to_the_original"], "no text is wrong"


# Where a policy reads other documents than the manifest counts, on purpose.
ON_PURPOSE = {
    "field-missing-null-or-not-text.jsonl": 42,  # a list of texts is a text
    "field-missing-null-or-not-text.jsonl.zst": 42,
    "lone-surrogates.jsonl": 1,  # no tokenizer takes them
    "bomb-200MB-of-x.jsonl.zst": 5,  # one line is longer than --data.max-line-bytes
    "plain-named-zst.jsonl.zst": 0,  # the name is wrong
    "gzip-named-zst.jsonl.zst": 0,
    "trailing-garbage.jsonl.zst": 141,
}


@pytest.mark.parametrize("name", POLICIES)
def test_the_policy_agrees_with_the_manifest(name: str) -> None:
    entry = entries()[name]
    if "good_docs" in entry:
        assert POLICIES[name].documents == ON_PURPOSE.get(name, entry["good_docs"])
    else:
        assert POLICIES[name].error is not None


@pytest.mark.parametrize(
    ("name", "text_field"), [("nested-field.jsonl", "doc.body.text"), ("other-field-content.jsonl.zst", "content")]
)
def test_the_field_that_the_message_names_holds_the_documents(name: str, text_field: str) -> None:
    texts, skipped, error = read(shards_of(name)[0], text_field)
    assert (len(texts), skipped, error) == (40, [], None)


@pytest.mark.parametrize(
    "name", ["truncated.jsonl.zst", "corrupt-middle.jsonl.zst", "corrupt-second-frame.jsonl.zst", "truncated.jsonl.gz"]
)
@pytest.mark.parametrize("window_bytes", [5_000, 30_000])
def test_damage_is_met_at_the_same_place_after_a_resume(name: str, window_bytes: int) -> None:
    shard = shards_of(name)[0]
    options = ReadOptions("text", window_bytes, 64 * MIB, TransportOptions())
    whole, restart, block = open_reader(shard, options), RestartPoint(), 0
    whole.follow(Stripe(0), 0)
    expected = None
    while expected is None:
        resumed = open_reader(shard, options)
        resumed.follow(Stripe(0), block)
        try:
            found = whole.read(Stripe(0), block, restart)
        except ContentError as error:
            expected = str(error)
            with pytest.raises(ContentError) as again:
                resumed.read(Stripe(0), block, restart)
            assert str(again.value) == expected
        else:
            if block % 9 == 0:
                assert resumed.read(Stripe(0), block, restart) == found
            assert found is not None
            restart, block = found.restart, block + 1
    assert block > 10


def test_a_decompression_bomb_stays_small() -> None:
    shard = shards_of("bomb-200MB-of-x.jsonl.zst")[0]
    options = ReadOptions("text", 4 * MIB, 8 * MIB, TransportOptions())
    tracemalloc.start()
    try:
        windows = sum(1 for _ in windows_of(shard, options))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert windows == 48
    assert most < 40 * MIB


def test_a_folder_of_many_formats_gives_all_its_documents() -> None:
    shards = shards_of("mixed-folder/")
    assert [shard.name for shard in shards] == [
        "a.jsonl",
        "b.jsonl.gz",
        "c.jsonl.zst",
        "name with spaces & ümlaut [1].jsonl",
        "sub/d.jsonl.zst",
    ]
    assert [len(read(shard)[0]) for shard in shards] == [20, 20, 20, 20, 20]
