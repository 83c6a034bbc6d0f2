"""Shards over HTTP while connection and server fail: the same bytes as without a fault, or an error by name."""

from __future__ import annotations

import gzip
import logging
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import zstandard

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.document import ReadOptions
from stream_pretrain.data.documents.reader import open_reader
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.transport import http, retrying
from stream_pretrain.data.transport.compression import compression_of
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.data.transport.store_memory import StoreMemory
from stream_pretrain.errors import ContentError, SourceError, TransportError
from tests.data.shards import received
from tests.integration.http_server import Server, serve

KIB = 1024
BLOCK = 64 * KIB
FRAME = 100_000
SHARDS = ["plain.jsonl", "single.jsonl.zst", "multi.jsonl.zst", "members.jsonl.gz"]


def text(kib: int = 300) -> bytes:
    """Random hexadecimal: compresses to about half, so that every form of it has several blocks."""
    return random.Random(7).randbytes(kib * KIB // 2).hex().encode()


def written(name: str, content: bytes) -> bytes:
    parts = [content[start : start + FRAME] for start in range(0, len(content), FRAME)]
    match name:
        case "single.jsonl.zst":
            return zstandard.ZstdCompressor(write_checksum=True).compress(content)
        case "multi.jsonl.zst":
            return b"".join(zstandard.ZstdCompressor().compress(part) for part in parts)
        case "members.jsonl.gz":
            return b"".join(gzip.compress(part, mtime=0) for part in parts)
        case _:
            return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served")
    for name in SHARDS:
        (path / name).write_bytes(written(name, text()))
        (path / f"other-{name}").write_bytes(written(name, text().upper()))
    lines = [b'{"text": "line %d"}' % number for number in range(4000)]
    (path / "lines.jsonl").write_bytes(b"".join(line.ljust(99) + b"\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def process(folder: Path) -> Iterator[Server]:
    with serve(folder) as server:
        yield server


@pytest.fixture
def server(process: Server) -> Server:
    for thread in reading_ahead():  # a block that the test before has let go of is still asked for
        thread.join()
    process.forget()
    return process


def reading_ahead() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read ahead"]


def opened(server: Server, name: str, size: int | None = None, **options: Any) -> closing[ShardBytes]:
    chosen = TransportOptions(**{"block_bytes": BLOCK, "read_timeout": 5.0, "retry_deadline": 30.0, **options})
    return closing(ShardBytes(server.url(name), compression_of(name), size, RestartPoint(), chosen))


def content_of(shard: ShardBytes) -> bytes:
    content = b""
    while chunk := shard.read():
        content += chunk
    return content


# Those that test_fault_matrix.py has not.
FAULTS: dict[str, list[dict[str, Any]]] = {
    "reset at once": [{"do": "reset", "after": 0}],
    "range ignored once": [{"do": "none"}, {"do": "none", "ranges": False}],
    "range ignored always": [{"do": "none", "ranges": False, "times": 40}],
    "range ignored always, no Content-Length": [{"do": "none", "ranges": False, "length": False, "times": 40}],
    "range ignored and cut short, no Content-Length": [
        {"do": "short", "after": 20_000, "ranges": False, "length": False},
        {"do": "none"},
        {"do": "short", "after": 70_000, "ranges": False, "length": False},
    ],
    "a weak ETag in between": [{"do": "none"}, {"do": "none", "weak": True}],
    "bytes that begin before those asked for": [{"do": "none"}, {"do": "none", "shift": -100}],
}


@pytest.mark.parametrize("name", SHARDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_bytes_are_those_of_a_clean_read(name: str, fault: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "_BACKOFF_BASE", 0.01)
    server.inject(name, *FAULTS[fault])
    with opened(server, name, read_timeout=0.5) as shard:
        assert content_of(shard) == text()


@pytest.mark.parametrize("name", SHARDS)
def test_a_retry_asks_for_the_byte_that_is_missing(name: str, server: Server) -> None:
    server.inject(name, {"do": "reset", "after": 10_000})
    with opened(server, name) as shard:
        content_of(shard)
    assert [request["range"] for request in server.log()][:3] == ["bytes=0-65535", "bytes=10000-65535", "bytes=65536-131071"]


def test_each_byte_is_asked_for_once(server: Server, folder: Path) -> None:
    size = (folder / "plain.jsonl").stat().st_size
    with received() as sizes, opened(server, "plain.jsonl", size) as shard:
        content_of(shard)
        assert sum(sizes) == size
    blocks = [f"bytes={start}-{min(start + BLOCK, size) - 1}" for start in range(0, size, BLOCK)]
    assert [request["range"] for request in server.log()] == blocks


@pytest.mark.parametrize("headers", [{"headers": {"Retry-After": "7200"}}, {"retry_date_in": 7200}])
def test_retry_after_beyond_the_deadline_ends_at_once(headers: dict[str, Any], server: Server) -> None:
    server.inject("plain.jsonl", {"do": "status", "code": 429, **headers})
    with (
        opened(server, "plain.jsonl") as shard,
        pytest.raises(
            TransportError,
            match=r"HTTP 429\), and the next attempt would be in 7\d{3} s; .*raise --data\.retry-deadline \(now 30 s\)",
        ),
    ):
        shard.read()


@pytest.mark.parametrize(
    "asked", [{"headers": {"Retry-After": "1"}}, {"retry_date_in": 1}, {"headers": {"RateLimit": '"api";r=0;t=1'}}]
)
def test_the_wait_is_the_one_the_server_asks_for(
    asked: dict[str, Any], server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.inject("plain.jsonl", {"do": "status", "code": 429, **asked})
    with caplog.at_level(logging.WARNING), opened(server, "plain.jsonl") as shard:
        shard.read()
    waited = float(caplog.messages[0].split("retrying in ")[1].removesuffix(" s"))
    assert (0.0 if "retry_date_in" in asked else 1.0) <= waited <= 1.0  # a date has whole seconds


def test_a_server_that_asks_for_no_wait_is_asked_ever_more_rarely(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "_BACKOFF_BASE", 0.2)
    server.inject("plain.jsonl", {"do": "status", "code": 503, "headers": {"Retry-After": "0"}, "times": 3})
    with caplog.at_level(logging.WARNING), opened(server, "plain.jsonl") as shard:
        shard.read()
    waits = [float(message.split("retrying in ")[1].removesuffix(" s")) for message in caplog.messages]
    assert len(waits) == 3
    assert waits[0] >= 0.1
    assert waits[2] >= 0.4


def test_a_server_that_ignores_ranges_and_tells_no_size_is_refused(server: Server, folder: Path) -> None:
    (folder / "untold-plain.jsonl").write_bytes(text())
    server.inject("untold-plain.jsonl", {"do": "none", "ranges": False, "length": False})
    with (
        opened(server, "untold-plain.jsonl") as shard,
        pytest.raises(TransportError, match="does not say how large the file is"),
    ):
        shard.read()


def test_a_server_that_keeps_failing_is_named_with_the_offset_and_the_last_cause(server: Server) -> None:
    server.inject("plain.jsonl", {"do": "none"}, {"do": "status", "code": 503, "times": 9})
    named = r"plain\.jsonl: nothing from compressed byte 65536 on .*HTTP 503.*--data\.retry-deadline"
    with opened(server, "plain.jsonl", retry_deadline=0.1) as shard, pytest.raises(TransportError, match=named):
        content_of(shard)


@pytest.mark.parametrize(
    ("code", "named"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "check the id"), (410, "check the id"), (400, "HTTP 400")]
)
def test_a_refusal_is_not_retried_and_says_what_to_check(code: int, named: str, server: Server) -> None:
    server.inject("plain.jsonl", {"do": "status", "code": code})
    with opened(server, "plain.jsonl") as shard, pytest.raises(TransportError, match=named):
        shard.read()
    assert len(server.log()) == 1


def test_a_file_that_is_not_there_is_not_retried(server: Server) -> None:
    with opened(server, "absent.jsonl") as shard, pytest.raises(TransportError, match=r"absent\.jsonl: not found \(HTTP 404\)"):
        shard.read()


@pytest.mark.parametrize("name", SHARDS)
def test_an_html_page_with_status_200_is_not_taken_for_the_shard(
    name: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.inject(name, {"do": "html"})
    page = 'the server answers with an HTML page ("Sign in") instead of the shard'
    with opened(server, name) as shard, pytest.raises(TransportError, match=re.escape(f"{page}; check the URL")):
        content_of(shard)
    server.inject(name, {"do": "none"}, {"do": "html"})
    with opened(server, name) as shard:
        assert content_of(shard) == text(), "it stood in the way for a while"
    [warned] = [line for line in caplog.messages if "HTML" in line]
    assert re.fullmatch(rf"\S+: {re.escape(page)} at compressed byte \d+; retrying in 0\.\d s", warned)


def test_what_a_server_compresses_by_itself_is_not_taken_for_the_shard(server: Server) -> None:
    compressed = [{"do": "none", "ranges": False, "encoding": "gzip"}]
    server.inject("plain.jsonl", *compressed)
    with (
        opened(server, "plain.jsonl") as shard,
        pytest.raises(TransportError, match=r"with Content-Encoding: gzip, .* turn that off"),
    ):
        shard.read()
    server.inject("members.jsonl.gz", {"do": "none", "ranges": False, "encoding": "gzip, gzip"})
    with (
        opened(server, "members.jsonl.gz") as shard,
        pytest.raises(TransportError, match="Content-Encoding: gzip, gzip, al"),
    ):
        shard.read()
    server.inject("members.jsonl.gz", *compressed)  # so servers tell what the file itself is
    with opened(server, "members.jsonl.gz") as shard:
        assert content_of(shard) == text()


def test_an_html_page_that_hides_its_type_is_found_by_its_first_bytes(server: Server) -> None:
    server.inject("single.jsonl.zst", {"do": "html_untyped"})
    with opened(server, "single.jsonl.zst") as shard:
        assert content_of(shard) == text(), "it was there once only"
    server.inject("single.jsonl.zst", {"do": "html_untyped", "times": 2})
    with opened(server, "single.jsonl.zst") as shard, pytest.raises(ContentError, match="looks like an HTML page"):
        shard.read()


@pytest.mark.parametrize("name", SHARDS)
def test_an_html_page_in_the_middle_that_hides_its_type_is_found_by_its_size(name: str, server: Server) -> None:
    server.inject(name, {"do": "none"}, {"do": "html_untyped"})
    with (
        opened(server, name) as shard,
        pytest.raises(SourceError, match=r"was replaced since .* \(size was \d+, is 99\)"),
    ):
        content_of(shard)


@pytest.mark.parametrize("name", SHARDS)
def test_bytes_from_behind_those_asked_for_are_refused(name: str, server: Server) -> None:
    server.inject(name, {"do": "none"}, {"do": "none", "shift": 100})
    with opened(server, name) as shard, pytest.raises(TransportError, match="its Range support is broken"):
        content_of(shard)


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_that_changes_while_it_is_read_is_refused(name: str, folder: Path) -> None:
    with serve(folder) as server:
        server.inject(name, {"do": "reset", "after": 10_000, "replace_with": f"other-{name}"})
        with opened(server, name) as shard, pytest.raises(SourceError, match="was replaced since the run began"):
            content_of(shard)


def test_a_shard_shorter_than_listed_is_damaged_content(server: Server, folder: Path) -> None:
    size = (folder / "plain.jsonl").stat().st_size
    with opened(server, "plain.jsonl", size + 1) as shard:
        shard.skip_to(size)
        with pytest.raises(ContentError, match=f"has {size} bytes, but {size + 1} are listed"):
            shard.read()


def test_an_unfinished_body_of_unknown_length_is_not_the_end_where_the_size_is_listed(server: Server, folder: Path) -> None:
    size = (folder / "plain.jsonl").stat().st_size
    server.inject("plain.jsonl", {"do": "short", "ranges": False, "after": 1000, "length": False})
    with opened(server, "plain.jsonl", size) as shard:
        assert content_of(shard) == text()


def test_an_empty_shard_is_empty(server: Server, folder: Path) -> None:
    (folder / "empty.jsonl.zst").write_bytes(b"")
    with opened(server, "empty.jsonl.zst", 0) as shard:
        assert shard.read() == b""


def test_skipping_in_a_plain_shard_asks_for_nothing_in_between(server: Server) -> None:
    with opened(server, "plain.jsonl") as shard:
        assert shard.read() == text()[:BLOCK]
        shard.skip_to(3 * BLOCK + 5)
        assert shard.read() == text()[3 * BLOCK + 5 : 4 * BLOCK + 5]
    assert [request["range"] for request in server.log()] == ["bytes=0-65535", "bytes=196613-262148"]


def test_reading_on_fetches_one_block_ahead(server: Server) -> None:
    with opened(server, "plain.jsonl") as shard:
        assert bytes(shard.read()) + bytes(shard.read()) == text()[: 2 * BLOCK]
        patience = time.monotonic() + 10
        while len(server.log()) < 3 and time.monotonic() < patience:
            time.sleep(0.01)
        assert [request["range"] for request in server.log()] == ["bytes=0-65535", "bytes=65536-131071", "bytes=131072-196607"]
        assert shard.read() == text()[2 * BLOCK : 3 * BLOCK]


def patient(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_where_the_next_place_is_known_its_block_is_fetched_while_the_last_is_worked_on(server: Server) -> None:
    with opened(server, "plain.jsonl") as shard:
        assert shard.read() == text()[:BLOCK]
        shard.prefetch(3 * BLOCK + 5)
        patient(lambda: len(server.log()) == 2)
        shard.skip_to(3 * BLOCK + 5)
        assert shard.read() == text()[3 * BLOCK + 5 : 4 * BLOCK + 5]
        shard.prefetch(10**9)  # behind the end
    assert [request["range"] for request in server.log()] == ["bytes=0-65535", "bytes=196613-262148"]


@pytest.mark.parametrize("offset", [BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 7, 4 * BLOCK - 1])
def test_an_expectation_that_is_not_kept_changes_no_byte(offset: int, server: Server) -> None:
    server.inject("plain.jsonl", {"do": "none"}, {"do": "reset", "after": 9})
    with opened(server, "plain.jsonl") as shard:
        shard.read()
        shard.prefetch(3 * BLOCK + 5)
        shard.skip_to(offset)
        assert content_of(shard) == text()[offset:]


def test_a_stripe_of_a_plain_shard_asks_for_its_next_window_before_it_is_wanted(server: Server) -> None:
    shard = Shard(server.url("lines.jsonl"), "lines.jsonl", None, None, "jsonl", "none")
    reader = open_reader(shard, ReadOptions("text", 20_000, 1 << 20, TransportOptions()))
    stripe = Stripe(0, 1, 3)
    reader.follow(stripe, 1)
    windows = []
    for block in (1, 4, 7):
        window = reader.read(stripe, block, RestartPoint())
        assert window is not None
        windows.append(window.texts[0])
        patient(lambda: len(server.log()) == len(windows) + 1)
    reader.leave(stripe)
    assert windows == ["line 200", "line 800", "line 1400"]
    assert [request["range"] for request in server.log()] == [
        "bytes=19999-41248", "bytes=79999-101248", "bytes=139999-161248", "bytes=199999-221248"
    ]  # fmt: skip


@pytest.mark.parametrize("offset", [2 * BLOCK + 9, 3 * BLOCK, 4 * BLOCK + 9])
def test_skipping_into_and_behind_the_block_read_ahead_gives_the_right_bytes(offset: int, server: Server) -> None:
    with opened(server, "plain.jsonl") as shard:
        assert bytes(shard.read()) + bytes(shard.read()) == text()[: 2 * BLOCK]
        shard.skip_to(offset)
        assert content_of(shard) == text()[offset:]


def test_closing_does_not_wait_for_a_retry_of_the_block_ahead(server: Server) -> None:
    server.inject("plain.jsonl", {"do": "none", "times": 2}, {"do": "status", "code": 429, "headers": {"Retry-After": "170"}})
    with opened(server, "plain.jsonl", retry_deadline=1000.0) as shard:
        assert bytes(shard.read()) + bytes(shard.read()) == text()[: 2 * BLOCK]


def test_nobody_waits_for_a_block_ahead_that_stalls(server: Server) -> None:
    server.inject("plain.jsonl", {"do": "none", "times": 2}, {"do": "stall", "after": 10})
    with opened(server, "plain.jsonl", read_timeout=10.0) as shard:
        assert bytes(shard.read()) + bytes(shard.read()) == text()[: 2 * BLOCK]
        shard.skip_to(6 * BLOCK)
        assert content_of(shard) == text()[6 * BLOCK :]
        assert reading_ahead(), "it was left to itself, not waited for"


def test_a_block_that_was_let_go_of_before_its_thread_ran_leaves_the_new_connection_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[threading.Thread] = []

    def hold(thread: threading.Thread) -> None:
        late.append(thread)

    with opened(server, "plain.jsonl") as shard:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", hold)
            assert (
                bytes(shard.read()) + bytes(shard.read()) == text()[: 2 * BLOCK]
            )  # the third block is asked for, and its thread waits
            shard.skip_to(3 * BLOCK + 5)
            assert shard.read() == text()[3 * BLOCK + 5 : 4 * BLOCK + 5]
        [thread] = late
        thread.start()
        thread.join()
        assert content_of(shard) == text()[4 * BLOCK + 5 :]
    assert "bytes=131072-196607" not in [request["range"] for request in server.log()]


def test_a_block_that_is_let_go_of_closes_its_connection_when_its_thread_is_done(server: Server) -> None:
    server.inject("plain.jsonl", {"do": "none", "times": 2}, {"do": "stall", "after": 10})
    with opened(server, "plain.jsonl", read_timeout=0.5) as shard:
        assert bytes(shard.read()) + bytes(shard.read()) == text()[: 2 * BLOCK]
        behind = shard._data._store
    for thread in reading_ahead():
        thread.join()
    assert isinstance(behind, http.HttpFile)
    assert behind is not shard._data._store
    assert behind._response is None


def test_a_seek_table_is_used_over_http(server: Server, folder: Path) -> None:
    parts = [random.Random(part).randbytes(300_000) for part in range(12)]
    frames = [zstandard.ZstdCompressor().compress(part) for part in parts]
    entries = b"".join(struct.pack("<II", len(frame), 300_000) for frame in frames) + struct.pack("<IBI", 12, 0, 0x8F92EAB1)
    (folder / "seekable.jsonl.zst").write_bytes(b"".join(frames) + struct.pack("<II", 0x184D2A5E, len(entries)) + entries)
    with received() as sizes, opened(server, "seekable.jsonl.zst") as shard:
        shard.skip_to(3_000_005)
        assert shard.read() == parts[10][5:]
        assert shard.restart == RestartPoint(sum(map(len, frames[:10])), 3_000_000)
        assert sum(sizes) < 700_000


def test_a_redirect_is_followed_once_and_resolved_again_when_its_target_fails(server: Server) -> None:
    signed = server.url("plain.jsonl")
    server.inject(
        "resolve.jsonl", {"do": "redirect", "to": signed + "?signature=1"}, {"do": "redirect", "to": signed + "?signature=2"}
    )
    server.inject("plain.jsonl", {"do": "none", "times": 2}, {"do": "status", "code": 403})
    with opened(server, "resolve.jsonl") as shard:
        assert content_of(shard) == text()
    paths = [request["path"] for request in server.log()]
    one, two = "/plain.jsonl?signature=1", "/plain.jsonl?signature=2"
    assert paths == ["/resolve.jsonl", one, one, one, "/resolve.jsonl", two, two, two]


def test_a_busy_target_of_a_redirect_is_given_the_time_it_asks_for(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.inject("resolve.jsonl", *[{"do": "redirect", "to": server.url("plain.jsonl")}] * 2)
    server.inject("plain.jsonl", {"do": "none"}, {"do": "status", "code": 429, "headers": {"Retry-After": "1"}})
    with caplog.at_level(logging.WARNING), opened(server, "resolve.jsonl") as shard:
        assert content_of(shard) == text()
    assert [message.split(": ", 2)[-1] for message in caplog.messages] == [
        "HTTP 429 at compressed byte 65536; retrying in 1.0 s"
    ]


def test_headers_of_the_storage_options_are_sent(server: Server) -> None:
    with opened(server, "plain.jsonl", storage_options={"headers": {"Authorization": "Bearer secret"}}) as shard:
        shard.read()
    assert server.log()[0]["authorization"] == "Bearer secret"


def test_headers_of_the_storage_options_are_not_taken_to_another_host(server: Server) -> None:
    elsewhere = server.url("plain.jsonl").replace("127.0.0.1", "localhost")
    server.inject("resolve.jsonl", {"do": "redirect", "to": elsewhere})
    with opened(server, "resolve.jsonl", storage_options={"headers": {"X-Api-Key": "secret"}}) as shard:
        assert content_of(shard) == text()
    assert [(request["path"], request.get("key")) for request in server.log()[:3]] == [
        ("/resolve.jsonl", "secret"), ("/plain.jsonl", None), ("/plain.jsonl", None)
    ]  # fmt: skip


def test_the_signature_of_a_url_stays_out_of_what_is_said_of_a_lost_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/plain.jsonl?signature=secret&expires=1"
        options = TransportOptions(retry_deadline=0.5)
        options.memory.reached = True
        with (
            caplog.at_level(logging.WARNING),
            closing(ShardBytes(url, "none", None, RestartPoint(), options)) as shard,
            pytest.raises(TransportError, match=r"\(127\.0\.0\.1:\d+: connection refused\)") as caught,
        ):
            shard.read()
    assert "secret" not in f"{caught.value} {caplog.text}"


def test_a_server_that_is_unreachable_at_ends_the_first_read_at_once() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/plain.jsonl"
        with closing(ShardBytes(url, "none", None)) as shard, pytest.raises(TransportError, match="no server answers"):
            shard.read()


def test_a_password_in_the_url_stays_out_of_messages(server: Server) -> None:
    url = server.url("absent.jsonl?token=secret").replace("http://", "http://user:hidden@")
    with closing(ShardBytes(url, "none", None)) as shard, pytest.raises(TransportError) as caught:
        shard.read()
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_file_of_the_hub_is_asked_for_with_its_revision_and_token(server: Server, folder: Path) -> None:
    path = folder / "datasets" / "org" / "name" / "resolve" / "0123abc" / "data"
    path.mkdir(parents=True)
    (path / "a b.jsonl").write_bytes(b"text\n")
    options = TransportOptions(storage_options={"endpoint": server.url("").rstrip("/"), "token": "hf_test"})
    with closing(ShardBytes("hf://datasets/org/name@0123abc/data/a b.jsonl", "none", 5, RestartPoint(), options)) as shard:
        assert shard.read() == b"text\n"
    assert server.log() == [
        {
            "path": "/datasets/org/name/resolve/0123abc/data/a%20b.jsonl",
            "range": f"bytes=0-{8 * KIB * KIB - 1}",
            "authorization": "Bearer hf_test",
            "status": 206,
        }
    ]


def test_the_time_spent_waiting_for_a_store_is_counted(server: Server) -> None:
    memory = StoreMemory()
    server.inject("plain.jsonl", {"do": "status", "code": 429, "headers": {"Retry-After": "1"}})
    with opened(server, "plain.jsonl", memory=memory) as shard:
        shard.read()
    assert 1.0 <= memory.seconds_waiting < 20
