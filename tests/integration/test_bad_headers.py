"""Servers that answer nonsense, or never come to the file: faults of transport, in one line and within the deadline."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus import resolve
from stream_pretrain.data.transport import http, retrying
from stream_pretrain.data.transport.http import sizes_and_identities
from stream_pretrain.data.transport.http_session import retry_after
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.errors import DeadlineError, StreamPretrainError, TransportError
from tests.integration.raw_server import Answer, answering, dripping

CONTENT = b"".join(b'{"text": "line %03d"}\n' % number for number in range(500))
SIZE = len(CONTENT)
OK = b"HTTP/1.1 200 OK\r\n"
PART = b"HTTP/1.1 206 Partial Content\r\n"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "_BACKOFF_BASE", 0.01)
    monkeypatch.setattr(retrying, "_BACKOFF_CAP", 0.02)


@contextmanager
def shard(url: str, deadline: float = 20.0) -> Iterator[ShardBytes]:
    options = TransportOptions(retry_deadline=deadline, block_bytes=4096, read_timeout=0.3)
    with closing(ShardBytes(url, "none", None, RestartPoint(), options)) as opened:
        yield opened


def content_of(opened: ShardBytes) -> bytes:
    return b"".join(iter(opened.read, b""))


ENDLESS: dict[str, Answer] = {
    "a status line": dripping(b"", b"H"),
    "a header": dripping(OK + b"X: ", b"y"),
    "many headers": dripping(OK, b"X: y\r\n", 0.05),
    "answers that only say to go on": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0),
    "the size of a chunk": dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "what stands behind the size of a chunk": dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n5;x=", b"y"),
    "what follows the last chunk": dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
    "a line as fast as it can": dripping(OK + b"X: ", b"y" * 1000, 0.0),
    "headers as fast as it can": dripping(OK, b"X: y\r\n" * 100, 0.0),
    "the body of a redirect": dripping(b"HTTP/1.1 302 Found\r\nLocation: /shard.jsonl\r\n\r\n", b"y" * 1000, 0.0),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_never_ends_is_given_up_and_asked_for_again(what: str) -> None:
    with answering(CONTENT, [ENDLESS[what]]) as url, shard(url) as opened:
        assert content_of(opened) == CONTENT


@pytest.mark.parametrize("what", [what for what in ENDLESS if what != "the body of a redirect"])
def test_a_server_of_which_nothing_else_comes_ends_at_the_deadline_and_leaves_no_thread(what: str) -> None:
    with answering(CONTENT, [ENDLESS[what]], always=True) as url:
        with shard(url, deadline=0.2) as opened, pytest.raises(TransportError, match=r"--data\.retry-deadline") as caught:
            opened.read()
        with pytest.raises(TransportError, match=r"--data\.retry-deadline"):
            sizes_and_identities([url], TransportOptions(retry_deadline=0.2, read_timeout=0.3))
    assert "\n" not in str(caught.value)
    assert [thread for thread in threading.enumerate() if thread.name in ("read ahead", "ask servers")] == []


def one_by_one(connection: socket.socket) -> None:
    """Sends a byte of the file now and then."""
    connection.sendall(part(RANGE)[:-4096])
    for byte in CONTENT[:4096]:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def test_a_server_that_sends_byte_by_byte_is_left_for_another_connection() -> None:
    with answering(CONTENT, [one_by_one]) as url, shard(url) as opened:
        assert content_of(opened) == CONTENT


def test_a_server_that_only_sends_byte_by_byte_ends_at_the_deadline() -> None:
    with (
        answering(CONTENT, [one_by_one], always=True) as url,
        shard(url, deadline=1.0) as opened,
        pytest.raises(DeadlineError, match=r"nothing from compressed byte \d+ on .*--data\.retry-deadline"),
    ):
        opened.read()


def test_a_slow_reader_is_not_taken_for_a_slow_server() -> None:
    whole_file = OK + b"Content-Length: %d\r\n\r\n" % SIZE + CONTENT  # whose body stays open from read to read
    with answering(CONTENT, [whole_file]) as url, shard(url) as opened:
        read = b""
        while chunk := opened.read():
            read += chunk
            time.sleep(0.2)
    assert read == CONTENT


def test_an_empty_file_is_empty_though_its_server_knows_no_range_of_it(caplog: pytest.LogCaptureFixture) -> None:
    answers = [b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 9\r\n\r\n<Error/>\n", OK + b"Content-Length: 0\r\n\r\n"]
    with answering(CONTENT, answers) as url, shard(url) as opened:
        assert content_of(opened) == b""
    with answering(CONTENT, answers) as url:
        assert sizes_and_identities([url], TransportOptions(retry_deadline=20.0)) == {url: (0, "size:0")}
    assert caplog.messages == []


@pytest.mark.parametrize("page", [b"Content-Type: text/html", b"Content-Type: text/html; charset=utf-8"])
def test_a_page_in_place_of_the_file_ends_a_start_and_is_waited_for_in_a_run(page: bytes) -> None:
    portal = OK + page + b"\r\nContent-Length: 15\r\n\r\n<html>Log in..."
    with answering(CONTENT, [part(RANGE, b"Content-Length: 4096"), portal]) as url, shard(url) as opened:
        assert content_of(opened) == CONTENT
    with (
        answering(CONTENT, [portal]) as url,
        shard(url) as opened,
        pytest.raises(TransportError, match="check the URL, a login"),
    ):
        opened.read()


@contextmanager
def proxied(monkeypatch: pytest.MonkeyPatch, scheme: str, proxy: str, deadline: float = 20.0) -> Iterator[ShardBytes]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("all_proxy", proxy)
    with shard(f"{scheme}://example.invalid/a.jsonl", deadline) as opened:
        yield opened


REFUSING = {
    "a login": ("http", b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "the proxy wants a login (HTTP 407)"),
    "a tunnel that needs a login": (
        "https",
        b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
        "the proxy refuses the connection (Tunnel connection failed: 407 Proxy Authentication Required)",
    ),
    "a forbidden tunnel": (
        "https",
        b"HTTP/1.1 403 Forbidden\r\n\r\n",
        "the proxy refuses the connection (Tunnel connection failed: 403 Forbidden)",
    ),
}


@pytest.mark.parametrize("what", REFUSING)
def test_a_proxy_that_refuses_ends_a_start_at_once_with_the_variables_that_name_it(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme, answer, said = REFUSING[what]
    with answering(CONTENT, [answer], always=True) as url:
        proxy = url.removesuffix("/shard.jsonl").replace("//", "//user:secret@")
        with proxied(monkeypatch, scheme, proxy) as opened, pytest.raises(TransportError) as caught:
            opened.read()
    assert str(caught.value).startswith(f"{scheme}://example.invalid/a.jsonl: {said}; check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY")


@pytest.mark.parametrize("proxy", ["socks9://127.0.0.1:1", "nonsense:port"])
def test_a_proxy_that_is_none_is_not_taken_for_a_wrong_url(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxied(monkeypatch, "http", proxy) as opened, pytest.raises(TransportError, match="check HTTP_PROXY, HTTPS_PROXY"):
        opened.read()


def test_a_proxy_whose_headers_drip_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_CONNECT_TIMEOUT", 0.3)
    monkeypatch.setattr(retrying, "_BACKOFF_CAP", 1.0)
    with answering(CONTENT, [ENDLESS["a header"]], always=True) as url:
        proxy = url.removesuffix("/shard.jsonl")
        with proxied(monkeypatch, "https", proxy, 0.5) as opened, pytest.raises(DeadlineError, match="timed out"):
            opened.read()


def whole(*headers: bytes) -> bytes:
    return OK + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + CONTENT


def part(*headers: bytes) -> bytes:
    return PART + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + CONTENT[:4096]


RANGE = b"Content-Range: bytes 0-4095/%d" % SIZE
PASSING: dict[str, bytes] = {
    "no HTTP at all": b"SSH-2.0-OpenSSH_9.6\r\n",
    "another HTTP": b"HTTP/9.9 200 OK\r\n\r\n",
    "a status that is none": b"HTTP/1.1 abc OK\r\n\r\n",
    "nothing": b"",
    "a length that is no number": whole(b"Content-Length: abc"),
    "a length below nothing": whole(b"Content-Length: -5"),
    "a length with a sign of another script": whole("Content-Length: ²".encode("latin-1")),
    "a length of five thousand digits": whole(b"Content-Length: " + b"9" * 5000),
    "two lengths": whole(b"Content-Length: 5", b"Content-Length: 7"),
    "a length that is too short": part(b"Content-Length: 10", RANGE),
    "a length of nothing": part(b"Content-Length: 0", RANGE),
    "a file shorter than its part": part(b"Content-Length: 4096", b"Content-Range: bytes 0-4095/17"),
    "a chunk that is no number": whole(b"Transfer-Encoding: chunked"),
    "a chunk of negative size": PART + RANGE + b"\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n" + CONTENT,
    "a coding of the transfer that nobody asked for": part(b"Transfer-Encoding: gzip, chunked", RANGE),
    "a header without a name": part(b"no header at all", b"Content-Length: 4096", RANGE),
    "busy, until a date that is none": b"HTTP/1.1 503 Busy\r\nRetry-After: Wed, 99 Foo 99999 99:99:99 GMT\r\n\r\n",
    "busy for ever": b"HTTP/1.1 503 Busy\r\nRetry-After: 99999999999999\r\n\r\n",
    "busy, for no time": b"HTTP/1.1 429 Busy\r\nRetry-After: nan\r\n\r\n",
}


@pytest.mark.parametrize("what", PASSING)
def test_an_answer_that_makes_no_sense_is_asked_for_again(what: str) -> None:
    with answering(CONTENT, [PASSING[what]]) as url, shard(url) as opened:
        assert content_of(opened) == CONTENT
    with answering(CONTENT, [PASSING[what]]) as url:
        options = TransportOptions(retry_deadline=20.0, read_timeout=0.3)
        assert sizes_and_identities([url], options) == {url: (SIZE, f"size:{SIZE}")}


@pytest.mark.parametrize("what", PASSING)
def test_a_server_that_never_makes_sense_ends_in_one_line(what: str) -> None:
    with answering(CONTENT, [PASSING[what]], always=True) as url, shard(url, deadline=0.1) as opened:
        with pytest.raises(TransportError, match=r"nothing from compressed byte .*--data\.retry-deadline") as caught:
            content_of(opened)
        assert "\n" not in str(caught.value)


def redirect(*headers: bytes) -> bytes:
    return b"HTTP/1.1 302 Found\r\n" + b"".join(header + b"\r\n" for header in headers) + b"Content-Length: 0\r\n\r\n"


ENDING: dict[str, tuple[bytes, str]] = {
    "a redirect to nowhere": (redirect(), "answers HTTP 302"),
    "a redirect to a file": (
        redirect(b"Location: file:///etc/passwd"),
        "redirects to an address of file:, not of a web",
    ),
    "a redirect to FTP": (redirect(b"Location: ftp://127.0.0.1/x"), "redirects to an address of ftp:, not of a web server"),
    "a redirect to a script": (redirect(b"Location: javascript:alert(1)"), "redirects to an address of javascript:"),
    "a redirect in a circle": (redirect(b"Location: /shard.jsonl"), "redirects more than 20 times"),
    "a redirect to half an address": (redirect(b"Location: http://[::1/x"), "invalid request"),
    "a redirect to a port that is none": (redirect(b"Location: http://127.0.0.1:99999999/x"), "invalid request"),
    "a redirect to what is not UTF-8": (redirect(b"Location: http://\xff\xfe/x"), "invalid request"),
    "a redirect to a name too long for a host": (redirect(b"Location: http://" + b"a" * 300 + b"/x"), "invalid request"),
    "a redirect to a host that nobody knows": (redirect(b"Location: http://nowhere.invalid/x"), "no server answers"),
    "two codings that nobody asked for": (
        whole(b"Content-Encoding: gzip, br"),
        "sends it with Content-Encoding: gzip, br, alth",
    ),
    "a coding of old": (
        whole(b"Content-Encoding: X-Compress"),
        "sends it with Content-Encoding: compress, although asked not to",
    ),
    "an HTML page of which nothing comes": (
        OK + b"Content-Type: text/html\r\nContent-Length: 5000\r\n\r\n",
        "an HTML page instead of the shard",
    ),
    "a part that says to be all of the file": (
        OK + b"Content-Range: bytes 0-4095/%d\r\nContent-Length: 4096\r\n\r\n" % SIZE + CONTENT[:4096],
        "answers HTTP 200 with Content-Range 'bytes 0-4095/[0-9]+'; its Range support is broken",
    ),
    "a range that is none": (part(b"Content-Length: 4096", b"Content-Range: bytes nonsense"), "its Range support is broken"),
    "a range from behind its end": (part(b"Content-Range: bytes 9-3/10"), "its Range support is broken"),
    "a range of endless digits": (part(b"Content-Range: bytes 0-" + b"9" * 5000 + b"/10"), "its Range support is broken"),
}


@pytest.mark.parametrize("what", ENDING)
def test_what_asking_again_cannot_mend_ends_at_once_in_one_line(what: str) -> None:
    answer, named = ENDING[what]
    with answering(CONTENT, [answer], always=True) as url:
        with shard(url) as opened, pytest.raises(TransportError, match=named) as caught:
            opened.read()
        with pytest.raises(TransportError, match=named):
            sizes_and_identities([url], TransportOptions(retry_deadline=20.0))
    assert "\n" not in str(caught.value)


def test_where_a_url_may_be_signed_a_refusal_says_that_it_may_have_expired() -> None:
    refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
    with answering(CONTENT, [refusal], always=True) as url:
        for query, told in (("", False), ("?X-Amz-Signature=abc", True)):
            with shard(url + query) as opened, pytest.raises(TransportError, match=r"access refused \(HTTP 403\)") as caught:
                opened.read()
            assert str(caught.value).endswith("its signature may have expired: give it signed anew") is told
            assert "abc" not in str(caught.value)


def test_a_redirect_that_names_no_host_is_followed_on_the_same_one() -> None:
    with answering(CONTENT, [redirect(b"Location: ../other/./shard.jsonl?x=1#part")]) as url, shard(url) as opened:
        assert content_of(opened) == CONTENT


@pytest.mark.parametrize(
    ("asked", "wait"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None),
        ("Fri, 99 Dec 99999 99:99:99 GMT", None),
        ("-7", None),
        ("nan", None),
        ("inf", None),
        ("1e30", None),
        ("²", None),
        ("9" * 5000, None),
        ("99999999999", None),
        ("", None),
    ],
)
def test_only_a_wait_that_makes_sense_is_waited(asked: str, wait: float | None) -> None:
    assert retry_after({"Retry-After": asked}) == wait


def test_headers_of_the_user_that_cannot_be_sent_are_refused_in_one_line() -> None:
    with answering(CONTENT, [b""]) as url:
        for value in ("a\nb", "☃"):
            options = TransportOptions(storage_options={"headers": {"X-Key": value}})
            opened = ShardBytes(url, "none", None, RestartPoint(), options)
            with closing(opened), pytest.raises(StreamPretrainError) as caught:
                opened.read()
            assert "\n" not in str(caught.value)


class Silent(MemoryFileSystem):  # type: ignore[misc]
    """A store whose library waits without end."""

    protocol = "silent"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    answers: ClassVar[threading.Event] = threading.Event()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.replace("silent://", "memory://"))
        return stripped

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        self.answers.wait()
        return super().ls(path, detail=detail)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> Any:
        self.answers.wait()
        return super().cat_file(path, start, end)


def test_a_library_that_waits_without_end_is_waited_for_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("silent", Silent, clobber=True)
    Silent().pipe_file("/bucket/a.jsonl", CONTENT)
    monkeypatch.setattr(resolve, "LEAST_DEADLINE", 0.1)
    options = TransportOptions(retry_deadline=0.1, read_timeout=0.1)
    try:
        with pytest.raises(TransportError, match=r"bucket/a.jsonl: no answer for 0\.1 s; .*--data\.retry-deadline"):
            resolve.resolve(DataConfig(dataset="silent://bucket/a.jsonl", retry_deadline=0.1))
        opened = ShardBytes("silent://bucket/a.jsonl", "none", None, RestartPoint(), options)
        with closing(opened), pytest.raises(TransportError, match=r"\(nothing for 0\.1 s\), .*--data\.retry-deadline"):
            opened.read()
    finally:
        Silent.answers.set()
    assert resolve.resolve(DataConfig(dataset="silent://bucket/a.jsonl")).shards[0].size == SIZE
