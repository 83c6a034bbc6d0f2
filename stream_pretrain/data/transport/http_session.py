"""Requests to web servers, whose headers may be malformed, slow, or endless."""

from __future__ import annotations

import email.utils
import http.client
import io
import re
import socket
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import requests
import requests.adapters
import urllib3
import urllib3.connection

from stream_pretrain.units import KIB

MOST_REDIRECTS = 20

LONGEST_WAIT = 86400.0
"""Seconds; longer waits that a server requests are ignored."""


LEAST_BYTES = KIB
"""Of a file: fewer in a read timeout count as silence, as from a server that sends one a second."""


class RedirectError(ValueError):
    """A redirect that cannot be followed."""


class Session(requests.Session):
    """For requests with the user's headers, which may be keys and are sent to no other host. Used by one thread at a time."""

    def __init__(self, user_headers: Mapping[str, str]) -> None:
        super().__init__()
        self._secret = {name.lower() for name in (*user_headers, "Authorization")}
        if any(name.lower() == "authorization" for name in user_headers):
            self.auth = lambda request: request  # or ~/.netrc would replace the token
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter())

    def open(self, url: str, headers: Mapping[str, str | bytes], timeout: tuple[float, float]) -> requests.Response:
        """The answer to a GET, its body not read yet. Redirects are followed without reading their bodies.

        timeout: seconds to connect, and between two bytes of the file.
        Raises: RedirectError; ValueError of several kinds for an invalid address; what requests raises.
        """
        sent = dict(headers)
        redirects: list[requests.Response] = []
        while len(redirects) <= MOST_REDIRECTS:
            response = self.get(url, headers=sent, stream=True, timeout=timeout, allow_redirects=False)
            try:
                target = super().get_redirect_target(response)
            except ValueError:  # not even text
                response.close()
                raise
            if target is None:
                response.history = redirects
                return response
            response.close()
            redirects.append(response)
            url = urllib.parse.urljoin(str(response.url), requests.utils.requote_uri(target))
            if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
                raise RedirectError(f"the server redirects to an address of {url.partition(':')[0]}:, not of a web server")
            sent = {name: value for name, value in response.request.headers.items() if name.title() not in _PER_REQUEST}
            if self.should_strip_auth(str(response.url), url):
                sent = {name: value for name, value in sent.items() if name.lower() not in self._secret}
        raise RedirectError(f"the server redirects more than {MOST_REDIRECTS} times")

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002
        """None: requests itself, to know where the next request would go, reads the body of a redirect to its end."""
        return None


class Sessions:
    """Sessions whose connections are kept from file to file. For one thread, which closes them."""

    def __init__(self) -> None:
        self._of: dict[tuple[tuple[str, str], ...], Session] = {}

    def of(self, own: Mapping[str, str]) -> Session:
        """The one for requests with these headers of the user."""
        key = tuple(sorted(own.items()))
        if key not in self._of:
            self._of[key] = Session(own)
        return self._of[key]

    def close(self) -> None:
        for session in self._of.values():
            session.close()


_PER_REQUEST = ("Cookie", "Proxy-Authorization")


def natural_number(header: str) -> int | None:
    """The number in a header; None where it is missing or absurd."""
    return int(header) if re.fullmatch(r"[0-9]{1,18}", header.strip()) else None


def content_range(header: str) -> tuple[int | None, int | None, int | None]:
    """First byte, end (exclusive) and size of the file in a Content-Range; None for each that it does not say."""
    number = r"([0-9]{1,18})"
    found = re.fullmatch(rf"bytes (?:{number}-{number}|\*)/(?:{number}|\*)", header.strip())
    first, last, total = (None if number is None else int(number) for number in found.groups()) if found else (None,) * 3
    return first, None if last is None else last + 1, total


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait that a server requests: Retry-After (seconds or a date), or the reset in the Hub's RateLimit."""
    header = headers.get("Retry-After", "").strip()
    wait: float | None = None
    if re.fullmatch(r"[0-9]{1,18}(\.[0-9]+)?", header):
        wait = float(header)
    elif (moment := _moment(header)) is not None:
        wait = max(0.0, moment - time.time())
    elif reset := re.search(r"\br=0\b.*\bt=([0-9]{1,18})", headers.get("RateLimit", "")):
        wait = float(reset[1])
    return None if wait is None or wait > LONGEST_WAIT else wait


def _moment(date: str) -> float | None:
    try:
        parsed = email.utils.parsedate_tz(date)
        return None if parsed is None else email.utils.mktime_tz(parsed)
    except (ValueError, OverflowError, TypeError, IndexError):  # what looks like a date and is none
        return None


class _DeadlineReader(io.RawIOBase):
    """The bytes of a connection, which have to come before a deadline: the read timeout after begin()."""

    def __init__(self, raw: io.RawIOBase, connection: socket.socket) -> None:
        self._raw, self._connection = raw, connection
        self._timeout = connection.gettimeout()
        self.begin()

    def begin(self, spent: float = 0.0) -> None:
        """Start the deadline anew; spent: seconds of it that are over already."""
        self._until = None if self._timeout is None else time.monotonic() + self._timeout - spent

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._until is None:
            return self._raw.readinto(buffer)
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("bytes drip in, but none of the file")
        self._connection.settimeout(left)
        try:
            return self._raw.readinto(buffer)
        finally:
            self._connection.settimeout(self._timeout)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer whose headers, and whose next LEAST_BYTES of the file, have to come within the read timeout.

    The timeout of a socket counts from any byte to the next, those of an endless header or of chunk sizes included.
    """

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self._timed = _DeadlineReader(self.fp.detach(), sock)
        self.fp = io.BufferedReader(self._timed)
        self._bytes, self._spent = 0, 0.0  # received of the next LEAST_BYTES of the file, and seconds spent on them

    def begin(self) -> None:
        self._timed.begin()
        super().begin()
        if self.msg.defects or self.msg.get_payload():  # the headers after such a line are lost
            raise http.client.HTTPException("its headers cannot be parsed")

    def read1(self, n: int = -1) -> bytes:
        self._timed.begin(self._spent)  # the time between two calls is not that of the server
        began = time.monotonic()
        piece = super().read1(n)
        self._bytes, self._spent = self._bytes + len(piece), self._spent + time.monotonic() - began
        if self._bytes >= LEAST_BYTES:
            self._bytes, self._spent = 0, 0.0
        return piece

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:
            raise ValueError("a chunk of negative size")
        return size


class HTTPConnection(urllib3.connection.HTTPConnection):
    response_class = _Response


class HTTPSConnection(urllib3.connection.HTTPSConnection):
    response_class = _Response


class HTTPConnectionPool(urllib3.HTTPConnectionPool):
    ConnectionCls = HTTPConnection


class HTTPSConnectionPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = HTTPSConnection


_POOLS = {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}


class _Adapter(requests.adapters.HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):  # which has connections of its own
            manager.pool_classes_by_scheme = _POOLS
        return manager
