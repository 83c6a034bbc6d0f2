"""Every paragraph of a text file is one document, in one window, whoever reads it and wherever reading begins."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_pretrain.config import Config, DataConfig, TrainConfig
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.documents.document import Skip
from stream_pretrain.data.documents.reader import open_reader
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.pinning import pin, source_plans
from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_state import LaneCursors, first_cursors
from stream_pretrain.data.transport.restart_point import RestartPoint
from tests.corpora import documents
from tests.data.plans import plan_for
from tests.data.shards import OPTIONS, read, shard_of, windows_of

TOO_LONG = "paragraph too long"
BOM = b"\xef\xbb\xbf"


def naive(content: bytes, longest: int) -> tuple[list[tuple[int, str]], list[Skip]]:
    """Paragraphs by their definition: neighbouring lines that are not blank, behind a byte order mark."""
    texts: list[tuple[int, str]] = []
    skips: list[Skip] = []
    lines: list[bytes] = []
    offset = 3 if content.startswith(BOM) else 0
    start = offset
    for line in [*content[offset:].split(b"\n"), b""]:
        if line.strip(b" \t\r\x0b\x0c") or len(line) > longest:
            start = start if lines else offset
            lines.append(line)
        elif lines:
            paragraph = b"\n".join(lines)
            if len(paragraph) > longest:
                skips.append(Skip(start, TOO_LONG))
            else:
                texts.append((start, "\n".join(line.removesuffix(b"\r").decode() for line in lines)))
            lines = []
        offset += len(line) + 1
    return texts, skips


LINES = st.lists(
    st.one_of(
        st.sampled_from([b"", b" ", b"\t \r", b"\r", b"a", b" b ", b"c\r", b"d e\r"]),
        st.integers(1, 90).map(lambda count: b" " * count),
        st.integers(1, 90).map(lambda count: b"x" * count),
    ),
    max_size=40,
)
FRAMES: dict[str, Callable[[list[bytes]], bytes]] = {
    "s.txt": b"".join,
    "s.txt.gz": lambda pieces: b"".join(map(gzip.compress, pieces)),
    "s.text.zst": lambda pieces: b"".join(map(zstandard.ZstdCompressor().compress, pieces)),
}


@pytest.mark.parametrize("name", FRAMES)
@settings(max_examples=60)
@given(
    mark=st.sampled_from([b"", BOM]),
    lines=LINES,
    window_bytes=st.integers(1, 120),
    longest=st.sampled_from([10, 60, 1000]),
    data=st.data(),
)
def test_paragraphs_are_those_of_a_naive_splitter_for_any_window_and_stripe_and_from_any_restart(
    tmp_path: Path, name: str, mark: bytes, lines: list[bytes], window_bytes: int, longest: int, data: st.DataObject
) -> None:
    content = mark + b"\n".join(lines)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(content)), max_size=4)) | {0, len(content)})
    path = tmp_path / name
    path.write_bytes(FRAMES[name]([content[a:b] for a, b in itertools.pairwise(cuts)]))
    options = {"text_documents": "blank-line", "window_bytes": window_bytes, "max_line_bytes": longest}
    expected = naive(content, longest)
    texts, skips = read(path, **options)
    assert (texts, skips) == expected
    windows = windows_of(path, **options)
    stripes = data.draw(st.integers(2, 4))
    assert [windows_of(path, Stripe(0, first, stripes), **options) for first in range(stripes)] == [
        windows[first::stripes] for first in range(stripes)
    ]
    for block, window in enumerate(windows):
        reader = open_reader(shard_of(path), replace(OPTIONS, **options))  # type: ignore[arg-type]
        reader.follow(Stripe(0), block)
        assert reader.read(Stripe(0), block, window.restart) == window
        reader.leave(Stripe(0))


@pytest.mark.parametrize("tail", [b"", b"\n", b"\n\n", b"\n" + b" " * 10 + b"\nlast", b"\n" + b" " * 11 + b"\nlast"])
@pytest.mark.parametrize("length", [10, 11])
def test_a_paragraph_may_be_as_long_as_allowed_and_no_longer(tmp_path: Path, length: int, tail: bytes) -> None:
    content = b"a\n\n" + b"x" * 6 + b"\n" + b"y" * (length - 7) + tail
    path = tmp_path / "s.txt"
    path.write_bytes(content)
    for window_bytes in range(1, 40):
        found = read(path, text_documents="blank-line", window_bytes=window_bytes, max_line_bytes=10)
        assert found == naive(content, 10)


@pytest.mark.parametrize("unit", ["line", "blank-line", "file"])
@pytest.mark.parametrize("name", FRAMES)
def test_a_byte_order_mark_is_no_part_of_the_first_document(tmp_path: Path, name: str, unit: str) -> None:
    path = tmp_path / name
    for window_bytes in (1, 2, 3, 4, 1000):
        path.write_bytes(FRAMES[name]([BOM + b"x" * 10]))
        assert read(path, text_documents=unit, window_bytes=window_bytes, max_line_bytes=10) == ([(3, "x" * 10)], [])
        path.write_bytes(FRAMES[name]([BOM + b"x" * 11]))
        texts, skips = read(path, text_documents=unit, window_bytes=window_bytes, max_line_bytes=10)
        assert (texts, [skip.offset for skip in skips]) == ([], [3])


@pytest.mark.parametrize("unit", ["line", "blank-line", "file"])
@pytest.mark.parametrize("least", [0, 1])
def test_spaces_beyond_ascii_are_no_text(tmp_path: Path, unit: str, least: int) -> None:
    (tmp_path / "s.txt").write_text("\u00a0\u3000\n")
    [window] = windows_of(tmp_path / "s.txt", text_documents=unit, min_characters=least)
    empty = () if least else (Skip(0, "text is blank", 1),)
    assert (window.texts, window.skips, window.empty, window.filtered) == ([], [], empty, least)


@pytest.mark.parametrize("name", FRAMES)
def test_a_paragraph_keeps_its_inner_lines_and_not_the_blank_ones_around_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FRAMES[name]([b"\xef\xbb\xbf\r\n  one\r\ntwo  \r\n \t\r\n\r\n\nthree\n   \nfour"]))
    for window_bytes in (1, 7, 1000):
        assert read(path, text_documents="blank-line", window_bytes=window_bytes) == (
            [(5, "  one\ntwo  "), (26, "three"), (36, "four")],
            [],
        )


def test_neither_a_huge_paragraph_nor_a_huge_blank_line_stays_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "s.txt.gz"
    huge = b"\n".join([b"x" * 99] * 100_000)
    path.write_bytes(gzip.compress(b"first\n\n" + huge + b"\n\n" + b" " * 5_000_000 + b"\nmiddle\n\n" + huge, 1))
    reader = open_reader(
        shard_of(path), replace(OPTIONS, text_documents="blank-line", window_bytes=50_000, max_line_bytes=90_000)
    )
    reader.follow(Stripe(0), 0)
    texts: list[str] = []
    skips: list[Skip] = []
    largest = 0
    for block in itertools.count():
        window = reader.read(Stripe(0), block, RestartPoint())
        largest = max(largest, len(reader.windows.passes[0].buffer))  # type: ignore[attr-defined]
        if window is None:
            break
        texts += window.texts
        skips += window.skips
    second = 7 + len(huge) + 2
    assert texts == ["first"]
    assert skips == [Skip(7, TOO_LONG), Skip(second, TOO_LONG), Skip(second + 5_000_009, TOO_LONG)]
    assert largest < 3_000_000


def test_a_file_is_one_document(tmp_path: Path) -> None:
    for name in FRAMES:
        path = tmp_path / name
        path.write_bytes(FRAMES[name]([b"\xef\xbb\xbfone\r\n\r\n", b"two\n"]))
        assert read(path, text_documents="file", window_bytes=3) == ([(3, "one\n\ntwo\n")], [])


@pytest.mark.parametrize("unit", ["blank-line", "file"])
@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf", b" \r\n\t\n"])
def test_a_file_of_nothing_has_no_document(tmp_path: Path, unit: str, content: bytes) -> None:
    for name in FRAMES:
        path = tmp_path / name
        path.write_bytes(FRAMES[name]([content]))
        assert read(path, text_documents=unit) == ([], [])


def test_a_file_that_is_too_long_or_not_utf_8_is_skipped_and_named(tmp_path: Path) -> None:
    path = tmp_path / "s.txt.gz"
    path.write_bytes(gzip.compress(b"x" * 1001))
    assert read(path, text_documents="file", max_line_bytes=1000) == ([], [Skip(0, "file too long")])
    assert read(path, text_documents="file", max_line_bytes=1001) == ([(0, "x" * 1001)], [])
    path.write_bytes(gzip.compress(b"caf\xe9"))
    assert read(path, text_documents="file") == ([], [Skip(0, "not UTF-8")])


@pytest.mark.parametrize("unit", ["blank-line", "file"])
def test_every_document_is_trained_on_once_and_any_step_can_be_gone_on_from(tmp_path: Path, unit: str) -> None:
    (tmp_path / "corpus").mkdir()
    texts = documents(90)
    for number, name in enumerate(FRAMES):
        inner = [text.replace(" ", "\n", 4) for text in texts[number::3]]
        pieces = ["\n \n".join(inner[first : first + 9]).encode() + b"\n\n" for first in range(0, 30, 9)]
        if unit == "file":
            for index, text in enumerate(inner):
                (tmp_path / "corpus" / f"{index}-{name}").write_bytes(FRAMES[name]([text.encode()]))
        else:
            (tmp_path / "corpus" / name).write_bytes(FRAMES[name](pieces))
    plan = plan_for(tmp_path / "corpus", lanes=4, global_batch_size=4, window_bytes=2_000, max_epochs=1, text_documents=unit)

    def read_from(cursors: Sequence[LaneCursors], count: int) -> list[StepRows]:
        with StepStream(plan, cursors) as stream:
            return [next(stream) for _ in range(count)]

    steps = [step for step in read_from(first_cursors(4), 200) if len(step.row_lane)]
    assert 20 < len(steps) < 200
    behind = [tuple(Cursor(*cursor) for cursor in lane) for lane in steps[-1].cursors.tolist()]
    assert sum(cursor.documents for lane in behind for cursor in lane) == 90
    begun = {tuple(origin) for step in steps for origin in step.origins.tolist()}
    assert len(begun) == 90
    for number in range(0, len(steps) - 1, 3):
        behind = [tuple(Cursor(*cursor) for cursor in lane) for lane in steps[number].cursors.tolist()]
        [following] = read_from(behind, 1)
        assert following.trained.buffer.tolist() == steps[number + 1].trained.buffer.tolist()
        assert following.cursors.tolist() == steps[number + 1].cursors.tolist()


def test_a_file_that_is_one_document_is_dealt_as_a_whole(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("word \n\n" * 100_000)
    stripes: dict[str, set[int]] = {}
    for unit in ("line", "blank-line", "file"):
        config = Config(DataConfig(dataset=str(tmp_path), text_documents=unit, lanes=8), train=TrainConfig(max_steps=1))  # type: ignore[arg-type]
        [source] = source_plans(config, pin(config, 1))
        stripes[unit] = {stripe.count for lane in range(8) for stripe in source.stripes(0, lane)}
        assert {source.windows_of(number) for number in range(3)} == {1 if unit == "file" else 7}
    assert max(stripes["blank-line"]) > 1
    assert stripes["file"] == {1}


@pytest.mark.parametrize(("unit", "texts"), [("blank-line", ["a\nb", "c"]), ("file", ["a\nb\n\nc"])])
def test_the_reader_datasets_has_the_same_units(tmp_path: Path, unit: str, texts: list[str]) -> None:
    (tmp_path / "s.txt").write_bytes(b"a\nb\n\nc")
    [shard] = resolve(DataConfig(dataset=str(tmp_path), reader="datasets")).shards
    reader = open_reader(shard, replace(OPTIONS, text_documents=unit))  # type: ignore[arg-type]
    reader.follow(Stripe(0), 0)
    window = reader.read(Stripe(0), 0, RestartPoint())
    assert window is not None
    assert window.texts == texts
