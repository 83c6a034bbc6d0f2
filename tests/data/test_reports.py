"""Small inputs with the conditions of public bug reports, each with what is right for it (../shared/data/reports)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.documents.document import Documents
from stream_pretrain.data.documents.reader import windows_of as windows_in
from tests.data.shards import OPTIONS

REPORTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "reports"


def windows_of(name: str, reader: str = "auto", **options: object) -> list[Documents]:
    """The windows of the shards of an input, of 16 KiB where they are of lines."""
    if not REPORTS.exists():
        pytest.skip("needs the inputs in ../shared/data/reports")
    shards = resolve(DataConfig(dataset=str(REPORTS / name), reader=reader)).shards  # type: ignore[arg-type]
    small = replace(OPTIONS, window_bytes=16_384, **options)  # type: ignore[arg-type]
    return [window for shard in shards for window in windows_in(shard, small)]


@pytest.mark.parametrize(
    ("name", "options", "texts", "empty", "filtered"),
    [
        ("few_blank", {}, 3384, 16, 0),
        ("blank_rows", {}, 2187, 313, 0),
        ("blank_rows", {"min_characters": 1}, 2187, 0, 313),
        ("paragraphs", {}, 120, 0, 0),
        ("paragraphs", {"reader": "datasets"}, 120, 0, 0),
        ("s2orc", {"text_field": "body_text.text"}, 120, 0, 0),
        ("s2orc", {"text_field": "body_text.text", "reader": "datasets"}, 120, 0, 0),
        ("parquet/list_string", {}, 120, 0, 0),
        ("parquet/list_string", {"reader": "datasets"}, 120, 0, 0),
    ],
)
def test_documents_of_an_input_are_those_that_are_right(
    name: str, options: dict[str, object], texts: int, empty: int, filtered: int
) -> None:
    windows = windows_of(name, **options)  # type: ignore[arg-type]
    assert sum(len(window.texts) for window in windows) == texts
    assert sum(one.documents for window in windows for one in window.empty) == empty
    assert sum(window.filtered for window in windows) == filtered
    assert not any(window.skips for window in windows)


def test_the_paragraphs_of_a_document_are_joined_by_a_blank_line() -> None:
    (lines, *_), (table, *_) = windows_of("paragraphs"), windows_of("parquet/list_string")
    assert lines.texts[0].startswith(
        "document 0 weather above letters salt birds stones songs weather weather clocks \n\nstones"
    )
    assert table.texts[0].startswith(
        "document 0 weather above letters salt birds stones songs wea\n\nther weather clocks stones"
    )
