"""Every fault of transport, with every format, on every kind of store: the documents of a clean read, or an error by name.

The table of docs/faults.md is held against this one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stream_pretrain.data.corpus.file_formats import BY_ENDING, Format
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.document import DocumentReader, ReadOptions
from stream_pretrain.data.documents.reader import open_reader
from stream_pretrain.data.transport import retrying
from stream_pretrain.data.transport.compression import Compression, compression_of
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.errors import SourceError
from tests.corpora import documents, write_shard
from tests.data.shards import EVERY_WINDOW
from tests.integration.faulty_proxy import Store, proxied
from tests.integration.http_server import serve
from tests.integration.hub_server import Repository, running
from tests.integration.s3_server import s3_options, s3_server

STYLES = ["plain", "zst", "zst-multi", "gz", "parquet"]
STORES = ["Hub", "web", "S3"]
SAME = "the same documents"
COUNT = 1200
KIB = 1024


@dataclass(frozen=True)
class Fault:
    """What the server does, once the shard is being read; and what comes of it, by store where they differ."""

    faults: tuple[dict[str, Any], ...]
    outcome: str | dict[str, str] = SAME

    def on(self, store: str) -> str:
        return self.outcome if isinstance(self.outcome, str) else self.outcome[store]


REFUSED, MISSING, CHANGED = "ends: `access refused`", "ends: `not found`", "ends: `was replaced since the run began`"
FAULTS = {
    "connection reset in the middle of a body": Fault(tuple({"do": "reset", "after": n} for n in (9_000, 7, 3_333))),
    "body cut short": Fault(({"do": "short", "after": 9_000},)),
    "body cut short, of unknown length": Fault(({"do": "short", "after": 9_000, "length": False},)),
    "nothing more comes": Fault(({"do": "stall", "after": 9_000},)),
    "bytes trickle in": Fault(({"do": "trickle", "bytes": 1_997},)),
    "headers that drip in": Fault(({"do": "drip"},), {"Hub": SAME, "web": SAME, "S3": "ends: `--data.retry-deadline`"}),
    "429": Fault(({"do": "status", "code": 429},)),
    "429 with Retry-After": Fault(({"do": "status", "code": 429, "headers": {"Retry-After": "0"}},)),
    "500, 502, 503 and 504, longer than a client library waits": Fault(
        tuple({"do": "status", "code": code, "times": 3} for code in (500, 502, 503, 504))
    ),
    "503 until the deadline": Fault(({"do": "status", "code": 503, "times": 10_000},), "ends: `--data.retry-deadline`"),
    "401": Fault(({"do": "status", "code": 401, "times": 10},), REFUSED),
    "403": Fault(({"do": "status", "code": 403, "times": 10},), REFUSED),
    "404": Fault(({"do": "status", "code": 404, "times": 10},), MISSING),
    "Range ignored": Fault(({"do": "none", "ranges": False},)),
    "Range ignored, the body cut short, of unknown length": Fault(
        tuple({"do": "short", "after": n, "ranges": False, "length": False} for n in (9_000, 20_000))
    ),
    "an HTML page with status 200": Fault(
        ({"do": "html"},), {"Hub": "ends: `HTML page`", "web": "ends: `HTML page`", "S3": SAME}
    ),
    "an HTML page with status 200, after an answer": Fault(({"do": "none"}, {"do": "html"})),
    "the content changes": Fault(({"do": "reset", "after": 5_000, "replace_with": "other"},), CHANGED),
}


def name_of(style: str, other: bool = False) -> str:
    ending = {"plain": ".jsonl", "zst": ".jsonl.zst", "zst-multi": ".jsonl.zst", "gz": ".jsonl.gz", "parquet": ".parquet"}
    return f"{'other-' if other else ''}{style}{ending[style]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards, each with another of its kind, where the Hub has them."""
    folder = tmp_path_factory.mktemp("hub") / "datasets/org/name/main"
    folder.mkdir(parents=True)
    for style in STYLES:
        write_shard(folder / style, documents(COUNT), style)
        write_shard(folder / f"other-{style}", documents(COUNT - 100, seed=1), style)
    return folder


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[str, Store]]:
    root = folder.parents[3]
    match request.param:
        case "Hub":
            with running(root) as hub, proxied(hub.port) as proxy:
                endpoint = {"endpoint": proxy.url("").rstrip("/")}
                yield "Hub", Store(proxy, "hf://datasets/org/name@main/", "lfs/datasets/org/name/main/", endpoint)
        case "web":
            with serve(folder) as server, proxied(server.port) as proxy:
                yield "web", Store(proxy, proxy.url(""), "", {})
        case "S3":
            with s3_server(folder) as port, proxied(port) as proxy:
                yield "S3", Store(proxy, "s3://bucket/", "bucket/", s3_options(proxy.port))


def format_of(name: str) -> tuple[Format, Compression]:
    return next(value.read_as for ending, value in BY_ENDING.items() if ending in name), compression_of(name)


def read(store: Store, name: str, size: int | None, deadline: float) -> list[str]:
    """The documents of a shard, window by window, in blocks so small that there are many requests."""
    shard = Shard(store.url + name, name, size, None, *format_of(name))
    options = TransportOptions(store.storage_options, retry_deadline=deadline, block_bytes=16 * KIB, read_timeout=0.5)
    reader = open_reader(shard, ReadOptions("text", 64 * KIB, 1 << 20, options))
    reader.follow(EVERY_WINDOW, 0)
    return read_on(reader, RestartPoint(), 0)


