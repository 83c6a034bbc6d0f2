"""Bytes of local shards: every format, every damage, every restart point and skip."""

from __future__ import annotations

import bz2
import dataclasses
import errno
import gzip
import os
import random
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_pretrain.data.transport.compression import CODECS, Compression, compression_of
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.errors import ContentError, SourceError, TransportError
from tests.data.compressed import COMPRESS, COMPRESSED, seek_table, skippable, zstd_frame
from tests.data.shards import received

NASTY = Path(__file__).resolve().parents[3] / "shared" / "data" / "nasty"
KIB, MIB = 1024, 1024**2

ENDING = {"none": "", "zstd": ".zst", "gzip": ".gz", "bz2": ".bz2", "xz": ".xz", "lz4": ".lz4"}


def words(count: int, seed: int = 0) -> bytes:
    """Text that compresses about as text does."""
    chosen = random.Random(seed)
    return b" ".join(b"%x" % chosen.getrandbits(16) for _ in range(count))


def write(folder: Path, content: bytes, compression: Compression = "zstd") -> Path:
    path = folder / f"shard.jsonl{ENDING[compression]}"
    path.write_bytes(content)
    return path


BEGIN = RestartPoint()


def shard(path: Path, restart: RestartPoint = BEGIN, size: int | None = None) -> ShardBytes:
    return ShardBytes(str(path), compression_of(str(path)), size, restart)


def chunks_of(bytes_of_shard: ShardBytes) -> list[tuple[RestartPoint, bytes]]:
    chunks = []
    while chunk := bytes_of_shard.read():
        chunks.append((bytes_of_shard.restart, chunk))
    return chunks


def content_of(path: Path, size: int | None = None) -> bytes:
    with closing(shard(path, size=size)) as opened:
        return b"".join(chunk for _, chunk in chunks_of(opened))


def content_before_error(path: Path, error: type[Exception] = ContentError, size: int | None = None) -> tuple[bytes, str]:
    """What is returned before the error, and its message; asserts that the error stays."""
    content = b""
    with closing(shard(path, size=size)) as opened:
        try:
            while chunk := opened.read():
                content += chunk
        except error as caught:
            message = str(caught)
        else:
            pytest.fail(f"{path} was read to its end")
        with pytest.raises(error):
            opened.read()
        assert "\n" not in message
        return content, message


# --- formats


def test_the_ending_of_a_name_tells_the_compression() -> None:
    names = ["a.jsonl", "a.jsonl.ZST", "b.zstd", "c.gz", "d.bz2", "e.xz", "f.lz4", "https://x.org/a.gz?token=b.zst", "dir.gz/a"]
    assert [compression_of(name) for name in names] == ["none", "zstd", "zstd", "gzip", "bz2", "xz", "lz4", "gzip", "none"]


@pytest.mark.parametrize("compression", COMPRESS)
def test_what_is_read_is_what_was_written(compression: Compression, tmp_path: Path) -> None:
    content = words(600_000)
    path = write(tmp_path, COMPRESS[compression](content), compression)
    assert content_of(path, size=path.stat().st_size) == content


@pytest.mark.parametrize("compression", COMPRESS)
def test_an_empty_file_is_an_empty_shard(compression: Compression, tmp_path: Path) -> None:
    assert content_of(write(tmp_path, b"", compression), size=0) == b""


