"""A shard that is replaced where no listing tells: between two starts, between two epochs, on web servers and other stores."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus import remote_files
from stream_pretrain.data.corpus.remote_files import with_web_sizes
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.corpus.shard import Corpus, Shard
from stream_pretrain.data.corpus.unchanged_since_start import resolve_pinned
from stream_pretrain.data.documents.document import ReadOptions
from stream_pretrain.data.documents.reader import windows_of
from stream_pretrain.data.transport import retrying
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.data.transport.store_memory import StoreMemory
from stream_pretrain.errors import SourceError, TransportError
from tests.corpora import documents, json_lines, write_shard, write_tiny_bert
from tests.forks import ENVIRONMENT, trainers
from tests.integration.http_server import Server, serve

OLD, NEW, LONGER = json_lines(["old text"]), json_lines(["new text"]), json_lines(["longer text"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl", "untagged-c.jsonl"):
        (folder / name).write_bytes(OLD)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serve(folder) as server:
        yield server


@pytest.fixture
def listed(server: Server, tmp_path: Path) -> DataConfig:
    """What the options say: a file with the three URLs."""
    (tmp_path / "list.txt").write_text("".join(f"{server.url(name)}\n" for name in ("a.jsonl", "b.jsonl", "untagged-c.jsonl")))
    return DataConfig(dataset=f"@{tmp_path}/list.txt", retry_deadline=20.0)


def pinned(data: DataConfig) -> Corpus:
    return with_web_sizes(resolve(data), data)


def texts(shard: Shard, memory: StoreMemory | None = None) -> list[str]:
    """What a stream reads of a shard; memory: what it has learnt before."""
    options = ReadOptions("text", 1 << 20, 1 << 20, TransportOptions(memory=memory or StoreMemory()))
    [window] = windows_of(shard, options)
    return window.texts


# Web servers


def test_a_web_file_is_pinned_by_its_size_and_etag_or_its_size_alone(server: Server, listed: DataConfig) -> None:
    etag = hashlib.sha256(OLD).hexdigest()[:16]
    assert [(shard.name, shard.size, shard.identity) for shard in pinned(listed).shards] == [
        ("a.jsonl", 30, f"etag:{etag}"),
        ("b.jsonl", 30, f"etag:{etag}"),
        ("untagged-c.jsonl", 30, "size:30"),
    ]
    asked = sorted((request["path"], request["range"]) for request in server.log())
    assert asked == [("/a.jsonl", "bytes=0-0"), ("/b.jsonl", "bytes=0-0"), ("/untagged-c.jsonl", "bytes=0-0")]


@pytest.mark.parametrize(("name", "content"), [("b.jsonl", NEW), ("b.jsonl", LONGER), ("untagged-c.jsonl", LONGER)])
def test_a_web_file_replaced_between_two_starts_is_named(folder: Path, listed: DataConfig, name: str, content: bytes) -> None:
    corpus = pinned(listed)
    assert resolve_pinned(corpus, listed) == corpus
    (folder / name).write_bytes(content)
    sizes = "" if content == NEW else r" \(it had 30 bytes, and has 33\)"
    with pytest.raises(
        SourceError, match=rf"is not the corpus this run began with: {name} changed{sizes}; restore it or start"
    ):
        resolve_pinned(corpus, listed)


@pytest.mark.parametrize(("name", "content"), [("b.jsonl", NEW), ("untagged-c.jsonl", LONGER)])
def test_a_web_file_replaced_before_its_first_reading_is_refused_by_the_process_that_reads_it(
    folder: Path, listed: DataConfig, name: str, content: bytes
) -> None:
    [shard] = [shard for shard in pinned(listed).shards if shard.name == name]
    (folder / name).write_bytes(content)
    with pytest.raises(SourceError, match=rf"/{name}: was replaced since the run began .*; restore it or start a new run"):
        texts(shard)


def test_a_web_file_that_nobody_pinned_is_refused_where_a_later_epoch_finds_another(folder: Path, server: Server) -> None:
    shard = Shard(server.url("a.jsonl"), "a.jsonl", None, None, "jsonl", "none")
    memory = StoreMemory()
    assert texts(shard, memory) == texts(shard, memory) == ["old text"]
    (folder / "a.jsonl").write_bytes(NEW)
    with pytest.raises(SourceError, match=r"a\.jsonl: was replaced since the run began to read it \(etag was"):
        texts(shard, memory)
    assert texts(shard) == ["new text"], "another stream of the process begins with what is there now"


def test_a_web_file_written_anew_with_the_same_content_is_the_same(folder: Path, listed: DataConfig) -> None:
    corpus = pinned(listed)
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    assert resolve_pinned(corpus, listed) == corpus
    assert [texts(shard) for shard in corpus.shards] == [["old text"]] * 3


def test_where_neither_size_nor_etag_is_told_nothing_is_known_again_by(folder: Path, server: Server) -> None:
    server.inject("untagged-c.jsonl", *[{"do": "none", "ranges": False, "length": False, "chunked": True}] * 4)
    data = DataConfig(dataset=server.url("untagged-c.jsonl"))
    corpus = pinned(data)
    assert [(shard.size, shard.identity) for shard in corpus.shards] == [(None, None)]
    os.utime(folder / "untagged-c.jsonl", (1e9, 1e9))
    assert resolve_pinned(corpus, data) == corpus


def test_a_signature_may_be_new_at_each_start_the_content_may_not(folder: Path, server: Server) -> None:
    first, second = (DataConfig(dataset=server.url(f"a.jsonl?signature={n}")) for n in (1, 2))
    corpus = pinned(first)
    assert resolve_pinned(corpus, second).shards[0].url == server.url("a.jsonl?signature=2")
    (folder / "a.jsonl").write_bytes(NEW)
    with pytest.raises(SourceError, match=r"a\.jsonl changed; restore it"):
        resolve_pinned(corpus, second)


def test_a_server_that_is_busy_at_the_start_is_asked_again(
    server: Server, listed: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "_BACKOFF_BASE", 0.01)
    server.inject("b.jsonl", {"do": "status", "code": 503, "times": 3}, {"do": "reset", "after": 0})
    assert [shard.size for shard in pinned(listed).shards] == [30, 30, 30]


def test_a_web_file_that_is_missing_is_named_at_the_start_and_nobody_waits_for_the_others(
    folder: Path, server: Server, listed: DataConfig
) -> None:
    (folder / "b.jsonl").unlink()
    server.inject("a.jsonl", {"do": "status", "code": 429, "headers": {"Retry-After": "15"}})
    with pytest.raises(TransportError, match=r"b\.jsonl: not found \(HTTP 404\)"):
        pinned(listed)
    asked = [request for request in server.log() if request["path"] == "/a.jsonl"]
    assert len(asked) <= 1, "none where the answer for the other file came first; not asked again in any case"


def test_many_web_files_are_pinned_at_the_first_start_and_compared_when_they_are_opened(
    folder: Path,
    server: Server,
    listed: DataConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(remote_files, "MOST_RECHECKED", 2)
    with caplog.at_level(logging.WARNING):
        corpus = pinned(listed)
    [said] = caplog.messages
    assert "asking servers for the size and ETag of 3 files" in said
    asked = len(server.log())

    (folder / "b.jsonl").write_bytes(NEW)
    again = resolve_pinned(corpus, listed)
    assert again == corpus
    assert len(server.log()) == asked
    with pytest.raises(SourceError, match=r"/b\.jsonl: was replaced since the run began .*; restore it or start a new run"):
        texts(again.shards[1])


def test_of_many_web_files_one_that_is_signed_anew_is_read_by_its_new_url_and_not_asked_for_again(
    server: Server, listed: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "MOST_RECHECKED", 2)
    corpus = pinned(listed)
    asked = len(server.log())
    (tmp_path / "list.txt").write_text((tmp_path / "list.txt").read_text().replace("b.jsonl", "b.jsonl?signature=new"))
    assert resolve_pinned(corpus, listed).shards[1].url == server.url("b.jsonl?signature=new")
    assert len(server.log()) == asked


def train(data: str, model: Path, out: Path, steps: int) -> subprocess.CompletedProcess[str]:
    program = [
        *("-m", "stream_pretrain", f"--dataset={data}", f"--model.config={model}", f"--model.tokenizer={model}"),
        *(f"--output-dir={out}", f"--max-steps={steps}", "--sequence-length=32", "--global-batch-size=4", "--workers=1"),
        *("--lanes=2", "--save-every=2", "--run.wandb=disabled"),
    ]
    return trainers().run(program, ENVIRONMENT)


def test_a_run_does_not_go_on_with_a_web_file_that_was_replaced(folder: Path, server: Server, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shard(folder / name, documents(100), "plain")
    model, out = write_tiny_bert(tmp_path / "model"), tmp_path / "out"
    (tmp_path / "list.txt").write_text(f"{server.url('a.jsonl')}\n{server.url('b.jsonl')}\n")
    assert train(f"@{tmp_path}/list.txt", model, out, 2).returncode == 0
    assert train(f"@{tmp_path}/list.txt", model, out, 4).returncode == 0
    content = (folder / "b.jsonl").read_bytes()
    (folder / "b.jsonl").write_bytes(content.replace(b"doc", b"cod"))
    refused = train(f"@{tmp_path}/list.txt", model, out, 6)
    assert refused.returncode == 1
    assert "b.jsonl changed; restore it or start a new run" in refused.stderr.splitlines()[-1]
    assert json.loads((out / "run.json").read_text())["step"] == 4


# Other stores that fsspec knows


class Listing(MemoryFileSystem):  # type: ignore[misc]
    """A store that remembers its listings, as most do, and tells of its objects what `told` says."""

    protocol = "listing"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    told: ClassVar[dict[str, Any]] = {}
    remembered: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.replace("listing://", "memory://"))
        return stripped

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        found = [{**info, **self.told} for info in super().ls(path, detail=True)]
        self.remembered.update({info["name"]: info for info in found})
        return found if detail else [info["name"] for info in found]

    def info(self, path: str, **_: Any) -> Any:
        path = self._strip_protocol(path)
        if path not in self.remembered:
            self.remembered[path] = {**super().info(path), **self.told}
        return self.remembered[path]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.remembered.clear()


@pytest.fixture
def store() -> Iterator[type[Listing]]:
    fsspec.register_implementation("listing", Listing, clobber=True)
    Listing.store.clear()
    Listing().pipe_file("/bucket/a.jsonl", OLD)
    yield Listing
    Listing.told, Listing.remembered = {}, {}


KINDS = [{"md5Hash": "{}", "etag": "of the metadata"}, {"crc32c": "{}"}, {"sha": "{}"}, {"etag": "{}"}]


@pytest.mark.parametrize("told", KINDS, ids=["md5", "crc32c", "sha", "etag"])
def test_an_object_replaced_by_one_as_long_is_refused_by_whatever_its_store_tells_of_the_content(
    told: dict[str, str], store: type[Listing]
) -> None:
    store.told = {kind: value.format("first") for kind, value in told.items()}
    corpus = resolve(DataConfig(dataset="listing://bucket/a.jsonl"))
    assert texts(corpus.shards[0]) == texts(corpus.shards[0]) == ["old text"]
    store.told = {kind: value.format("second") for kind, value in told.items()}
    with pytest.raises(SourceError, match=r"a\.jsonl: was replaced since the run began .* was first, is second\)"):
        texts(corpus.shards[0])


def test_an_object_of_which_nothing_but_size_and_time_is_told_is_known_by_its_size_alone(store: type[Listing]) -> None:
    store.told = {"mtime": 1}
    [shard] = resolve(DataConfig(dataset="listing://bucket/a.jsonl")).shards
    assert shard.identity is None
    memory = StoreMemory()
    assert texts(shard, memory) == ["old text"]
    store.told = {"mtime": 2}
    assert texts(shard, memory) == ["old text"]
    store().pipe_file("/bucket/a.jsonl", LONGER)
    with pytest.raises(SourceError, match=r"\(size was 30, is 33\)"):
        texts(shard, memory)


def test_an_object_that_nobody_pinned_is_refused_where_a_later_epoch_finds_another(store: type[Listing]) -> None:
    store.told = {"etag": "first"}
    options = TransportOptions()
    with closing(ShardBytes("listing://bucket/a.jsonl", "none", None, options=options)) as shard:
        assert shard.read() == OLD
    store.told = {"etag": "second"}
    with (
        closing(ShardBytes("listing://bucket/a.jsonl", "none", None, options=options)) as shard,
        pytest.raises(SourceError, match="replaced"),
    ):
        shard.read()


class Remembering(Listing):
    """It goes by its first listing of a folder, as stores do whose listings cost time."""

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        path = self._strip_protocol(path)
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True, **options)
        return self.dircache[path] if detail else [info["name"] for info in self.dircache[path]]


def test_an_object_replaced_between_two_runs_of_a_process_is_listed_anew(store: type[Listing]) -> None:
    fsspec.register_implementation("listing", Remembering, clobber=True)
    store.told = {"etag": "first"}
    assert resolve(DataConfig(dataset="listing://bucket/a.jsonl")).shards[0].identity == "etag:first"
    store.told = {"etag": "second"}
    [shard] = resolve(DataConfig(dataset="listing://bucket/a.jsonl")).shards
    assert shard.identity == "etag:second"
    assert texts(shard) == ["old text"]