def read_on(reader: DocumentReader, restart: RestartPoint, block: int) -> list[str]:
    """The documents from a window on, which is followed."""
    texts = []
    try:
        while (found := reader.read(EVERY_WINDOW, block, restart)) is not None:
            assert not found.skips
            texts += found.texts
            restart, block = found.restart, block + 1
    finally:
        reader.leave(EVERY_WINDOW)
    return texts


def test_an_object_that_is_replaced_while_it_is_read_or_between_is_refused_though_no_request_fails(folder: Path) -> None:
    with s3_server(folder) as port:
        import s3fs

        bucket = s3fs.S3FileSystem(**s3_options(port), skip_instance_cache=True)
        options = TransportOptions(s3_options(port), retry_deadline=5.0, block_bytes=16 * KIB)
        for name, pinned in ((name_of("plain"), False), (name_of("plain", other=True), True)):
            size = (folder / name).stat().st_size
            listed = bucket.info(f"bucket/{name}")["ETag"].strip('"')
            identity = f"etag:{listed}" if pinned else None
            opened = partial(ShardBytes, f"s3://bucket/{name}", "none", size, RestartPoint(), options, identity)
            with closing(opened()) as shard:
                assert shard.read()
                bucket.pipe_file(f"bucket/{name}", bytes(size))
                with pytest.raises(SourceError, match="was replaced since the run began"):
                    list(iter(shard.read, b""))
            with closing(opened()) as shard, pytest.raises(SourceError, match=f"etag was {listed}, is"):
                shard.read()


USUAL = [(store, style) for store in STORES for style in STYLES if store == "web" or style in ("zst-multi", "parquet")]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("store", "style"),
    [pytest.param(*each, marks=[] if each in USUAL else [pytest.mark.long]) for each in itertools.product(STORES, STYLES)],
    indirect=["store"],
)
def test_the_documents_are_those_of_a_clean_read_or_the_run_ends_with_a_name(
    fault: str, style: str, store: tuple[str, Store], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "_BACKOFF_BASE", 0.01)
    monkeypatch.setattr(retrying, "_BACKOFF_CAP", 0.05)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 2)  # it waits ever longer between them
    kind, server = store
    name, expected = name_of(style), FAULTS[fault].on(kind)
    size = None if kind == "web" else (folder / name).stat().st_size  # a web server has no listing that tells it
    deadline = (5.0 if kind == "S3" else 0.5) if "deadline" in expected else 20.0
    if "deadline" in expected:
        assert read(server, name, size, 20.0)  # what a client does at its beginning takes no part of it
    server.proxy.forget()
    faults = [
        fault | ({"replace_with": f"/{server.path}{name_of(style, other=True)}"} if "replace_with" in fault else {})
        for fault in FAULTS[fault].faults
    ]
    server.proxy.inject(server.path + name, *faults)
    if expected == SAME:
        assert read(server, name, size, deadline) == documents(COUNT)
    else:
        said = re.fullmatch(r"ends: `(.*)`", expected)
        assert said is not None
        with pytest.raises(SourceError, match=re.escape(said[1])):
            read(server, name, size, deadline)
    asked = [request["path"].partition("?")[0] for request in server.proxy.log()]
    assert f"/{server.path}{name}" in asked, "the fault was met"


@pytest.mark.parametrize("style", STYLES)
def test_a_branch_that_moves_while_a_shard_is_read_changes_no_document(style: str, tmp_path: Path) -> None:
    repository = tmp_path / "datasets/org/name"
    for commit, seed in (("main", 0), ("later", 1)):
        (repository / commit).mkdir(parents=True)
        write_shard(repository / commit / style, documents(COUNT, seed=seed), style)
    name = name_of(style)
    with running(tmp_path) as hub:
        first = f"hf://datasets/org/name@{Repository(repository, 'datasets', 'org/name').sha('main')}/"
        options = TransportOptions({"endpoint": hub.endpoint}, block_bytes=16 * KIB)
        shard = Shard(first + name, name, (repository / "main" / name).stat().st_size, None, *format_of(name))
        reader = open_reader(shard, ReadOptions("text", 64 * KIB, 1 << 20, options))
        reader.follow(EVERY_WINDOW, 0)
        begun = reader.read(EVERY_WINDOW, 0, RestartPoint())
        assert begun is not None
        (repository / "refs.json").write_text('{"main": "later"}')
        assert begun.texts + read_on(reader, begun.restart, 1) == documents(COUNT)
        again = open_reader(shard, ReadOptions("text", 64 * KIB, 1 << 20, options))
        again.follow(EVERY_WINDOW, 0)
        assert read_on(again, RestartPoint(), 0) == documents(COUNT)


def test_the_table_of_the_page_says_what_these_tests_have_seen() -> None:
    page = (Path(__file__).parents[2] / "docs" / "faults.md").read_text("utf-8")
    section = page.split("## When a server fails\n")[1].split("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    assert rows[0] == ["the server's fault", *STORES]
    assert rows[2:] == [[fault, *(FAULTS[fault].on(kind) for kind in STORES)] for fault in FAULTS]