def test_the_frames_of_a_shard_share_a_decompressor_and_two_shards_share_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(**options: Any) -> zstandard.ZstdDecompressor:
        made.append(options)
        return zstandard_decompressor(**options)

    zstandard_decompressor = zstandard.ZstdDecompressor
    monkeypatch.setattr(zstandard, "ZstdDecompressor", counted)
    contents = [words(300_000, seed=seed) for seed in range(2)]
    paths = [tmp_path / f"{number}.jsonl.zst" for number in range(2)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(b"".join(zstd_frame(content[at : at + 500_000]) for at in range(0, len(content), 500_000)))
    read = [b"", b""]
    with closing(shard(paths[0])) as one, closing(shard(paths[1])) as other:
        while any(chunks := [one.read(), other.read()]):
            read = [before + chunk for before, chunk in zip(read, chunks, strict=True)]
    assert read == contents
    assert len(made) == 2


@pytest.mark.parametrize("compression", COMPRESSED)
def test_members_follow_each_other_and_each_is_a_restart_point(compression: Compression, tmp_path: Path) -> None:
    first, second = (COMPRESS[compression](content) for content in (b"one\n", b"two\n"))
    empty = COMPRESS[compression](b"")
    with closing(shard(write(tmp_path, first + empty + second, compression))) as opened:
        assert chunks_of(opened) == [(RestartPoint(0, 0), b"one\n"), (RestartPoint(len(first + empty), 4), b"two\n")]
        assert opened.position == 8


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_skippable_frames_are_skipped_wherever_they_stand(compression: Compression, tmp_path: Path) -> None:
    frame = COMPRESS[compression](b"text\n")
    ignored, nothing = skippable(bytes(300_000)), skippable(b"")
    path = write(tmp_path, nothing + ignored + frame + nothing + frame + ignored, compression)
    with closing(shard(path)) as opened:
        second = 300_016 + len(frame) + 8
        assert chunks_of(opened) == [(RestartPoint(300_016, 0), b"text\n"), (RestartPoint(second, 5), b"text\n")]


@pytest.mark.parametrize("compression", ["gzip", "xz"])
def test_zero_padding_after_and_between_members_is_accepted(compression: Compression, tmp_path: Path) -> None:
    member = COMPRESS[compression](b"text\n")
    path = write(tmp_path, member + bytes(100_000) + member + bytes(512), compression)
    with closing(shard(path)) as opened:
        assert chunks_of(opened) == [(RestartPoint(0, 0), b"text\n"), (RestartPoint(len(member) + 100_000, 5), b"text\n")]


def zstd_stream(content: bytes) -> bytes:
    """A frame without its content size: its sixth byte declares the window."""
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    return compressor.compress(content) + compressor.flush()


def with_window(frame: bytes, window_log: int) -> bytes:
    return frame[:5] + bytes([(window_log - 10) << 3]) + frame[6:]


@pytest.mark.parametrize("window_log", [27, 28, 30, 31])
def test_windows_up_to_2_gib_are_decompressed(window_log: int, tmp_path: Path) -> None:
    assert content_of(write(tmp_path, with_window(zstd_stream(b"text\n"), window_log))) == b"text\n"


@pytest.mark.parametrize(("window_log", "needed"), [(32, "4.0 GiB"), (40, "1024.0 GiB")])
def test_a_larger_window_is_refused_with_the_memory_it_needs(window_log: int, needed: str, tmp_path: Path) -> None:
    _, message = content_before_error(write(tmp_path, with_window(zstd_stream(b"text\n"), window_log)))
    assert f"needs {needed} of memory to decompress" in message


def test_a_frame_that_needs_a_dictionary_says_so(tmp_path: Path) -> None:
    dictionary = zstandard.train_dictionary(1000, [words(100, seed) for seed in range(100)])
    frame = zstandard.ZstdCompressor(dict_data=dictionary).compress(b"text\n")
    content, message = content_before_error(write(tmp_path, zstd_frame(b"text\n") + frame))
    assert content == b"text\n"
    assert message.endswith(
        f"it needs a dictionary (id {dictionary.dict_id()}), which is not supported; recompress it without one"
    )


@pytest.mark.parametrize(
    ("error", "compression"),
    [
        (zstandard.ZstdError("zstd decompressor error: Allocation error : not enough memory"), "zstd"),
        (RuntimeError("LZ4F_decompress failed with code: ERROR_allocation_failed"), "lz4"),
        (MemoryError("Can't allocate memory to decompress data"), "gzip"),
    ],
)
def test_a_lack_of_memory_is_no_damage_of_the_shard(
    error: Exception, compression: Compression, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hungry:
        eof, needs_input, unused_data = False, True, b""

        def decompress(self, *_: object, **__: object) -> bytes:
            raise error

    hungry = dataclasses.replace(CODECS[compression], decoders=lambda: Hungry)
    monkeypatch.setitem(CODECS, compression, hungry)  # type: ignore[arg-type]
    path = write(tmp_path, COMPRESS[compression](b"text\n"), compression)
    with closing(shard(path)) as opened, pytest.raises(SourceError, match="there is too little memory to decompress") as caught:
        opened.read()
    assert not isinstance(caught.value, ContentError), "which --data.on-bad-shard skip would pass over"


@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_decompression_bomb_comes_in_small_chunks(compression: Compression, tmp_path: Path) -> None:
    path = write(tmp_path, COMPRESS[compression](b"x" * (48 * MIB)), compression)
    length = 0
    tracemalloc.start()
    with closing(shard(path)) as opened:
        while chunk := opened.read():
            assert len(chunk) <= 1.5 * MIB
            length += len(chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert length == 48 * MIB
    assert peak < 12 * MIB


def test_small_pieces_of_a_frame_are_joined_to_chunks(tmp_path: Path) -> None:
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    flushed_every_kib = b"".join(
        compressor.compress(b"y" * 1024) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for _ in range(1024)
    )
    path = write(tmp_path, flushed_every_kib + compressor.flush())
    with closing(shard(path)) as opened:
        assert [len(chunk) for _, chunk in chunks_of(opened)] == [256 * 1024] * 4


def test_lz4_without_its_package_says_what_pip_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lz4.frame", None)
    _, message = content_before_error(write(tmp_path, COMPRESS["lz4"](b"text\n"), "lz4"), SourceError)
    assert message.endswith("reading .lz4 shards needs a package: pip install lz4")


# --- damage


@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_shard_cut_anywhere_is_an_error_that_names_the_member(compression: Compression, tmp_path: Path) -> None:
    first, second = (COMPRESS[compression](words(300, seed)) for seed in (1, 2))
    for cut in {len(first) + 1, len(first) + 3, len(first) + 9, len(first + second) // 2 + 400, len(first + second) - 1}:
        path = write(tmp_path, (first + second)[:cut], compression)
        content, message = content_before_error(path)
        assert content.startswith(words(300, 1))
        assert words(300, 1) + words(300, 2) != content or cut == len(first + second) - 1
        assert str(path) in message
        assert f"begins at compressed byte {len(first)} (uncompressed {len(words(300, 1))})" in message
        assert "cut short" in message


def test_blocks_before_the_cut_are_returned(tmp_path: Path) -> None:
    frame = zstd_stream(words(600_000))
    content, message = content_before_error(write(tmp_path, frame[: len(frame) // 2]))
    assert len(content) > 1_200_000
    assert words(600_000).startswith(content)
    assert f"from uncompressed byte {len(content)} on" in message


@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_magic_number_alone_is_a_cut_shard(compression: Compression, tmp_path: Path) -> None:
    magic = COMPRESS[compression](b"text")[: {"gzip": 2, "bz2": 3, "xz": 6}.get(compression, 4)]
    for length in range(1, len(magic) + 1):
        content, message = content_before_error(write(tmp_path, magic[:length], compression))
        assert content == b""
        assert "cut short" in message


def test_a_skippable_frame_that_is_cut_is_an_error(tmp_path: Path) -> None:
    content, message = content_before_error(write(tmp_path, zstd_frame(b"text\n") + skippable(bytes(100))[:-1]))
    assert content == b"text\n"
    assert "the skippable frame that begins at compressed byte 14" in message


@pytest.mark.parametrize("compression", ["zstd", "gzip", "xz", "lz4"])
def test_a_wrong_checksum_is_an_error_after_the_members_before_it(compression: Compression, tmp_path: Path) -> None:
    first, second = COMPRESS[compression](b"good\n"), bytearray(COMPRESS[compression](b"bad\n"))
    checksum_at = {"zstd": -1, "gzip": -8, "xz": -37, "lz4": -1}[compression]
    second[checksum_at] ^= 1
    content, message = content_before_error(write(tmp_path, first + second, compression))
    assert content == b"good\n"
    assert f"begins at compressed byte {len(first)} (uncompressed 5)" in message


@pytest.mark.parametrize(
    ("garbage", "named"),
    [(bytes(37), "only zero bytes"), (b"abc", "plain text"), (b"\x28\xb5\x2f\xfe!", "bytes 28 b5 2f fe 21")],
)
def test_garbage_after_the_last_frame_is_an_error_after_all_good_bytes(garbage: bytes, named: str, tmp_path: Path) -> None:
    content, message = content_before_error(write(tmp_path, zstd_frame(b"text\n") + garbage))
    assert content == b"text\n"
    assert "no zstd frame begins at compressed byte 14 (uncompressed 5)" in message
    assert named in message


@pytest.mark.parametrize(
    ("head", "named"),
    [
        (gzip.compress(b"{}", mtime=0), "looks like gzip"),
        (bz2.compress(b"{}"), "looks like bz2"),
        (b'{"text": "a"}\n', "looks like plain JSON text"),
        (b"\n<!DOCTYPE html><html>", "looks like an HTML page"),
        (b"<?xml version='1.0'?><Error>", "looks like an XML answer"),
        (b"version https://git-lfs.github.com/spec/v1\n", "looks like a Git LFS pointer"),
        (bytes(5000), "looks like only zero bytes"),
        (b"PAR1\x15", "looks like Parquet"),
        (b"Es war einmal.\n", "looks like plain text"),
    ],
)
def test_another_format_under_the_name_zst_is_named(head: bytes, named: str, tmp_path: Path) -> None:
    content, message = content_before_error(write(tmp_path, head))
    assert content == b""
    assert named in message


@pytest.mark.parametrize(
    ("head", "named"),
    [
        (zstd_frame(b"{}"), "looks like zstd, but its name says plain text; name it after its format"),
        (gzip.compress(b"{}", mtime=0), "looks like gzip, but its name says plain text; name it after its format"),
        (b"version https://git-lfs.github.com/s", "(run `git lfs pull`, or give the URL of the data)"),
    ],
)
def test_a_compressed_file_under_a_plain_name_is_named(head: bytes, named: str, tmp_path: Path) -> None:
    content, message = content_before_error(write(tmp_path, head, "none"))
    assert content == b""
    assert message.endswith(named)


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("difference", [-1, 1])
def test_another_size_than_listed_is_an_error_at_the_end(compression: Compression, difference: int, tmp_path: Path) -> None:
    path = write(tmp_path, COMPRESS[compression](b"text\n"), compression)
    there = path.stat().st_size
    content, message = content_before_error(path, size=there + difference)
    assert content == b"text\n"
    assert f"has {there} bytes, but {there + difference} are listed" in message


def test_a_restart_point_behind_the_end_means_the_shard_was_replaced(tmp_path: Path) -> None:
    path = write(tmp_path, zstd_frame(b"text\n"))
    with (
        closing(shard(path, RestartPoint(1000, 9000))) as opened,
        pytest.raises(SourceError, match="resume at byte 1000: it was rep"),
    ):
        opened.read()


def test_damage_is_met_at_the_same_byte_wherever_the_pass_began(tmp_path: Path) -> None:
    member = bytearray(gzip.compress(words(700_000), 1))
    member[len(member) * 3 // 4] ^= 255
    path = write(tmp_path, gzip.compress(words(100_000)) + member, "gzip")
    content, message = content_before_error(path)
    with closing(shard(path, RestartPoint(len(gzip.compress(words(100_000))), len(words(100_000))))) as opened:
        with pytest.raises(ContentError) as caught:
            chunks_of(opened)
        assert (opened.position, str(caught.value)) == (len(content), message)


def test_damage_met_while_skipping_is_not_forgotten(tmp_path: Path) -> None:
    frame = bytearray(zstd_frame(words(600_000), write_checksum=True))
    frame[-1] ^= 1
    with closing(shard(write(tmp_path, bytes(frame)))) as opened:
        opened.read()
        opened.skip_to(2_000_000)
        for _ in range(2):
            with pytest.raises(ContentError, match="checksum"):
                opened.skip_to(len(words(600_000)))
        with pytest.raises(ContentError, match="checksum"):
            opened.read()


def test_a_missing_file_and_a_folder_are_refused_at_once(tmp_path: Path) -> None:
    _, message = content_before_error(tmp_path / "absent.jsonl", TransportError)
    assert "absent.jsonl: is not there: restore it, or leave it out" in message
    (tmp_path / "folder.zst").mkdir()
    _, message = content_before_error(tmp_path / "folder.zst", TransportError)
    assert "folder.zst: is a folder, not a file" in message


# --- restart points and skipping


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


# --- other stores, through fsspec


class FlakyFileSystem(MemoryFileSystem):
    """A store in memory that fails as told: each error of `errors` is raised by one read."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012 (fsspec wants it here)
    errors: list[Exception] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.replace("flaky://", "memory://"))
        return stripped

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        if self.errors:
            raise self.errors.pop(0)
        content: bytes = super().cat_file(path, start=start, end=end, **kwargs)
        return content


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)


def flaky(content: bytes, *errors: Exception) -> str:
    FlakyFileSystem.errors = list(errors)
    FlakyFileSystem().pipe_file("/shard.jsonl.zst", content)
    return "flaky://shard.jsonl.zst"


def test_any_store_of_fsspec_is_read_in_blocks_and_retried() -> None:
    content = random.Random(0).randbytes(700_000)
    url = flaky(zstd_frame(content), TimeoutError("slow"), OSError("gone"))
    options = TransportOptions(block_bytes=100_000, retry_deadline=30)
    with closing(ShardBytes(url, "zstd", None, RestartPoint(), options)) as opened:
        assert b"".join(chunk for _, chunk in chunks_of(opened)) == content


@pytest.mark.parametrize("headers", ["Bearer x", ["a"], {"Authorization": 5}])
def test_headers_that_are_no_object_of_strings_are_refused(headers: object) -> None:
    options = TransportOptions(storage_options={"headers": headers})
    with pytest.raises(SourceError, match=r"^--data.storage-options: headers are an object of strings, like"):
        ShardBytes("https://nowhere.invalid/a.jsonl", "none", 10, options=options).read()


def test_a_process_that_may_open_no_more_files_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    (tmp_path / "s.jsonl").write_text("content")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(TransportError, match=r"s\.jsonl: this process may not open more files .*: raise `ulimit -n`"):
        ShardBytes(str(tmp_path / "s.jsonl"), "none", 7).read()


def test_storage_options_are_handed_on_as_a_copy() -> None:
    options = TransportOptions(storage_options={"skip_instance_cache": True, "custom": 1})
    with closing(ShardBytes(flaky(zstd_frame(b"text\n")), "zstd", None, RestartPoint(), options)) as opened:
        assert opened.read() == b"text\n"
    assert options.storage_options == {"skip_instance_cache": True, "custom": 1}


def test_a_store_that_keeps_failing_ends_at_the_deadline_with_the_option_named() -> None:
    url = flaky(zstd_frame(b"text\n"), *[OSError("gone")] * 50)
    opened = ShardBytes(url, "zstd", None, RestartPoint(), TransportOptions(retry_deadline=0.1))
    named = r"compressed byte 0 on .*OSError: gone.*--data\.retry-deadline \(now 0\.1 s\)"
    with closing(opened), pytest.raises(TransportError, match=named):
        opened.read()


@pytest.mark.parametrize(
    ("error", "named"),
    [(FileNotFoundError("no such key"), "check the id"), (PermissionError("Forbidden"), "check the token or keys")],
)
def test_a_missing_object_or_permission_is_not_retried(error: Exception, named: str) -> None:
    opened = ShardBytes(flaky(zstd_frame(b"text\n"), error), "zstd", None)
    with closing(opened), pytest.raises(TransportError, match=named):
        opened.read()


def test_a_mistake_of_ours_is_not_taken_for_a_fault_of_transport() -> None:
    opened = ShardBytes(flaky(zstd_frame(b"text\n"), AttributeError("typo")), "zstd", None)
    with closing(opened), pytest.raises(AttributeError, match="typo"):
        opened.read()


def test_a_store_whose_object_changes_between_retries_is_refused() -> None:
    content = random.Random(0).randbytes(3_000_000)
    url = flaky(zstd_frame(content))
    with closing(ShardBytes(url, "zstd", None, RestartPoint(), TransportOptions(block_bytes=100_000))) as opened:
        opened.skip_to(10)
        opened.read()
        flaky(zstd_frame(content[1:]), OSError("gone"))
        with pytest.raises(SourceError, match="was replaced since the run began"):
            chunks_of(opened)


def test_an_unknown_store_is_refused_by_name() -> None:
    opened = ShardBytes("nowhere://shard.zst", "zstd", None)
    with closing(opened), pytest.raises(SourceError, match="Protocol not known: nowhere"):
        opened.read()


# --- the nasty corpus


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("multi-frame.jsonl.zst", 1_441_200),
        ("skippable-frames.jsonl.zst", 862_389),
        ("empty-frames-between.jsonl.zst", 570_050),
        ("pzstd.jsonl.zst", 11_529_600),
        ("long-27.jsonl.zst", 1_441_200),
        ("long-31.jsonl.zst", 1_441_200),
        ("level-22-ultra.jsonl.zst", 1_441_200),
        ("no-content-size.jsonl.zst", 1_441_200),
        ("concatenated-members.jsonl.gz", 1_000_703),
        ("bgzip-like.jsonl.gz", 1_441_200),
        ("concatenated.jsonl.bz2", 570_050),
        ("good.jsonl.xz", 570_160),
        ("good.jsonl.lz4", 570_160),
        ("empty-frame.jsonl.zst", 0),
        ("zero-bytes.jsonl.zst", 0),
        ("bomb-200MB-of-x.jsonl.zst", 200_005_992),
    ],
)
def test_odd_but_whole_shards_are_read_to_the_end(name: str, length: int) -> None:
    if not (NASTY / name).exists():
        pytest.skip(f"no {name} in {NASTY}")
    with closing(shard(NASTY / name, size=(NASTY / name).stat().st_size)) as opened:
        while opened.read():
            pass
        assert opened.position == length


@pytest.mark.parametrize(
    ("name", "length", "named"),
    [
        ("truncated.jsonl.zst", 786_432, "cut short"),
        ("truncated.jsonl.gz", 1_024_812, "cut short"),
        ("bad-checksum.jsonl.zst", 1_048_576, "checksum"),
        ("bad-crc.jsonl.gz", 1_335_776, "incorrect data check"),
        ("corrupt-second-frame.jsonl.zst", 360_927, "begins at compressed byte 80499"),
        ("trailing-garbage.jsonl.zst", 298_225, "only zero bytes"),
        ("html-error-page.jsonl.zst", 0, "an HTML page"),
        ("git-lfs-pointer.jsonl.zst", 0, "a Git LFS pointer"),
        ("gzip-named-zst.jsonl.zst", 0, "gzip"),
        ("plain-named-zst.jsonl.zst", 0, "plain JSON text"),
        ("magic-only.jsonl.zst", 0, "cut short"),
        ("garbage.jsonl.zst", 0, "no known format"),
    ],
)
def test_damaged_shards_give_what_is_good_and_name_the_damage(name: str, length: int, named: str) -> None:
    if not (NASTY / name).exists():
        pytest.skip(f"no {name} in {NASTY}")
    content, message = content_before_error(NASTY / name)
    assert len(content) == length
    assert named in message
