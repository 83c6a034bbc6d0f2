"""What the text of a document is, in whatever way it is written down, and what is said where there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_pretrain.data.documents.document import Documents, Skip
from stream_pretrain.data.documents.reader import windows_of
from stream_pretrain.errors import ContentError
from tests.data.shards import OPTIONS, shard_of

PAPER: dict[str, Any] = {
    "title": "One",
    "body": [{"text": "first", "n": 1}, {"text": None, "n": 2}, {"n": 3, "text": " "}, {"text": "second", "n": 4}],
    "parts": ["first", None, " \n", "second"],
    "nested": [["first"], [], [" ", "second", None]],
}
JOINED = "first\n\nsecond"
AS = ["lines", "parquet", "datasets"]


def window_of(path: Path, **options: object) -> Documents:
    """The only window of a file."""
    datasets = options.pop("datasets", False)
    shard = replace(shard_of(path), format="examples", builder="json") if datasets else shard_of(path)
    [found] = windows_of(shard, replace(OPTIONS, **options))  # type: ignore[arg-type]
    return found


def read_as(form: str, folder: Path, documents: list[dict[str, Any]], **options: object) -> Documents:
    """The same documents as JSON lines, as a Parquet file, or as JSON lines that `datasets` reads."""
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(documents), folder / "s.parquet")
        return window_of(folder / "s.parquet", **options)
    (folder / "s.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    return window_of(folder / "s.jsonl", datasets=form == "datasets", **options)


@pytest.mark.parametrize("form", AS)
@pytest.mark.parametrize("field", ["parts", "body.text", "nested"])
def test_texts_of_a_list_and_of_a_list_of_records_are_joined_by_a_blank_line(tmp_path: Path, form: str, field: str) -> None:
    found = read_as(form, tmp_path, [PAPER, {**PAPER, field.split(".")[0]: None}], text_field=field)
    assert (found.texts, found.skips) == ([JOINED], [])
    assert found.empty == (Skip(found.empty[0].offset, "text is null"),)


def test_lists_may_lie_in_lists_as_deep_as_json_allows(tmp_path: Path) -> None:
    deep = json.loads("[" * 900 + '"a"' + "]" * 900)
    assert read_as("lines", tmp_path, [{"text": ["b", deep, [["c"]]]}]).texts == ["b\n\na\n\nc"]


@pytest.mark.parametrize("form", AS)
@pytest.mark.parametrize("value", [[], ["", None, " "]], ids=["no texts", "blank ones"])
def test_a_list_without_a_text_is_a_document_without_text(tmp_path: Path, form: str, value: list[Any]) -> None:
    found = read_as(form, tmp_path, [{"text": ["a"]}, {"text": value}])
    assert (found.texts, [(one.reason, one.documents) for one in found.empty]) == (["a"], [("text is blank", 1)])


def test_records_of_a_list_that_lack_the_field_are_left_out_of_the_text(tmp_path: Path) -> None:
    documents = [{"body": [{"text": "a"}, {"head": "b"}, None, {"text": "c"}]}, {"body": [{"head": "b"}]}, {"body": []}]
    found = read_as("lines", tmp_path, documents, text_field="body.text")
    assert (found.texts, found.skips) == (["a\n\nc"], [])
    assert [one.reason for one in found.empty] == ["no field body.text; fields seen: body.head", "text is blank"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (5, "field 'text' holds a number, not text"),
        (True, "field 'text' holds a boolean, not text"),
        ({"en": "a", "fr": "b"}, "field 'text' holds an object with fields en, fr, not text"),
        ([1, 2.5], "field 'text' holds a list of numbers, not text"),
        (["a", 1], "field 'text' holds a list of texts and numbers, not text"),
        ([{"t": "a", "s": "b"}], "field 'text' holds a list of objects with fields t, s, not text"),
        ([["a", {}]], "field 'text' holds a list of lists, not text"),
        ({}, "field 'text' holds an object, not text"),
    ],
)
def test_a_document_that_holds_something_else_is_skipped_with_what_it_holds(tmp_path: Path, value: Any, reason: str) -> None:
    found = read_as("lines", tmp_path, [{"text": "a"}, {"text": value}])
    assert (found.texts, [skip.reason for skip in found.skips], found.empty) == (["a"], [reason], ())


@pytest.mark.parametrize("form", ["lines", "datasets"])
def test_a_shard_that_holds_something_else_says_what_and_what_there_is(tmp_path: Path, form: str) -> None:
    with pytest.raises(ContentError) as error:
        read_as(form, tmp_path, 12 * [{"body": [{"text": "a", "n": 1}], "n": [1]}], text_field="body")
    assert str(error.value) == (
        "s.jsonl: field 'body' holds a list of objects with fields text, n, not text; fields seen: body.text, body.n, n. "
        "Name one with --data.text-field, or several with --data.text-template"
    )


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("n", "field 'n' holds numbers, not text"),
        ("body.n", "field 'body.n' holds lists of numbers, not text"),
        ("body", "field 'body' holds objects with fields text, n, not text"),
        ("when", "field 'when' holds values of type timestamp[us], not text"),
        ("bodies", "has no text in field 'bodies'"),
        ("body.list.element.text", "has no text in field 'body.list.element.text'"),
    ],
)
def test_a_parquet_column_that_holds_something_else_says_what_and_what_there_is(tmp_path: Path, field: str, said: str) -> None:
    rows = {"n": [1], "body": [[{"text": "a", "n": 1}]], "when": pa.array([0], pa.timestamp("us"))}
    pq.write_table(pa.table(rows), tmp_path / "s.parquet")
    with pytest.raises(ContentError) as error:
        window_of(tmp_path / "s.parquet", text_field=field)
    assert str(error.value) == (
        f"s.parquet: {said}; fields seen: n, body.text, body.n, when. "
        "Name one with --data.text-field, or several with --data.text-template"
    )


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
@pytest.mark.parametrize("in_list", [False, True], ids=["one", "list"])
def test_every_kind_of_text_that_parquet_has_is_read(tmp_path: Path, kind: pa.DataType, in_list: bool) -> None:
    if in_list and pa.types.is_dictionary(kind):
        array = pa.ListArray.from_arrays([0, 1, 2, 3], pa.array(["à", "b", None]).dictionary_encode())
    else:
        array = pa.array([["à"], ["b"], [None]] if in_list else ["à", "b", None], pa.list_(kind) if in_list else pa.string())
        array = array if in_list else array.dictionary_encode() if pa.types.is_dictionary(kind) else array.cast(kind)
    pq.write_table(pa.table({"id": [0, 1, 2], "text": array}), tmp_path / "s.parquet")
    found = window_of(tmp_path / "s.parquet")
    assert (found.texts, found.skips, sum(one.documents for one in found.empty)) == (["à", "b"], [], 1)


def test_bytes_that_are_no_text_are_skipped(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [b"a", b"\xff\xfe", b"\xc3\xa0"]}), tmp_path / "s.parquet")
    found = window_of(tmp_path / "s.parquet")
    assert (found.texts, found.skips) == (["a", "à"], [Skip(1, "not UTF-8")])


@pytest.mark.parametrize("form", AS)
@pytest.mark.parametrize("least", [0, 1])
def test_documents_without_text_are_no_bad_ones_and_filtered_where_a_text_has_to_have_a_character(
    tmp_path: Path, form: str, least: int
) -> None:
    documents = [{"text": "a"}, {"text": ""}, {"text": None}, {"text": " \u3000\n"}, {"text": "b"}, {"text": None}]
    found = read_as(form, tmp_path, documents, min_characters=least)
    assert (found.texts, found.skips, found.read) == (["a", "b"], [], 6)
    counts = {one.reason: one.documents for one in found.empty}
    assert (counts, found.filtered) == (({}, 4) if least else ({"text is blank": 2, "text is null": 2}, 0))


def test_documents_without_text_that_lack_the_field_are_named_with_the_fields_of_the_first(tmp_path: Path) -> None:
    documents = [{"text": "a"}, {"url": "b", "doc": {"n": 1}}, {"id": "c"}]
    found = read_as("lines", tmp_path, documents)
    assert (found.texts, found.skips) == (["a"], [])
    assert found.empty == (Skip(14, "no field text; fields seen: url, doc.n", 2),)


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("contents", "--data.text-field content"),
        ("Content", "--data.text-field content"),
        ("body", "--data.text-field doc.body"),
        ("xyzzy", "--data.text-field"),
    ],
)
def test_a_wrong_field_is_answered_by_the_one_that_may_be_meant(tmp_path: Path, field: str, option: str) -> None:
    documents = [{"content": "a", "doc": {"body": "b"}}] * 10
    with pytest.raises(ContentError) as caught:
        read_as("lines", tmp_path, documents, text_field=field)
    said = f"has no text in field '{field}'; fields seen: content, doc.body. Name one with {option}, or several with "
    assert said in str(caught.value)


@pytest.mark.parametrize("least", [0, 1])
@pytest.mark.parametrize("form", ["lines", "datasets"])
def test_a_field_that_none_of_many_documents_has_is_the_wrong_one(tmp_path: Path, form: str, least: int) -> None:
    documents = [{"title": "a", "content": "b"}] * 10
    said = "s.jsonl: has no text in field 'text'; fields seen: title, content. Name one with"
    with pytest.raises(ContentError, match=said):
        read_as(form, tmp_path, documents, min_characters=least)
    assert read_as(form, tmp_path, documents[:9], min_characters=least).texts == []
    assert read_as(form, tmp_path, [*documents, {"text": "c"}]).texts == ["c"]
    with pytest.raises(ContentError, match=said.replace("'text'", "'titel'")):  # the others of a template are not enough
        read_as(form, tmp_path, documents, text_template="{titel}: {content}")


@pytest.mark.parametrize("form", ["lines", "datasets"])
@pytest.mark.parametrize(
    ("field", "holder"),
    [("text", {"text": None}), ("text", {"text": []}), ("a.b", {"a": {"b": None}}), ("a.b", {"a": [{"b": []}]})],
)
def test_a_field_that_is_there_and_empty_is_no_wrong_one(tmp_path: Path, form: str, field: str, holder: dict[str, Any]) -> None:
    others = [{"title": "t"}] * 10
    assert read_as(form, tmp_path, [*others, holder], text_field=field).texts == []
    found = read_as(form, tmp_path, [*others, holder], text_template=f"{{title}}{{{field}}}")
    assert found.texts == ["t"] * 10


@pytest.mark.parametrize("holder", [{"a": None}, {"a": []}, {"a": {}}])
def test_what_would_hold_a_field_and_holds_none_tells_nothing_of_it(tmp_path: Path, holder: dict[str, Any]) -> None:
    with pytest.raises(ContentError, match=r"has no text in field 'a\.b'; fields seen: title"):
        read_as("lines", tmp_path, [*[{"title": "t"}] * 10, holder], text_field="a.b")


PAPERS = [
    {"title": "One", "paper": {"body": "first"}, "year": 1999},
    {"title": None, "paper": {"body": "no title"}, "year": 2000},
    {"title": "Three", "paper": {"body": ["a", None, "list"]}, "year": 2001},
    {"title": "Four", "paper": {"body": "{fourth}"}, "year": 2002.5},
    {"title": "Five", "year": 2003},
    {"title": {"en": "Six"}, "paper": {"body": "b"}, "year": 2004},
]


@pytest.mark.parametrize("written", ["{title} ({year})\n\n{paper.body}", "{title} ({year})\\n\\n{paper.body}"])
def test_a_template_makes_the_text_of_several_fields_and_nothing_of_those_without_text(tmp_path: Path, written: str) -> None:
    found = read_as("lines", tmp_path, PAPERS, text_template=written)
    assert found.texts == [
        "One (1999)\n\nfirst",
        " (2000)\n\nno title",
        "Three (2001)\n\na\n\nlist",
        "Four (2002.5)\n\n{fourth}",
        "Five (2003)\n\n",
    ]
    assert [skip.reason for skip in found.skips] == ["field 'title' holds an object with fields en, not text"]


@pytest.mark.parametrize("form", AS)
def test_a_template_without_text_in_any_part_is_a_document_without_text(tmp_path: Path, form: str) -> None:
    documents = [{"title": "a", "body": ["b"]}, {"title": None, "body": None}, {"title": " ", "body": []}, {"body": ["c"]}]
    found = read_as(form, tmp_path, documents, text_template="# {title}\n{body}")
    assert (found.texts, found.skips) == (["# a\nb", "# \nc"], [])
    assert {one.reason: one.documents for one in found.empty} == {"text is null": 1, "text is blank": 1}


def test_a_template_reads_the_columns_it_names_of_a_parquet_file(tmp_path: Path) -> None:
    rows = {"title": ["One", None], "paper": [{"body": "first", "n": 1}, {"body": "second", "n": 2}], "year": [1999, 2000]}
    pq.write_table(pa.table(rows), tmp_path / "s.parquet")
    assert window_of(tmp_path / "s.parquet", text_template="{{{title}}} {year}: {paper.body}").texts == [
        "{One} 1999: first",
        "{} 2000: second",
    ]
    with pytest.raises(ContentError, match=r"no text in field 'author'; fields seen: title, paper\.body, paper\.n, year"):
        window_of(tmp_path / "s.parquet", text_template="{title} {author}")
