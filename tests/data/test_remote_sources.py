"""URLs as a corpus, and what the listings of stores tell."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.transport.object_store import FsspecFile
from stream_pretrain.errors import SourceError, TransportError
from stream_pretrain.urls import without_secrets
from tests.data.named_corpora import names


def test_web_urls_are_taken_as_they_are_without_a_request(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        "https://nowhere.invalid/c4/2019/part%200.json.gz?signature=x\nhttps://nowhere.invalid/c4/2020/part%200.json.gz\n"
    )
    assert resolve(DataConfig(dataset=f"@{tmp_path}/list.txt")).shards == (
        Shard(
            "https://nowhere.invalid/c4/2019/part%200.json.gz?signature=x", "2019/part 0.json.gz", None, None, "jsonl", "gzip"
        ),
        Shard("https://nowhere.invalid/c4/2020/part%200.json.gz", "2020/part 0.json.gz", None, None, "jsonl", "gzip"),
    )


def test_two_urls_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("https://nowhere.invalid/a.jsonl?part=1\nhttps://nowhere.invalid/a.jsonl?part=2\n")
    with pytest.raises(SourceError) as raised:
        resolve(DataConfig(dataset=f"@{tmp_path}/list.txt"))
    url = "https://nowhere.invalid/a.jsonl"
    assert str(raised.value) == f"{url} and {url} have the same name, {url}"


def test_a_scheme_in_capitals_and_a_star_in_a_query_are_as_good_as_any() -> None:
    [shard] = resolve(DataConfig(dataset="HTTPS://nowhere.invalid/a.jsonl?expires=*")).shards
    assert (shard.url, shard.name) == ("https://nowhere.invalid/a.jsonl?expires=*", "a.jsonl")


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(SourceError, match=r"^http://\[::1/a\.jsonl: is not a URL: Invalid IPv6 URL$"):
        resolve(DataConfig(dataset="http://[::1/a.jsonl"))


def test_no_password_and_no_signature_gets_into_names_and_messages(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as raised:
        resolve(DataConfig(dataset="https://me:secret@nowhere.invalid/a.docx?signature=secret"))
    assert str(raised.value).startswith("https://nowhere.invalid/a.docx: a.docx is not plain text")
    (tmp_path / "list.txt").write_text("https://me:secret@one.invalid/a.jsonl?x=secret\nhttps://two.invalid/a.jsonl\n")
    corpus = resolve(DataConfig(dataset=f"@{tmp_path}/list.txt"))
    assert [shard.name for shard in corpus.shards] == ["one.invalid/a.jsonl", "two.invalid/a.jsonl"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me@host/a?b#c", "https://host/a"),
        ("https://me:p@ss@host/a", "https://host/a"),
        ("HTTPS://host/a?b", "HTTPS://host/a"),
        ("sftp://me:secret@host/a", "sftp://host/a"),
        ("abfs://container@account.net/a", "abfs://container@account.net/a"),
        ("hf://datasets/org/name@main/a@b", "hf://datasets/org/name@main/a@b"),
        ("/folder/a?b", "/folder/a?b"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An object store at memory://corpus whose objects have ETags; returns the listings it was asked for."""
    asked: list[str] = []
    listed = MemoryFileSystem.ls

    def ls(self: MemoryFileSystem, path: str, detail: bool = True, **options: Any) -> Any:
        asked.append(path)
        return [info | {"ETag": '"d41d8cd9-2"'} for info in listed(self, path, detail=True, **options)]

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    monkeypatch.setattr(MemoryFileSystem, "find", AbstractFileSystem.find)
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    store = fsspec.filesystem("memory")
    for name in ("a.jsonl.zst", "b [1].jsonl", "README.md", "sub/c.jsonl", ".d.jsonl"):
        store.pipe(f"/corpus/{name}", b"1234")
    asked.clear()
    return asked


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://corpus", ["a.jsonl.zst", "b [1].jsonl", "sub/c.jsonl"]),
        ("memory://corpus/sub/", ["c.jsonl"]),
        ("memory://corpus/*.jsonl*", ["a.jsonl.zst", "b [1].jsonl"]),
        ("memory://corpus/**/*.jsonl", ["b [1].jsonl", "sub/c.jsonl"]),
        ("memory://corpus/sub/c.jsonl", ["c.jsonl"]),
        ("memory://corpus/b [1].jsonl", ["b [1].jsonl"]),
    ],
)
def test_urls_stand_for_files_folders_and_patterns(listings: list[str], url: str, expected: list[str]) -> None:
    assert names(url) == expected


