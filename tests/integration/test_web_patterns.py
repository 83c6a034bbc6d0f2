"""Patterns of files on web servers, which are found by the links of a page."""

from __future__ import annotations

import http.server
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.remote_files import with_web_sizes
from stream_pretrain.data.corpus.resolve import resolve

NAMES = ["a b.jsonl", "hash#.jsonl", "per%cent.jsonl", "plain.jsonl", "quote'.jsonl", "umläut.jsonl"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    for name in NAMES:
        (tmp_path / "corpus" / name).write_text('{"text": "a"}\n')
    return tmp_path


@contextmanager
def served(folder: Path, address: str = "127.0.0.1") -> Iterator[tuple[int, list[str]]]:
    """The port of a server of the folder, which may be asked as a proxy is, and what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self) -> None:
            asked.append(self.path)
            self.path = urllib.parse.urlsplit(self.path).path
            super().do_GET()

        def log_message(self, *_: object) -> None: ...

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        daemon_threads = True

    with Server((address, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1], asked
        finally:
            server.shutdown()
            thread.join()


def found(url: str) -> list[tuple[str, int | None]]:
    data = DataConfig(dataset=url, retry_deadline=5.0)
    return [(urllib.parse.unquote(shard.name), shard.size) for shard in with_web_sizes(resolve(data), data).shards]


def test_every_file_of_a_pattern_is_found_whatever_its_name(folder: Path) -> None:
    with served(folder) as (port, _):
        assert found(f"http://127.0.0.1:{port}/corpus/*.jsonl") == [(name, 14) for name in sorted(NAMES)]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_the_address_of_a_server_may_be_of_ipv6(folder: Path) -> None:
    with served(folder, "::1") as (port, _):
        assert found(f"http://[::1]:{port}/corpus/plain.jsonl") == [("plain.jsonl", 14)]


def test_a_pattern_is_listed_by_the_proxy_that_its_files_are_read_by(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with served(folder) as (port, asked):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        assert found("http://nowhere.invalid/corpus/p*.jsonl") == [("per%cent.jsonl", 14), ("plain.jsonl", 14)]
    assert all(url.startswith("http://nowhere.invalid/corpus/") for url in asked)
