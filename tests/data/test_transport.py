"""Bytes of local shards: every compression, and what is left of a shard that is odd or damaged."""

from __future__ import annotations

import dataclasses
import errno
import os
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import zstandard

from stream_pretrain.data.transport.compression import CODECS, Compression, compression_of
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.errors import ContentError, SourceError, TransportError
from tests.data.compressed import COMPRESS, COMPRESSED, skippable, zstd_frame
from tests.data.shard_bytes import MIB, chunks_of, content_before_error, shard, words, write, zstd_stream

NASTY = Path(__file__).resolve().parents[3] / "shared" / "data" / "nasty"


def content_of(path: Path, size: int | None = None) -> bytes:
    with closing(shard(path, size=size)) as opened:
        return b"".join(chunk for _, chunk in chunks_of(opened))


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


def test_a_process_that_may_open_no_more_files_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    (tmp_path / "s.jsonl").write_text("content")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(TransportError, match=r"s\.jsonl: this process may not open more files .*: raise `ulimit -n`"):
        shard(tmp_path / "s.jsonl").read()


def test_lz4_without_its_package_says_what_pip_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lz4.frame", None)
    _, message = content_before_error(write(tmp_path, COMPRESS["lz4"](b"text\n"), "lz4"), SourceError)
    assert message.endswith("reading .lz4 shards needs a package: pip install lz4")


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