def test_size_and_etag_come_from_the_listing(listings: list[str]) -> None:
    assert resolve(DataConfig(dataset="memory://corpus/sub")).shards == (
        Shard("memory:///corpus/sub/c.jsonl", "c.jsonl", 4, "etag:d41d8cd9-2", "jsonl", "none"),
    )


def test_objects_of_a_store_that_nobody_may_list_have_no_size(listings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "ls", refuse)
    assert resolve(DataConfig(dataset="memory://corpus/a.jsonl.zst")).shards == (
        Shard("memory:///corpus/a.jsonl.zst", "a.jsonl.zst", None, None, "jsonl", "zstd"),
    )
    with pytest.raises(TransportError, match=r"^memory://corpus/\*: access refused \(PermissionError: Access Denied\)"):
        resolve(DataConfig(dataset="memory://corpus/*"))


def test_no_object_is_asked_for_alone(listings: list[str], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("memory://corpus/*.jsonl*\nmemory://corpus/sub/*.jsonl\n")
    corpus = resolve(DataConfig(dataset=f"@{tmp_path}/list.txt"))
    assert [shard.size for shard in corpus.shards] == [4, 4, 4]
    assert listings == ["/corpus", "/corpus/sub"]


def test_a_url_that_matches_nothing_is_named(listings: list[str]) -> None:
    for url in ("memory://corpus/nothing-*.jsonl", "memory://corpus/nothing.jsonl", "memory://nowhere/a.jsonl"):
        with pytest.raises(SourceError) as raised:
            resolve(DataConfig(dataset=url))
        assert str(raised.value).startswith(f"{url}: no file matches")


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(SourceError, match=r"^gopher://x/a\.jsonl: cannot be opened"):
        resolve(DataConfig(dataset="gopher://x/a.jsonl"))


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [
        ("s3://bucket/a.jsonl", "s3fs", "s3fs"),
        ("gs://bucket/a*.jsonl", "gcsfs", "gcsfs"),
        ("abfs://c@account/a.jsonl", "adlfs", "adlfs"),
        ("sftp://host/a.jsonl", "paramiko", "paramiko"),
        ("smb://host/a.jsonl", "smbclient", "smbprotocol"),
        ("lakefs://x/main/a.jsonl", "lakefs_spec", "lakefs-spec"),
    ],
)
def test_a_store_without_its_package_says_what_pip_takes(
    url: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url.partition("://")[0], raising=False)
    for implementation in ("sftp", "smb"):
        monkeypatch.delitem(sys.modules, f"fsspec.implementations.{implementation}", raising=False)
    said = f"{url}: {url.partition('://')[0]}:// needs a package: pip install {package}"
    with pytest.raises(SourceError) as raised:
        resolve(DataConfig(dataset=url))
    assert str(raised.value) == said
    with pytest.raises(SourceError) as raised:
        next(FsspecFile(url, url, {}, 1.0, {}).pieces(0, 1))
    assert str(raised.value) == said


def test_storage_options_reach_the_store(listings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    url_to_fs = fsspec.url_to_fs

    def watched(url: str, **options: Any) -> Any:
        seen.append(options)
        return url_to_fs(url)

    monkeypatch.setattr(fsspec, "url_to_fs", watched)
    resolve(DataConfig(dataset="memory://corpus", storage_options='{"anon": true}'))
    assert seen == [{"anon": True}]


def test_an_option_that_a_store_does_not_know_is_an_error_of_the_user() -> None:
    with pytest.raises(SourceError, match=r"^s3://bucket/: cannot be listed with --data.storage-options: .*'nonsense'"):
        resolve(DataConfig(dataset="s3://bucket/", storage_options='{"nonsense": 1}'))
