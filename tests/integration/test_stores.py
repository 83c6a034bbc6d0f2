"""Stores that give other bytes than they say, one connection after the other, and libraries that come back late."""

from __future__ import annotations

import gzip
import io
import logging
import random
import re
import socket
import threading
import types
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import requests
from fsspec import AbstractFileSystem

from stream_pretrain.data.transport import retrying, stored_bytes
from stream_pretrain.data.transport.http_session import Session
from stream_pretrain.data.transport.object_store import FsspecFile
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.retrying import TransientError
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from tests.integration.raw_server import answering

CONTENT = bytes(range(251)) * 40


@contextmanager
def keeping_alive(content: bytes, first: bytes | None = None) -> Iterator[tuple[str, set[int]]]:
    """A URL whose server keeps connections, and their ports; the `first` connection is given another content."""
    ports: set[int] = set()
    lock = threading.Lock()

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            with lock:
                self.content = content if ports or first is None else first
                ports.add(self.client_address[1])

        def do_GET(self) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert asked is not None
            start, stop = int(asked[1]), min(int(asked[2]) + 1, len(self.content))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(self.content)}")
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            self.wfile.write(self.content[start:stop])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/shard", ports
        finally:
            server.shutdown()
            thread.join()


def test_a_damaged_member_is_read_again_by_a_new_connection(caplog: pytest.LogCaptureFixture) -> None:
    text = random.Random(0).randbytes(300_000)
    stored = gzip.compress(text, mtime=0)
    spoilt = bytearray(stored)
    spoilt[len(spoilt) // 2] ^= 1
    with keeping_alive(stored, first=bytes(spoilt)) as (url, ports):
        with closing(ShardBytes(url, "gzip", len(stored))) as shard, caplog.at_level(logging.WARNING):
            assert b"".join(iter(shard.read, b"")) == text
        assert len(ports) == 2
    assert len(caplog.messages) == 1
    assert "intact at the next" in caplog.messages[0]


def test_a_body_longer_than_its_range_gives_no_byte_behind_it() -> None:
    longer = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 150\r\n"
    longer += b"Content-Range: bytes 0-99/%d\r\n\r\n" % len(CONTENT) + CONTENT[:100] + b"X" * 50
    with answering(CONTENT, [longer]) as url, closing(ShardBytes(url, "none", None)) as shard:
        assert b"".join(iter(shard.read, b"")) == CONTENT


def test_bytes_that_arrive_on_the_way_to_those_asked_for_count_as_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "_BACKOFF_BASE", 0.01)
    now = [0.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0], sleep=lambda _: None)
    for module in (retrying, stored_bytes):
        monkeypatch.setattr(module, "time", clock)

    def come_late_and_break_off(connection: socket.socket) -> None:
        now[0] += 1000.0
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(CONTENT) + CONTENT[:5000])

    options = TransportOptions(retry_deadline=100.0, read_timeout=20.0)
    with (
        answering(CONTENT, [come_late_and_break_off]) as url,
        closing(ShardBytes(url, "none", None, RestartPoint(6000, 6000), options)) as shard,
    ):
        assert b"".join(iter(shard.read, b"")) == CONTENT[6000:]


@pytest.mark.parametrize("name", ["Authorization", "authorization"])
def test_a_token_of_the_user_is_not_replaced_by_that_of_netrc(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine here.test login somebody password something\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Session({name: "Bearer token"}) as session:
        asked = requests.Request("GET", "https://here.test/a", headers={name: "Bearer token"})
        assert session.prepare_request(asked).headers["Authorization"] == "Bearer token"


class Late(AbstractFileSystem):  # type: ignore[misc]
    """A store whose files are open files, as those of S3; the first of them comes when the second one is read."""

    protocol = "late"
    cachable = False
    call_s3 = True
    opened: ClassVar[list[io.BytesIO]] = []
    may_come: ClassVar[threading.Event] = threading.Event()

    def open(self, path: str, *_: object, **__: object) -> io.BytesIO:
        file = OpenFile(CONTENT)
        self.opened.append(file)
        if len(self.opened) == 1:
            assert self.may_come.wait(60)
        return file


class OpenFile(io.BytesIO):
    details: ClassVar[dict[str, Any]] = {"size": len(CONTENT), "ETag": '"x"'}

    def seek(self, *arguments: int) -> int:
        Late.may_come.set()
        for thread in threading.enumerate():
            if thread.name == "store" and thread is not threading.current_thread():
                thread.join()
        return super().seek(*arguments)


def test_a_file_that_is_opened_after_it_was_given_up_is_not_read() -> None:
    fsspec.register_implementation("late", Late, clobber=True)
    file = FsspecFile("late://bucket/shard", "shard", {}, 0.1, {})
    with pytest.raises(TransientError, match=r"nothing for 0\.1 s"):
        list(file.pieces(1000, 1100))
    file.reset()
    file._timeout = 60.0
    assert b"".join(file.pieces(1000, 1100)) == CONTENT[1000:1100]
    assert [opened.closed for opened in Late.opened] == [False, False]
    file.close()
    assert [opened.tell() for opened in Late.opened[:1]] == [0]
    assert Late.opened[1].closed
