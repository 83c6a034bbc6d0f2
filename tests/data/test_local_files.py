"""Files of this machine that are none, or that are changed, replaced or taken away while a run reads them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.document import ReadOptions
from stream_pretrain.data.documents.reader import windows_of
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.errors import DeadlineError, SourceError
from tests.corpora import json_lines
from tests.data.shards import shard_of

OLD, NEW = (json_lines([f"{word} document {number:06d}" for number in range(20_000)]) for word in ("old", "new"))


def compressed(content: bytes, path: Path) -> bytes:
    return zstandard.compress(content) if path.suffix == ".zst" else content


def texts_of(shard: Shard) -> Iterator[str]:
    """The texts of a shard, a window of 256 KiB after the other."""
    options = ReadOptions("text", 1 << 18, 1 << 20, TransportOptions(retry_deadline=0.1))
    for window in windows_of(shard, options):
        yield from window.texts


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(compressed(NEW, path))
    other.replace(path)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(compressed(NEW, path))


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(compressed(NEW, path))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


CHANGES: dict[Callable[[Path], None], str] = {
    replace: "its first or last bytes are others",
    overwrite: "its first or last bytes are others",
    append: r"it had \d+ bytes, and has \d+",
    truncate: r"it had \d+ bytes, and has \d+",
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_before_it_is_read_gives_no_document(
    change: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(compressed(OLD, path))
    shard = shard_of(path)
    change(path)
    read: list[str] = []
    expected = CHANGES[change] if (change, name) != (replace, "a.jsonl.zst") else "."
    with pytest.raises(
        SourceError, match=rf"was changed since the run began \({expected}.*; restore it or start a new"
    ) as caught:
        read.extend(texts_of(shard))
    assert type(caught.value) is SourceError, "which --data.on-bad-shard skip does not pass over"
    assert read == []


@pytest.mark.parametrize("change", [overwrite, append, truncate])
def test_a_file_that_changes_while_it_is_read_gives_no_other_document(change: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(OLD)
    texts = texts_of(shard_of(path))
    read = [next(texts)]
    os.utime(path, ns=(1, 1))  # else a file system with coarse times may not tell
    change(path)
    with pytest.raises(SourceError, match=r"was changed since the run began \(.*; restore it or start a new"):
        read.extend(texts)
    assert 0 < len(read) < 20_000
    assert all(text.startswith("old") for text in read)


def test_a_file_that_is_only_touched_or_copied_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(OLD)
    shard = shard_of(path)
    texts = texts_of(shard)
    next(texts)
    path.touch()
    assert len(list(texts)) == 19_999
    (tmp_path / "copy").write_bytes(OLD)
    (tmp_path / "copy").replace(path)
    assert len(list(texts_of(shard))) == 20_000


def test_a_file_that_is_open_already_can_be_deleted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(OLD)
    texts = texts_of(shard_of(path))
    next(texts)
    path.unlink()
    assert len(list(texts)) == 19_999


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    path.unlink()
    with closing(socket.socket(socket.AF_UNIX)) as bound:
        bound.bind(str(path))


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def link_to_a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


NONE: dict[Callable[[Path], None], str] = {
    Path.unlink: "a.jsonl: is not there: restore it, or leave it out",
    make_folder: "a.jsonl: is a folder, not a file, which can be read more than once: leave it out",
    make_pipe: "a.jsonl: is a pipe, not a file, which can be read more than once: leave it out",
    make_socket: "a.jsonl: is a socket, not a file, which can be read more than once: leave it out",
    link_to_nothing: "a.jsonl: is a link to nothing, which is not there: restore or remove it",
    link_to_a_device: "a.jsonl: is a device, not a file, which can be read more than once: leave it out",
}


@pytest.mark.parametrize("change", NONE)
def test_what_is_no_file_any_more_is_named_at_once(change: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(OLD)
    shard = shard_of(path)
    change(path)
    with pytest.raises(SourceError) as caught:
        next(texts_of(shard))
    assert str(caught.value) == f"{tmp_path}/{NONE[change]}"


@pytest.mark.parametrize("change", [make_pipe, make_socket, link_to_nothing, link_to_a_device])
@pytest.mark.parametrize("entry", ["", "a.jsonl", "*.jsonl"])
def test_what_is_no_file_is_named_where_it_is_listed(change: Callable[[Path], None], entry: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(OLD)
    (tmp_path / "b.jsonl").write_bytes(OLD)
    change(path)
    with pytest.raises(SourceError) as caught:
        resolve(DataConfig(dataset=str(tmp_path / entry)))
    assert str(caught.value) == f"{tmp_path}/{NONE[change]}"


def test_a_file_system_that_answers_short_changes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(OLD)
    [shard] = resolve(DataConfig(dataset=str(tmp_path))).shards
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, count, start: read(descriptor, min(count, 1000), start))
    assert resolve(DataConfig(dataset=str(tmp_path))).shards == (shard,)
    assert len(list(texts_of(shard))) == 20_000


def test_a_fault_in_the_middle_of_what_identifies_a_file_does_not_pass_for_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(OLD)
    [shard] = resolve(DataConfig(dataset=str(tmp_path))).shards
    read, short = os.pread, [OLD[:1000], b""]
    monkeypatch.setattr(os, "pread", lambda *arguments: short.pop(0) if short else read(*arguments))
    with pytest.raises(DeadlineError, match="ends at 1000 of 65536 bytes"):  # after retries for 0.1 s
        list(texts_of(shard))


def test_a_folder_with_the_name_of_a_shard_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl.zst").mkdir()
    (tmp_path / "x.jsonl.zst" / "a.jsonl").write_bytes(OLD)
    assert [shard.name for shard in resolve(DataConfig(dataset=str(tmp_path))).shards] == ["x.jsonl.zst/a.jsonl"]


def test_a_file_that_this_user_may_not_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(OLD)

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    opened = ShardBytes(str(path), "none", len(OLD))
    monkeypatch.setattr(os, "open", refuse)  # the tests may run as root, who may read everything
    with pytest.raises(SourceError, match=r"a\.jsonl: this user may not read it: change its permissions"):
        opened.read()
