"""What `datasets` reads from a web server that fails: the documents of a clean read, or an error with a name."""

from __future__ import annotations

import gzip
import io
import random
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.document import ReadOptions
from stream_pretrain.data.documents.reader import windows_of
from stream_pretrain.data.transport import retrying
from stream_pretrain.data.transport.compression import compression_of
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.errors import ContentError, SourceError, TransportError
from tests.corpora import json_lines
from tests.integration.faulty_proxy import Store, proxied
from tests.integration.http_server import Server, serve
from tests.integration.hub_server import running
from tests.integration.s3_server import s3_options, s3_server

TEXTS = [f"document {number} {random.Random(number).randbytes(200).hex()}" for number in range(2500)]
CSV = "".join(f"{line}\n" for line in ["text", *TEXTS]).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same texts in several formats, and other ones in files as long."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "s.csv").write_bytes(CSV)
    (folder / "s.csv.gz").write_bytes(gzip.compress(CSV))
    (folder / "s.jsonl.zst").write_bytes(zstandard.compress(json_lines(TEXTS)))
    with tarfile.open(folder / "s.tar", "w") as tar:
        for number, text in enumerate(TEXTS):
            member = tarfile.TarInfo(f"{number:06d}.txt")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    table = pa.table({"text": TEXTS})
    with pa.OSFile(str(folder / "s.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (folder / "other.csv").write_bytes(CSV.replace(b"document", b"Document"))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serve(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def no_faults(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.forget()
    monkeypatch.setattr(retrying, "_BACKOFF_BASE", 0.01)


def documents(
    url: str,
    *,
    size: int | None = None,
    builder: str = "csv",
    text_field: str = "text",
    deadline: float = 60.0,
    storage_options: dict[str, Any] | None = None,
) -> list[str]:
    options = ReadOptions(
        text_field,
        window_bytes=1 << 20,
        max_line_bytes=1 << 20,
        transport=TransportOptions(storage_options or {}, retry_deadline=deadline, block_bytes=300_000),
    )
    shard = Shard(url, url.rpartition("/")[2], size, None, "examples", compression_of(url), builder)
    return [text for window in windows_of(shard, options) for text in window.texts]


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz"])
@pytest.mark.parametrize(
    "fault",
    [
        {"do": "reset", "after": 100_000, "times": 8},
        {"do": "short", "after": 100_000, "times": 8},
        {"do": "status", "code": 503, "times": 3},
        {"do": "status", "code": 429, "times": 3, "headers": {"Retry-After": "0"}},
    ],
    ids=["reset", "short", "503", "429"],
)
def test_the_documents_are_those_of_a_clean_read(server: Server, name: str, fault: dict[str, object]) -> None:
    server.inject(name, {"do": "none"}, fault)
    assert documents(server.url(name)) == TEXTS


def test_a_lost_connection_goes_on_at_the_missing_byte(server: Server) -> None:
    server.inject("s.csv", {"do": "none", "times": 3}, {"do": "reset", "after": 100_000})
    assert documents(server.url("s.csv"), size=len(CSV)) == TEXTS
    assert [request["range"] for request in server.log()][:6] == [
        "bytes=0-262143",  # where its rows end is told from its head
        "bytes=0-299999",
        "bytes=300000-599999",
        "bytes=600000-899999",
        "bytes=700000-899999",
        "bytes=900000-1036394",
    ]


@pytest.mark.parametrize(
    ("code", "message"), [(404, r"s\.csv: not found"), (403, r"s\.csv: access refused"), (503, "raise --data.retry-deadline")]
)
def test_a_shard_that_cannot_be_had_ends_the_run(server: Server, code: int, message: str) -> None:
    server.inject("s.csv", {"do": "status", "code": code, "times": 1000})
    with pytest.raises(TransportError, match=message):
        documents(server.url("s.csv"), deadline=2.0)


def test_content_that_changes_while_it_is_read_is_not_mixed_with_the_old(server: Server) -> None:
    server.inject("s.csv", {"do": "none"}, {"do": "reset", "after": 100_000, "replace_with": "other.csv"})
    with pytest.raises(SourceError, match=r"s\.csv: was replaced since the run began to read it \(etag was"):
        documents(server.url("s.csv"))


def test_a_shard_of_another_size_than_listed_is_damage(server: Server) -> None:
    with pytest.raises(ContentError, match=rf"s\.csv: has {len(CSV)} bytes, but {len(CSV) + 5} are listed"):
        documents(server.url("s.csv"), size=len(CSV) + 5)


@pytest.fixture(scope="module", params=["Hub", "S3"])
def behind_a_proxy(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The same files on another store, behind a proxy that can fail."""
    if request.param == "S3":
        with s3_server(folder) as port, proxied(port) as proxy:
            yield Store(proxy, "s3://bucket/", "bucket/", s3_options(proxy.port))
    else:
        root = tmp_path_factory.mktemp("hub")
        shutil.copytree(folder, root / "datasets/org/name/main")
        with running(root) as hub, proxied(hub.port) as proxy:
            endpoint = {"endpoint": proxy.url("").rstrip("/")}
            yield Store(proxy, "hf://datasets/org/name@main/", "lfs/datasets/org/name/main/", endpoint)


@pytest.mark.parametrize(("name", "builder"), [("s.csv.gz", "csv"), ("s.arrow", "arrow")])
@pytest.mark.parametrize(
    "faults",
    [
        ({"do": "reset", "after": 100_000}, {"do": "short", "after": 50_000}),
        ({"do": "status", "code": 503, "times": 3}, {"do": "status", "code": 429, "headers": {"Retry-After": "0"}}),
    ],
    ids=["reset and short", "503 and 429"],
)
def test_the_hub_and_s3_may_fail_as_a_web_server_may(
    behind_a_proxy: Store, name: str, builder: str, faults: tuple[dict[str, Any], ...]
) -> None:
    behind_a_proxy.proxy.forget()
    behind_a_proxy.proxy.inject(behind_a_proxy.path + name, {"do": "none"}, *faults)
    found = documents(behind_a_proxy.url + name, builder=builder, storage_options=behind_a_proxy.storage_options)
    assert found == TEXTS
    asked = [request["status"] for request in behind_a_proxy.proxy.log() if request["path"].endswith(f"/{name}")]
    assert len(asked) > len(faults)


def test_s3_is_read_with_every_compression_and_builder(folder: Path) -> None:
    with s3_server(folder) as port:
        options, bucket = s3_options(port), "s3://bucket/"
        assert documents(f"{bucket}s.csv", storage_options=options) == TEXTS
        assert documents(f"{bucket}s.csv.gz", storage_options=options) == TEXTS
        assert documents(f"{bucket}s.jsonl.zst", builder="json", storage_options=options) == TEXTS
        assert documents(f"{bucket}s.tar", builder="webdataset", text_field="txt", storage_options=options) == TEXTS
