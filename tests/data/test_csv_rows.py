"""The rows of CSV files end as the header does: a CR by itself is text."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import fsspec
import pytest

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.documents.csv_rows import csv_rows
from stream_pretrain.data.documents.reader import windows_of as windows_in
from tests.data.shards import OPTIONS, read, windows_of

REPORTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "reports"


def texts(path: Path, content: bytes, **options: object) -> list[str]:
    path.write_bytes(content)
    found, skips = read(path, **options)
    assert not skips
    return [text for _, text in found]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("columns", ["title,text", "text,title", "text", "title,text,n"])
def test_a_cr_inside_a_cell_is_text(tmp_path: Path, end: bytes, columns: str) -> None:
    cells = {"title": b"t", "text": b"a\rb c", "n": b"7"}
    names = columns.split(",")
    row = b",".join(cells[name] for name in names)
    quoted = b",".join(b'"x' + end + b'y\rz"' if name == "text" else cells[name] for name in names)
    content = end.join([columns.encode(), row, quoted, b"", row])  # the last without an end
    assert texts(tmp_path / "s.csv", content) == ["a\rb c", "x" + end.decode() + "y\rz", "a\rb c"]
    assert texts(tmp_path / "s.tsv.gz", gzip.compress(content.replace(b",", b"\t"))) == [
        "a\rb c",
        "x" + end.decode() + "y\rz",
        "a\rb c",
    ]


def test_rows_of_a_file_whose_header_ends_in_cr_alone_end_there(tmp_path: Path) -> None:
    assert texts(tmp_path / "s.csv", b'n,text\r1,a\r2,"b\nc"\r') == ["a", "b\nc"]


def test_a_crlf_behind_a_header_that_ends_in_lf_ends_a_row(tmp_path: Path) -> None:
    assert texts(tmp_path / "s.csv", b"n,text\n1,a\rb\r\n2,c\n") == ["a\rb", "c"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_blank_lines_are_no_rows_wherever_they_stand(tmp_path: Path, end: bytes) -> None:
    content = end.join([b"", b"", b"n,text", b"", b"1,a\rb", b"", b"2,c", b""])
    assert texts(tmp_path / "s.csv", content) == ["a\rb", "c"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_a_row_may_have_fewer_cells_than_the_header(tmp_path: Path, end: bytes) -> None:
    content = end.join(
        [b"n,text,a,b", b"1,x,2,3", b"1,short", b'1,"cr\r"', b'1,"cr\r",,', b'1,"cr\r",2', b"1,,", b"1", b"1,y,,z", b""]
    )
    path = tmp_path / "s.csv"
    path.write_bytes(content)
    [window] = windows_of(path)
    assert window.texts == ["x", "short", "cr\r", "cr\r", "cr\r", "y"]
    assert [(one.reason, one.documents) for one in window.empty] == [("text is blank", 2)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_an_empty_cell_of_a_single_column_has_no_text_quoted_or_not(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "s.csv").write_bytes(end.join([b"", b"text", b"a", b'""', b"", b"b\rc", b""]))
    [window] = windows_of(tmp_path / "s.csv")
    assert (window.texts, window.offsets, window.skips) == (["a", "b\rc"], [0, 3], [])
    assert [(one.reason, one.documents) for one in window.empty] == [("text is blank", 2)]


def test_a_header_may_have_a_byte_order_mark_and_line_ends_in_its_names(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf"a ""title""\r\n",text\n1,a\rb\n'
    assert texts(tmp_path / "s.csv", content) == ["a\rb"]
    assert csv_rows(b'"a\rb",text\r\n', ",", ["text"]).ends_in_crlf


def test_numbers_beside_the_text_and_fields_of_a_template_stay_as_they_are(tmp_path: Path) -> None:
    content = b"title,n\r\na\rb,007\r\nc,\r\n"
    assert texts(tmp_path / "s.csv", content, text_template="{title} {n}") == ["a\rb 007", "c "]


def test_a_remote_and_compressed_csv_file_is_read_the_same_way(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/rows/a.csv.bz2", bz2.compress(b"n,text\r\n" + b"1,a\rb\r\n" * 1500))
    [shard] = resolve(DataConfig(dataset="memory://rows/a.csv.bz2")).shards
    assert [window.texts for window in windows_in(shard, OPTIONS)] == [["a\rb"] * 1000, ["a\rb"] * 500]


def test_the_reported_file_has_a_hundred_whole_documents() -> None:
    path = REPORTS / "csv" / "bare_cr" / "data.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    [window] = windows_of(path)
    assert (len(window.texts), window.skips) == (100, [])
    assert all(text.startswith(f"document {i} ") for i, text in enumerate(window.texts))
    assert any("\r" in text for text in window.texts)
