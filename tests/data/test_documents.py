"""What becomes a document, what is skipped and why, and what is said of a shard that is not what it seems."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import re
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from stream_pretrain.data.documents import lines as line_documents
from stream_pretrain.data.documents.document import Skip
from stream_pretrain.data.documents.reader import open_reader
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.errors import ContentError, SourceError, TransportError
from tests.corpora import write_shard
from tests.data.shards import EVERY_WINDOW, OPTIONS, read, shard_of, windows_of


def lines(folder: Path, *content: bytes, name: str = "s.jsonl") -> Path:
    path = folder / name
    path.write_bytes(b"\n".join(content) + b"\n")
    return path


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{broken", "not JSON"),
        (b'{"text": "a"}{"text": "b"}', "not JSON"),
        (b'{"text": "tab\tinside"}', "not JSON"),
        (b'{"text": "\x00"}', "not JSON"),
        (b"\xef\xbb\xbf" + b'{"text": "a"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "\xed\xa0\x80"}', "not UTF-8"),
        (b"17", "not an object"),
        (b'["text"]', "not an object"),
        (b'{"text": 5}', "field 'text' holds a number, not text"),
        (b'{"text": "a \\ud800 b"}', "text has lone surrogates"),
        (b'{"text": "' + b"x" * (1 << 20) + b'"}', "line too long"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_line_skips_itself_and_nothing_else(tmp_path: Path, line: bytes, reason: str) -> None:
    path = lines(tmp_path, b'{"text": "before"}', line, b'{"text": "after"}')
    assert read(path) == ([(0, "before"), (19 + len(line) + 1, "after")], [Skip(19, reason)])


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"text": "a"}\r', "a"),
        (b' {"text": "a"} ', "a"),
        (b'{"text": "first", "text": "last"}', "last"),
        (b'{"text": "a", "n": [NaN, Infinity, -Infinity, 1e999]}', "a"),
        (b'{"text": "a", "n": 123456789012345678901234567890}', "a"),
        (b'{"n": ' + b"[" * 500 + b"]" * 500 + b', "text": "a"}', "a"),
        (b'{"text": "a", "other": "\\ud800"}', "a"),
        (b'{"text": "\\ud83d\\ude00"}', "\U0001f600"),
        ('{"text": "a\u2028b\x85c\u2029"}'.encode(), "a\u2028b\x85c\u2029"),
        (b'{"text": "nul \\u0000"}', "nul \x00"),
    ],
)
def test_what_is_unusual_but_clear_is_read(tmp_path: Path, line: bytes, text: str) -> None:
    assert read(lines(tmp_path, line)) == ([(0, text)], [])


def test_short_and_long_lines_in_any_order_are_found_at_their_offsets(tmp_path: Path) -> None:
    lengths = itertools.chain(*itertools.permutations([13, 4094, 4095, 4096, 4097, 9000], 3))
    texts = ["x" * (length - 12) for length in lengths]
    written = [json.dumps({"text": text}).encode() for text in texts]
    offsets = itertools.accumulate((len(line) + 1 for line in written), initial=0)
    assert read(lines(tmp_path, *written)) == (list(zip(offsets, texts, strict=False)), [])


def test_offsets_are_those_of_the_lines_in_the_uncompressed_shard(tmp_path: Path) -> None:
    content = b'\n\r\n{"text": "a"}\r\n   \n{"text": "b"}\nbad\n{"text": "c"}'
    path = tmp_path / "s.jsonl.gz"
    path.write_bytes(gzip.compress(content))
    for window_bytes in (1, 7, 20, 1000):
        texts, skips = read(path, window_bytes=window_bytes)
        assert (texts, skips) == ([(3, "a"), (22, "b"), (40, "c")], [Skip(36, "not JSON")])


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = lines(tmp_path, b"\xef\xbb\xbf" + b'{"text": "a"}', b'{"text": "b"}')
    assert read(path, window_bytes=4) == ([(3, "a"), (17, "b")], [])


def test_dots_reach_into_nested_objects(tmp_path: Path) -> None:
    path = lines(tmp_path, b'{"doc": {"body": {"text": "a"}}}', b'{"doc": {"body": {}}}', b'{"doc": "flat"}')
    assert read(path, text_field="doc.body.text") == ([(0, "a")], [Skip(55, "field 'doc' holds text, not an object")])
    (window,) = windows_of(path, text_field="doc.body.text")
    assert window.empty == (Skip(33, "no field doc.body.text; fields seen: none"),)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b'{"doc.text": "a"}', "doc.text"),
        (b'{"a.b": {"c.d": "a"}}', "a.b.c.d"),
        (b'{"a": {"b.c": "a"}}', "a.b.c"),
    ],
)
def test_names_may_have_dots_of_their_own(tmp_path: Path, line: bytes, field: str) -> None:
    path = lines(tmp_path, line, *9 * [b'{"n": 1}'])
    with pytest.raises(ContentError, match=rf"fields seen: {field}\. Name one"):
        read(path)
    assert read(path, text_field=field) == ([(0, "a")], [])


@pytest.mark.parametrize("other", ['"other"', "null", '{"c": "other"}', '{"text": "other"}'])
def test_a_name_with_a_dot_counts_before_a_field_of_its_first_part(tmp_path: Path, other: str) -> None:
    path = lines(tmp_path, f'{{"a": {other}, "a.text": "a"}}'.encode())
    assert read(path, text_field="a.text") == ([(0, "a")], [])


def test_a_line_of_a_text_file_is_a_document(tmp_path: Path) -> None:
    path = lines(tmp_path, b"one", b"", b"  two\r", b"\xff", '"três"'.encode(), name="s.txt")
    assert read(path) == ([(0, "one"), (5, "  two"), (14, '"três"')], [Skip(12, "not UTF-8")])


def test_lines_too_long_are_skipped_wherever_they_stand(tmp_path: Path) -> None:
    long = b'{"text": "' + b"x" * 100 + b'"}'
    path = lines(tmp_path, long, b'{"text": "a"}', long, long, b'{"text": "b"}', long)
    for window_bytes in (10, 113, 200, 10_000):
        texts, skips = read(path, window_bytes=window_bytes, max_line_bytes=50)
        assert texts == [(113, "a"), (353, "b")]
        assert skips == [Skip(offset, "line too long") for offset in (0, 127, 240, 367)]


NINE_BAD = [b"bad"] * 9


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([b'[{"text": "a"},', b'{"text": "b"}]'], "is one JSON array, not JSON lines: jq -c '.[]' s.jsonl > s.lines.jsonl"),
        ([b"{", b'  "text": "a"', b"}"], "has objects over several lines, not JSON lines: jq -c . s.jsonl > s.lines.jsonl"),
        ([b'{"id": 1,', b' "text": "a"}'], "has objects over several lines, not JSON lines: jq -c . s.jsonl > s.lines.jsonl"),
        ([b'{"text": "a"}\r{"text": "b"}\r'], "ends its lines with CR alone: convert them to LF"),
        (['{"text": "a"}'.encode("utf-16")], "is UTF-16, not UTF-8: convert it"),
        (['{"text": "a long one"}'.encode("utf-16-be")], "is UTF-16, not UTF-8: convert it"),
        (
            10 * [b'{"id": 1, "doc": {"body": "a", "n": {"x": 1}}}'],
            "has no text in field 'text'; fields seen: id, doc.body, doc.n.x. "
            "Name one with --data.text-field, or several with --data.text-template",
        ),
        (
            [b'{"text": {"en": "a"}}'],
            "field 'text' holds an object with fields en, not text; fields seen: text.en. "
            "Name one with --data.text-field, or several with --data.text-template",
        ),
        ([*NINE_BAD, b"bad"], "no document in its first window; 10 lines skipped, the first at byte 0: not JSON"),
        ([b'{"text": "a"}{"text": "b"}'], "has several objects on a line, not JSON lines: jq -c . s.jsonl > s.lines.jsonl"),
        (
            [b'{"text": "a"} {"text": "b"}' * 2000],
            "has several objects on a line, not JSON lines: jq -c . s.jsonl > s.lines.jsonl",
        ),
        ([b"<!DOCTYPE html>", b"<p>Log in</p>"], "looks like an HTML page, not JSON lines: fetch it again"),
        ([b"<?xml version='1.0'?><Error/>"], "looks like an XML answer of a server, not JSON lines: fetch it again"),
        (['{"text": "a"}'.encode("utf-32")], "is UTF-32, not UTF-8: convert it"),
    ],
)
def test_a_shard_that_is_not_what_it_seems_is_named_with_what_it_is(tmp_path: Path, content: list[bytes], said: str) -> None:
    with pytest.raises(ContentError) as error:
        read(lines(tmp_path, *content))
    assert str(error.value) == f"s.jsonl: {said}"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("s.jsonl.gz", gzip.compress(gzip.compress(b'{"text": "a"}')), "is compressed twice, its content is gzip again"),
        ("s.txt.gz", gzip.compress(zstandard.compress(b"a\nb")), "is compressed twice, its content is zstd again"),
        ("s.jsonl.zst", zstandard.compress(b"PAR1" + bytes(range(256))), "holds Parquet, not lines"),
        (
            "s.jsonl.gz",
            gzip.compress(b"a.jsonl".ljust(257, b"\0") + b'ustar\0\n{"text": "a"}\n'),
            "holds a tar archive, not lines",
        ),
        ("s.txt", "plain words\nand more\n".encode("utf-16-le") * 9, "is UTF-16, not UTF-8: convert it"),
    ],
)
def test_content_that_is_no_text_is_named_though_some_of_its_lines_may_be(
    name: str, content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ContentError, match=rf"^{name}: {said}"):
        read(tmp_path / name)


def test_a_line_of_several_objects_that_is_longer_than_allowed_is_not_one_bad_line(tmp_path: Path) -> None:
    path = lines(tmp_path, b'{"text": "a"}' * 1000)
    with pytest.raises(ContentError, match=r"^s\.jsonl: has several objects on a line, not JSON lines: jq -c"):
        read(path, max_line_bytes=1000)


def test_blank_lines_in_front_of_the_documents_are_not_looked_at_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []
    monkeypatch.setattr(line_documents.json, "loads", parsed.append)
    path = lines(tmp_path, *[b""] * 9000, b'{"text": "a"}')
    assert read(path) == ([(9000, "a")], [])
    assert len(parsed) == 1


def test_a_few_bad_lines_at_the_start_of_a_shard_are_only_counted(tmp_path: Path) -> None:
    path = lines(tmp_path, *NINE_BAD, b'{"text": "far behind"}')
    assert read(path, window_bytes=36) == ([(36, "far behind")], [Skip(4 * i, "not JSON") for i in range(9)])


def test_a_text_file_in_utf_16_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.txt"
    path.write_bytes("plain words\nand more\n".encode("utf-16"))
    with pytest.raises(ContentError, match=r"^s.txt: is UTF-16, not UTF-8: convert it$"):
        read(path)


def test_a_template_is_refused_for_a_text_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^s\.txt: a line of text has no fields for --data.text-template: leave"):
        read(lines(tmp_path, b"a", name="s.txt"), text_template="{text}")


def test_a_text_file_is_never_taken_for_bad_json(tmp_path: Path) -> None:
    path = lines(tmp_path, b"[\xff", name="s.txt")
    assert read(path) == ([], [Skip(0, "not UTF-8")])


def test_lanes_of_a_process_decompress_a_shared_shard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_shard(tmp_path / "s", [f"document {i}" for i in range(500)], "zst")
    opened = []
    monkeypatch.setattr(line_documents, "ShardBytes", lambda *args: opened.append(args) or ShardBytes(*args))
    reader = open_reader(shard_of(path), replace(OPTIONS, window_bytes=1000))
    stripes = [Stripe(0, first, 3) for first in range(3)]
    for stripe in stripes:
        reader.follow(stripe, stripe.first)
    texts, block = [], 0
    while (found := reader.read(stripes[block % 3], block, RestartPoint())) is not None:
        texts += found.texts
        block += 1
    assert texts == [f"document {i}" for i in range(500)]
    assert block > 10
    assert len(opened) == 1


def parquet(folder: Path, table: pa.Table, rows_in_group: int) -> Path:
    path = folder / "s.parquet"
    pq.write_table(table, path, row_group_size=rows_in_group, compression="none", use_dictionary=False)
    return path


def test_a_parquet_window_is_a_row_group_or_a_part_of_one(tmp_path: Path) -> None:
    path = parquet(tmp_path, pa.table({"id": range(5), "text": ["a" * 100, None, "b" * 100, " ", "c"]}), 3)
    assert [(w.offsets, w.empty) for w in windows_of(path, window_bytes=450)] == [
        ([0, 2], (Skip(1, "text is null"),)),
        ([4], (Skip(3, "text is blank"),)),
    ]
    parts = windows_of(path, window_bytes=80)
    assert [w.offsets + [skip.offset for skip in w.empty] for w in parts] == [[0], [1], [2], [4, 3]]
    striped = windows_of(path, Stripe(0, 1, 2), window_bytes=80)
    assert [(w.texts, w.offsets) for w in striped] == [([], []), (["c"], [4])]


def test_a_nested_parquet_column_is_read(tmp_path: Path) -> None:
    rows = [{"body": {"text": "a", "n": 1}}, {"body": None}, None, {"body": {"text": "b", "n": 2}}]
    path = parquet(tmp_path, pa.table({"doc": pa.array(rows)}), 10)
    (window,) = windows_of(path, text_field="doc.body.text")
    assert (window.offsets, window.texts, window.skips) == ([0, 3], ["a", "b"], [])
    assert window.empty == (Skip(1, "text is null", 2),)


def test_a_parquet_text_that_is_not_utf_8_skips_itself(tmp_path: Path) -> None:
    path = parquet(tmp_path, pa.table({"text": ["before", "QQQQQ", "after"]}), 10)
    path.write_bytes(path.read_bytes().replace(b"QQQQQ", b"QQ\xff\xffQ"))
    assert read(path) == ([(0, "before"), (2, "after")], [Skip(1, "not UTF-8")])


def test_a_parquet_shard_without_the_field_names_those_it_has(tmp_path: Path) -> None:
    path = parquet(tmp_path, pa.table({"id": [1], "doc": [{"body": "a"}]}), 10)
    with pytest.raises(ContentError, match=r"^s.parquet: has no text in field 'text'; fields seen: id, doc.body. Name one"):
        read(path)


def test_a_parquet_column_may_have_a_dot_in_its_name(tmp_path: Path) -> None:
    path = parquet(tmp_path, pa.table({"doc.text": ["a", "b"]}), 10)
    assert read(path, text_field="doc.text") == ([(0, "a"), (1, "b")], [])


def test_a_truncated_parquet_file_is_damage(tmp_path: Path) -> None:
    path = parquet(tmp_path, pa.table({"text": ["a"] * 100}), 10)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ContentError, match=r"^s.parquet: is no whole Parquet file \("):
        read(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"text": "a"}\n' * 9, "plain JSON text"),
        (gzip.compress(b"a", mtime=0), "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer in place of the data (run `git lfs pull`"),
    ],
)
def test_another_format_that_is_named_parquet_is_called_by_its_name(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "s.parquet").write_bytes(content)
    with pytest.raises(ContentError, match=f"^s.parquet: is no Parquet file: it looks like {re.escape(found)}"):
        read(tmp_path / "s.parquet")


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_a_damaged_parquet_row_group_is_damage_and_named(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "s.parquet"
    table = pa.table({"text": [f"text {i} " * 50 for i in range(200)]})
    pq.write_table(table, path, row_group_size=100, compression=compression, use_dictionary=False)
    column = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    content[middle : middle + 20] = b"\xff" * 20
    path.write_bytes(content)
    reader = open_reader(shard_of(path), replace(OPTIONS, window_bytes=60_000))
    reader.follow(EVERY_WINDOW, 0)
    first = reader.read(EVERY_WINDOW, 0, RestartPoint())
    assert first is not None
    assert len(first.texts) == 100
    with pytest.raises(ContentError, match=r"^s.parquet: row group 1 is damaged \("):
        reader.read(EVERY_WINDOW, 1, RestartPoint())
    joined = open_reader(shard_of(path), OPTIONS)
    joined.follow(EVERY_WINDOW, 0)
    with pytest.raises(ContentError, match=r"^s.parquet: row groups 0 to 1 are damaged \("):
        joined.read(EVERY_WINDOW, 0, RestartPoint())


def test_a_parquet_file_that_cannot_be_had_is_no_damage(tmp_path: Path) -> None:
    path = parquet(tmp_path, pa.table({"text": ["a"]}), 10)
    shard = shard_of(path)
    path.unlink()
    reader = open_reader(shard, OPTIONS)
    reader.follow(EVERY_WINDOW, 0)
    with pytest.raises(TransportError, match=r"s\.parquet: is not there: restore it, or leave it out"):
        reader.read(EVERY_WINDOW, 0, RestartPoint())


def test_examples_are_read_in_windows_of_a_thousand(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("id,text\n" + "".join(f'{i},"text, {i}"\n' for i in range(2500)) + "2500,\n")
    assert [len(window.texts) for window in windows_of(path)] == [1000, 1000, 500]
    texts, skips = read(path)
    assert texts == [(i, f"text, {i}") for i in range(2500)]
    assert skips == []
    assert windows_of(path)[2].empty == (Skip(2500, "text is blank"),)
    assert [window.offsets[0] for window in windows_of(path, Stripe(0, 1, 2))] == [1000]
    assert [window.offsets[0] for window in windows_of(path, Stripe(0, 0, 2))] == [0, 2000]


def test_text_of_a_csv_file_stays_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("text,id\nNA,1\n007,2\nnull,3\ntrue,4\n1e3,5\n")
    assert windows_of(path)[0].texts == ["NA", "007", "null", "true", "1e3"]
    assert windows_of(path, text_template="{id}: {text}")[0].texts == ["1: NA", "2: 007", "3: null", "4: true", "5: 1e3"]


def test_a_column_of_a_wide_csv_file_may_be_blank_or_change_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    header = ",".join(["text", *(f"column {number}" for number in range(300))])
    rows = (f"text {row}{f',{row}' * 300 if row < 2_500 else ',,x' * 150}\n" for row in range(3_000))
    path.write_text(f"{header}\n{''.join(rows)}")
    assert [len(window.texts) for window in windows_of(path)] == [1000] * 3


def test_a_tar_file_cut_between_two_of_its_files_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(20):
            member = tarfile.TarInfo(f"{number:02d}.txt")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"text"))
    assert len(windows_of(path, text_field="txt")[0].texts) == 20
    path.write_bytes(path.read_bytes()[: 2 * tarfile.BLOCKSIZE * 12])  # a header and a block of content each
    with pytest.raises(ContentError, match=r"^s.tar: its end of archive is missing: the shard was cut short$"):
        windows_of(path, text_field="txt")


@pytest.mark.parametrize("name", ["s.csv", "s.arrow", "s.tar"])
def test_a_file_of_no_bytes_is_a_shard_without_documents_in_every_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert read(tmp_path / name) == ([], [])


@pytest.mark.parametrize("name", ["s.tsv.gz", "s.TSV.gz"])
def test_a_tsv_file_is_cut_at_tabs(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"id\ttext\n1\tone, two\n2\tthree\n"))
    assert read(path) == ([(0, "one, two"), (1, "three")], [])


def test_examples_without_the_field_name_those_they_have(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("id,body\n1,one\n")
    with pytest.raises(ContentError, match=r"^s.csv: has no text in field 'text'; fields seen: id, body. Name one"):
        read(path)


def test_what_datasets_cannot_read_is_said_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text('id,text\n1,one\n2,"a",b,c\n')
    with pytest.raises(SourceError, match=r"^s.csv: `datasets` \(csv\) cannot read it: \w+: .*") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_a_shard_that_datasets_cannot_parse_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "s.csv.gz"
    path.write_bytes(gzip.compress(b"text\n" + b"".join(b"text %d\n" % i for i in range(2500)))[:-100])
    with pytest.raises(ContentError, match=r"s.csv.gz: the gzip member .* cannot be decompressed .*: the shard was cut short"):
        read(path)
    path.write_bytes(gzip.compress(b'text\n"a"\nb,c\n'))
    with pytest.raises(ContentError, match=r"^s.csv.gz: `datasets` \(csv\) cannot read it: ParserError"):
        read(path)


def test_a_package_that_datasets_misses_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.csv"
    path.write_text("text\na\n")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SourceError, match=r"^s.csv: `datasets` \(csv\) cannot read it: \w*Error: ") as error:
        read(path)
    assert not isinstance(error.value, ContentError)


def test_datasets_is_not_given_a_shard_of_another_size_than_listed(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("text\na\nb\n")
    reader = open_reader(replace(shard_of(path), size=20), OPTIONS)
    reader.follow(EVERY_WINDOW, 0)
    with pytest.raises(ContentError, match=r"s.csv: has 9 bytes, but 20 are listed: it was cut short or replaced$"):
        reader.read(EVERY_WINDOW, 0, RestartPoint())


def test_an_error_in_place_of_one_of_transport_is_that_of_transport(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        try:
            raise TransportError("s.csv: nothing came")
        except ValueError:
            raise KeyError("a guess of a builder") from None

    monkeypatch.setattr("datasets.load_dataset", fail)
    path = tmp_path / "s.csv"
    path.write_text("text\na\n")
    with pytest.raises(TransportError, match=r"^s.csv: nothing came$"):
        read(path)


def test_the_name_of_a_shard_that_datasets_reads_may_hold_any_sign(tmp_path: Path) -> None:
    path = tmp_path / "a::b [1] *?#%20.csv.gz"
    path.write_bytes(gzip.compress(b"text\na\n"))
    assert read(path) == ([(0, "a")], [])


def test_an_arrow_file_is_read(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"]})
    with pa.OSFile(str(tmp_path / "s.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert read(tmp_path / "s.arrow") == ([(0, "a"), (1, "b")], [])


def test_json_lines_can_be_read_by_datasets_too(tmp_path: Path) -> None:
    path = lines(tmp_path, *(json.dumps({"text": f"text {i}"}).encode() for i in range(3)))
    shard = replace(shard_of(path), format="examples", builder="json")
    reader = open_reader(shard, OPTIONS)
    reader.follow(EVERY_WINDOW, 0)
    found = reader.read(EVERY_WINDOW, 0, RestartPoint())
    assert found is not None
    assert found.texts == ["text 0", "text 1", "text 2"]


def test_documents_that_are_too_short_or_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    path = lines(tmp_path, b'{"text": "abc"}', b'{"text": "abcd"}', b'{"text": "abcdef"}', b'{"text": "abcdefg"}')
    (window,) = windows_of(path, min_characters=4, max_characters=6)
    assert window.texts == ["abcd", "abcdef"]
    assert window.offsets == [16, 33]
    assert window.filtered == 2
    assert window.skips == []


@pytest.mark.parametrize("drop", [True, False])
def test_copies_inside_a_window_are_left_out_when_asked_for(tmp_path: Path, drop: bool) -> None:
    path = lines(tmp_path, b'{"text": "same"}', b'{"text": "other"}', b'{"text": "same"}', b'{"text": "Same"}')
    (window,) = windows_of(path, drop_duplicates=drop)
    assert window.texts == (["same", "other", "Same"] if drop else ["same", "other", "same", "Same"])
    assert window.filtered == int(drop)
