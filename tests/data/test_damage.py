"""Damage of a shard: an error that names it, after all that is good."""

from __future__ import annotations

import bz2
import gzip
from contextlib import closing
from pathlib import Path

import pytest

from stream_pretrain.data.transport.compression import Compression
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.errors import ContentError, SourceError, TransportError
from tests.data.compressed import COMPRESS, COMPRESSED, skippable, zstd_frame
from tests.data.shard_bytes import chunks_of, content_before_error, shard, words, write, zstd_stream


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
