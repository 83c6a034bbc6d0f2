"""Requests to web servers that may answer nonsense, or never come to an end of what is not the file."""

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

MOST_REDIRECTS = 20

LONGEST_WAIT = 86400.0
"""A server that asks to be left alone for longer, in seconds, is not taken at its word."""


class RedirectError(ValueError):
    """A redirect that leads nowhere."""


class Session(requests.Session):
    """For requests with the user's headers, which may be keys: they are taken to no other host."""

    def __init__(self, own: Mapping[str, str]) -> None:
        super().__init__()
        self._own = tuple(own)
        if any(name.lower() == "authorization" for name in own):
            self.auth = _as_it_is  # or ~/.netrc would replace the token
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter())

    def open(self, url: str, headers: Mapping[str, str | bytes], timeout: tuple[float, float]) -> requests.Response:
        """The answer to a GET, with its body still to be read; redirects are followed, and nothing of their bodies is read.

        Raises: RedirectError, and ValueError of several kinds for what is no address.
        """
        asked = dict(headers)
        passed: list[requests.Response] = []
        while len(passed) <= MOST_REDIRECTS:
            response = self.get(url, headers=asked, stream=True, timeout=timeout, allow_redirects=False)
            try:
                target = super().get_redirect_target(response)
            except ValueError:  # it is not even text
                response.close()
                raise
            if target is None:
                response.history = passed
                return response
            response.close()
            passed.append(response)
            url = urllib.parse.urljoin(str(response.url), requests.utils.requote_uri(target))
            if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
                raise RedirectError(f"the server redirects to an address of {url.partition(':')[0]}:, not of a web server")
            asked = {name: value for name, value in response.request.headers.items() if name.title() not in _OF_ONE_REQUEST}
            if self.should_strip_auth(str(response.url), url):
                own = {name.lower() for name in (*self._own, "Authorization")}
                asked = {name: value for name, value in asked.items() if name.lower() not in own}
        raise RedirectError(f"the server redirects more than {MOST_REDIRECTS} times")

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002
        """None: requests itself, to know where the next request would go, reads the body of a redirect to its end."""
        return None


_OF_ONE_REQUEST = ("Cookie", "Proxy-Authorization")


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def natural_number(told: str) -> int | None:
    """A number as a header has it; None for what is none, or absurd."""
    return int(told) if re.fullmatch(r"[0-9]{1,18}", told.strip()) else None


def content_range(told: str) -> tuple[int | None, int | None, int | None]:
    """First byte, end and size of the file in a Content-Range, as far as they are told."""
    number = r"([0-9]{1,18})"
    found = re.fullmatch(rf"bytes (?:{number}-{number}|\*)/(?:{number}|\*)", told.strip())
    first, last, total = (None if part is None else int(part) for part in found.groups()) if found else (None,) * 3
    return first, None if last is None else last + 1, total


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds a server asks to wait: Retry-After (seconds or a date), or the reset of the Hub's RateLimit."""
    asked = headers.get("Retry-After", "").strip()
    wait: float | None = None
    if re.fullmatch(r"[0-9]{1,18}(\.[0-9]+)?", asked):
        wait = float(asked)
    elif (moment := _moment(asked)) is not None:
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


class _Timed(io.RawIOBase):
    """The bytes of a connection, which have to be there at a given time."""

    def __init__(self, raw: io.RawIOBase, connection: socket.socket) -> None:
        self._raw, self._connection = raw, connection
        self._patience = connection.gettimeout()
        self.begin()

    def begin(self) -> None:
        """From here on the time counts anew."""
        self._until = None if self._patience is None else time.monotonic() + self._patience

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
            self._connection.settimeout(self._patience)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer whose head, and whose next bytes of the file, have to come within the read timeout.

    That of a socket is the silence between any two bytes: those of an endless header or of the lines between chunks count.
    """

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self._timed = _Timed(self.fp.detach(), sock)
        self.fp = io.BufferedReader(self._timed)

    def begin(self) -> None:
        self._timed.begin()
        super().begin()
        if self.msg.defects or self.msg.get_payload():  # what stands behind such a line is lost
            raise http.client.HTTPException("its headers cannot be parsed")

    def read1(self, n: int = -1) -> bytes:
        self._timed.begin()
        return super().read1(n)

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:
            raise ValueError("a chunk of negative size")
        return size


class HTTPConnection(urllib3.connection.HTTPConnection):
    response_class = _Answer


class HTTPSConnection(urllib3.connection.HTTPSConnection):
    response_class = _Answer


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
