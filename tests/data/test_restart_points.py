"""A shard is entered at a restart point, and what lies before is skipped: the bytes are the same."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.errors import ContentError
from tests.data.compressed import COMPRESS, COMPRESSED, seek_table, skippable, zstd_frame
from tests.data.shard_bytes import MIB, chunks_of, shard, write
from tests.data.shards import received

KIB = 1024


def test_nothing_is_opened_before_the_first_read(tmp_path: Path) -> None:
    with received() as sizes, closing(shard(tmp_path / "written-later.jsonl")) as opened:
        opened.skip_to(5)
        (tmp_path / "written-later.jsonl").write_bytes(b"text\nmore")
        assert (opened.position, opened.read(), opened.position) == (5, b"more", 9)
        assert opened.restart == RestartPoint(5, 5)
        assert sum(sizes) == 4


def test_a_plain_file_is_read_from_any_byte(tmp_path: Path) -> None:
    content = random.Random(0).randbytes(5_000_000)
    path = write(tmp_path, content, "none")
    with received() as sizes, closing(shard(path, RestartPoint(77, 77))) as opened:
        assert opened.read() == content[77 : 77 + 64 * KIB]
        assert opened.restart == RestartPoint(77, 77)
        opened.skip_to(4_000_000)
        rest = chunks_of(opened)
        assert rest[0] == (RestartPoint(4_000_000, 4_000_000), content[4_000_000 : 4_000_000 + 64 * KIB])
        assert b"".join(chunk for _, chunk in rest) == content[4_000_000:]
        assert sum(sizes) == 64 * KIB + 1_000_000
        opened.skip_to(9_000_000)
        assert opened.read() == b""
        assert opened.position == len(content)


def test_skipping_past_the_end_is_the_end(tmp_path: Path) -> None:
    with closing(shard(write(tmp_path, zstd_frame(b"text\n")))) as opened:
        opened.skip_to(6)
        assert (opened.read(), opened.position) == (b"", 5)


def noise_frames(count: int) -> tuple[list[bytes], list[bytes]]:
    contents = [random.Random(index).randbytes(512 * 1024) for index in range(count)]
    return contents, [zstd_frame(content) for content in contents]


def test_a_seek_table_leads_to_the_frame_without_reading_what_lies_between(tmp_path: Path) -> None:
    contents, frames = noise_frames(16)
    table = seek_table([(len(frame), len(content)) for frame, content in zip(frames, contents, strict=True)])
    path = write(tmp_path, b"".join(frames) + table)
    offset = 13 * 512 * 1024 + 100
    with received() as sizes, closing(shard(path)) as opened:
        opened.skip_to(offset)
        assert opened.read() == contents[13][100:]
        assert opened.restart == RestartPoint(sum(map(len, frames[:13])), 13 * 512 * 1024)
        assert sum(sizes) < 3 * MIB
        opened.skip_to(100 * MIB)
        assert (opened.read(), opened.position) == (b"", 8 * MIB)


def test_a_seek_table_that_does_not_fit_the_shard_is_not_used(tmp_path: Path) -> None:
    contents, frames = noise_frames(8)
    wrong = seek_table([(len(frame) + 1, len(content)) for frame, content in zip(frames, contents, strict=True)])
    with closing(shard(write(tmp_path, b"".join(frames) + wrong))) as opened:
        opened.skip_to(6 * 512 * 1024)
        assert opened.read() == contents[6]


def test_a_seek_table_with_wrong_offsets_is_an_error(tmp_path: Path) -> None:
    contents, frames = noise_frames(8)
    lie = seek_table([(len(frame), len(content) + 7) for frame, content in zip(frames, contents, strict=True)])
    with closing(shard(write(tmp_path, b"".join(frames) + lie))) as opened:
        opened.skip_to(5 * (512 * 1024 + 7))
        with pytest.raises(ContentError, match="the seek table says it begins at uncompressed byte 3145770"):
            chunks_of(opened)


def test_a_seek_table_with_wrong_content_sizes_is_an_error_of_the_shard(tmp_path: Path) -> None:
    parts = [random.Random(part).randbytes(4 * MIB) for part in range(3)]
    frames = [zstd_frame(part) for part in parts]
    table = seek_table([(len(frame), size * MIB) for frame, size in zip(frames, (7, 3, 2), strict=True)])
    with closing(shard(write(tmp_path, b"".join(frames) + table))) as opened:
        while opened.position < 5 * MIB:
            opened.read()
        for _ in range(2):
            with pytest.raises(ContentError, match=r"frame that begins at compressed byte 4194\d+ .*the seek table says"):
                opened.skip_to(8 * MIB)


def expected_chunk_start(offset: int, frames: list[tuple[int, int, bytes]]) -> RestartPoint:
    """Start of the frame that holds the byte; frames are (compressed start, uncompressed start, content)."""
    return next(RestartPoint(at, start) for at, start, content in frames if start <= offset < start + len(content))


@settings(max_examples=60)
@given(data=st.data())
def test_from_every_restart_and_after_every_skip_the_bytes_and_restart_points_are_the_same(
    data: st.DataObject, tmp_path: Path
) -> None:
    compression = data.draw(st.sampled_from(COMPRESSED))
    pieces = data.draw(
        st.lists(
            st.one_of(
                st.binary(max_size=40),
                st.integers(0, 400_000).map(lambda size: random.Random(size).randbytes(size)),
                st.integers(0, 1_500_000).map(lambda size: b"z" * size),
                st.sampled_from(["skippable", "empty"]),
            ),
            min_size=1,
            max_size=8,
        )
    )
    table = compression == "zstd" and data.draw(st.booleans())
    file, frames, entries, position = b"", [], [], 0
    for piece in pieces:
        if piece == "skippable":
            if compression not in ("zstd", "lz4"):
                continue
            content, frame = b"", skippable(bytes(11))
        else:
            content = piece if isinstance(piece, bytes) else b""
            frame = COMPRESS[compression](content)
            frames.append((len(file), position, content))
        file += frame
        position += len(content)
        entries.append((len(frame), len(content)))
    whole = b"".join(content for _, _, content in frames)
    path = write(tmp_path, file + (seek_table(entries) if table else b""), compression)

    starts = [RestartPoint(), *(RestartPoint(at, start) for at, start, _ in frames)]
    restart = data.draw(st.sampled_from(starts))
    skips = sorted(data.draw(st.lists(st.integers(restart.uncompressed, len(whole) + 10), max_size=5)))
    with closing(shard(path, restart)) as opened:
        for offset in skips:
            if offset < opened.position:
                continue
            opened.skip_to(offset)
            chunk = opened.read()
            assert chunk == whole[offset : offset + len(chunk)]
            assert bool(chunk) == (offset < len(whole))
            if chunk:
                assert opened.restart == expected_chunk_start(offset, frames)
        position = opened.position
        rest = chunks_of(opened)
        assert b"".join(chunk for _, chunk in rest) == whole[position:]
        for chunk_restart, chunk in rest:
            assert chunk_restart == expected_chunk_start(position, frames)
            position += len(chunk)
