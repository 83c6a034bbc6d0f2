"""What a user reads of a fault of the network: one clause with the host, nothing that libraries wrap around it."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
import requests
import urllib3

from stream_pretrain.data.transport.http import sizes_and_identities
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.retrying import in_words, retried
from stream_pretrain.errors import TransportError


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """The port of a server that answers one request with these bytes, and closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def said(ask: Callable[[], object]) -> str:
    with pytest.raises(Exception) as caught:
        ask()
    return in_words(caught.value)


@pytest.mark.parametrize("get", [requests.get, httpx.get])
def test_a_server_that_does_not_answer_is_named_with_what_happened(get: Callable[..., object]) -> None:
    port = free_port()
    assert said(lambda: get(f"http://me:secret@127.0.0.1:{port}/a?sig=1")) == f"127.0.0.1:{port}: connection refused"
    assert said(lambda: get("http://nowhere.invalid:80/a")).removeprefix("nowhere.invalid") in (
        ":80: its name does not resolve",
        ": its name does not resolve",
    )


def test_of_a_proxy_that_does_not_answer_the_proxy_is_named() -> None:
    port = free_port()
    through = {"http": f"http://127.0.0.1:{port}"}
    assert said(lambda: requests.get("http://host/a", proxies=through)) == f"127.0.0.1:{port}: connection refused"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "127.0.0.1:{port}: closed the connection before the end of its answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "closed the connection before the end of its answer"),
        (b"hello\r\n\r\n", "127.0.0.1:{port}: BadStatusLine: hello"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "HTTP 503"),
    ],
)
def test_an_answer_that_is_none_is_told_in_one_clause(answer: bytes, words: str) -> None:
    with answering(answer) as port:
        heard = said(lambda: requests.get(f"http://127.0.0.1:{port}/a").raise_for_status())
    assert heard == words.format(port=port)


def test_a_web_file_names_the_host_once_in_a_line() -> None:
    port = free_port()
    options = TransportOptions(storage_options={}, retry_deadline=60.0, block_bytes=1000)
    with pytest.raises(TransportError) as caught:
        sizes_and_identities([f"http://127.0.0.1:{port}/a.jsonl"], options)
    assert str(caught.value) == (
        f"http://127.0.0.1:{port}/a.jsonl: no server answers (127.0.0.1:{port}: connection refused); "
        "check the network and the name"
    )


def test_a_certificate_that_is_refused_at_the_first_contact_is_not_asked_again() -> None:
    asked = []

    def ask() -> None:
        asked.append(True)
        refused = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
        refused.verify_message = "certificate has expired"
        pool = urllib3.HTTPSConnectionPool("host", 443)
        try:
            raise urllib3.exceptions.MaxRetryError(pool, "/a", urllib3.exceptions.SSLError(refused)) from refused
        except urllib3.exceptions.MaxRetryError as error:
            raise requests.exceptions.SSLError(error, request=requests.Request("GET", "https://host/a").prepare()) from error

    with pytest.raises(TransportError) as caught:
        retried(ask, "https://host/a", 60.0)
    assert asked == [True]
    assert str(caught.value) == (
        "https://host/a: no connection (host: its certificate is refused (certificate has expired)); "
        "check the URL, the clock, and the certificates of this machine (REQUESTS_CA_BUNDLE, SSL_CERT_FILE)"
    )
