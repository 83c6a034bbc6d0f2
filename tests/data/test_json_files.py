"""JSON that is not JSON lines says so, and which command makes it such."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from stream_pretrain.errors import ContentError
from tests.data.shards import read

RECORDS = [{"id": number, "authors": [{"name": "a"}], "text": f"text {number} [ {{ "} for number in range(30)]
BOM = b"\xef\xbb\xbf"


def one_a_line(records: list[dict[str, object]]) -> str:
    return ",\n".join(map(json.dumps, records))


ARRAYS = {
    "in one line": json.dumps(RECORDS),
    "a record a line": f"[{one_a_line(RECORDS)}]",
    "a record a line, brackets apart": f"[\n{one_a_line(RECORDS)}\n]\n",
    "indented": json.dumps(RECORDS, indent=2),
    "of texts": json.dumps([record["text"] for record in RECORDS], indent=1),
}
OBJECTS = {
    "in one line": json.dumps({"data": RECORDS}),
    "a record a line": f'{{"version": 1, "data": [\n{one_a_line(RECORDS)}\n]}}',
    "indented": json.dumps({"meta": {"n": 1}, "data": RECORDS}, indent=2),
}
PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a.json": ("jq -c {} a.json", bytes),
    "b c.json.gz": ("gzip -dc 'b c.json.gz' | jq -c {}", gzip.compress),
    "d.jsonl.zst": ("zstd -dc d.jsonl.zst | jq -c {}", zstandard.ZstdCompressor().compress),
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("in_front", [b"", b"\n \n", BOM, BOM + b"\r\n"], ids=repr)
@pytest.mark.parametrize("array", ARRAYS)
def test_an_array_says_so(tmp_path: Path, array: str, in_front: bytes, name: str) -> None:
    command, compress = PACKED[name]
    (tmp_path / name).write_bytes(compress(in_front + ARRAYS[array].encode()))
    made = {"a.json": "a.lines.jsonl", "b c.json.gz": "'b c.lines.jsonl'", "d.jsonl.zst": "d.lines.jsonl"}[name]
    for options in ({}, {"window_bytes": 50}, {"max_line_bytes": 20}):
        with pytest.raises(ContentError) as raised:
            read(tmp_path / name, **options)
        query = command.format("'.[]'")
        assert str(raised.value) == f"{name}: is one JSON array, not JSON lines: {query} > {made}"


@pytest.mark.parametrize("in_front", [b"", BOM + b"\n\n"], ids=repr)
@pytest.mark.parametrize("shape", OBJECTS)
def test_an_object_around_the_records_says_so(tmp_path: Path, shape: str, in_front: bytes) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(in_front + OBJECTS[shape].encode()))
    for options in ({}, {"max_line_bytes": 20}):
        with pytest.raises(ContentError) as raised:
            read(tmp_path / "a.json.gz", **options)
        assert str(raised.value) == (
            "a.json.gz: is one JSON object with its records in 'data', not JSON lines: "
            "gzip -dc a.json.gz | jq -c '.data[]' > a.lines.jsonl"
        )


def test_a_field_that_is_no_word_is_quoted_for_jq(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"all texts": RECORDS}))
    with pytest.raises(ContentError, match=r"in 'all texts', not JSON lines: jq -c '\.\[\"all texts\"\]\[\]' a\.json >"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("indent", [0, 2])
def test_objects_over_several_lines_say_so(tmp_path: Path, indent: int) -> None:
    (tmp_path / "a.json").write_text("\n".join(json.dumps(record, indent=indent) for record in RECORDS))
    with pytest.raises(ContentError) as raised:
        read(tmp_path / "a.json")
    assert str(raised.value) == "a.json: has objects over several lines, not JSON lines: jq -c . a.json > a.lines.jsonl"


@pytest.mark.parametrize(
    ("first", "bad"),
    [
        *((first, [0]) for first in ("[INFO] exporting", '["text"]', '{"text": "cut', '{"text": "cut", ')),
        ('{"text": "a", "n": ' + "9" * 5_000 + "}", [0]),
        ("[" * 5_000, [0]),
        *((first, []) for first in ('{"id": 1}', '{"data": [{"text": "x"}]}')),
    ],
)
def test_a_bad_first_line_of_json_lines_is_one_bad_line(tmp_path: Path, first: str, bad: list[int]) -> None:
    content = "\n".join([first, *map(json.dumps, RECORDS)])
    (tmp_path / "a.jsonl").write_text(content)
    texts, skips = read(tmp_path / "a.jsonl")
    assert len(texts) == 30
    assert [skip.offset for skip in skips] == bad, "one that lacks the field has no text, which is nothing bad"


def test_a_field_whose_name_is_no_json_is_no_list_of_records(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{\n"pa\\d": [{"text": "a"}]\n}\n')
    with pytest.raises(ContentError, match=r"has objects over several lines, not JSON lines: jq -c \. a\.json >"):
        read(tmp_path / "a.json")


def test_a_shard_with_one_line_that_is_too_long_is_not_called_anything_else(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 1000}))
    texts, skips = read(tmp_path / "a.jsonl", max_line_bytes=100)
    assert (texts, [skip.reason for skip in skips]) == ([], ["line too long"])
