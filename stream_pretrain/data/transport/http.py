"""Files on web servers, by ranged GETs."""

from __future__ import annotations

import copy
import html
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import requests
import urllib3

from stream_pretrain.data.transport.compression import compression_of
from stream_pretrain.data.transport.http_session import (
    LEAST_BYTES,
    RedirectError,
    Session,
    content_range,
    natural_number,
    retry_after,
)
from stream_pretrain.data.transport.identity import bare_etag
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.retrying import (
    ASK_FOR_ACCESS,
    CHECK_ID,
    CHECK_PROXY,
    CHECK_TOKEN,
    TransientError,
    in_words,
    is_busy,
    retried,
)
from stream_pretrain.data.transport.store import Store
from stream_pretrain.data.transport.store_memory import refuse_replaced
from stream_pretrain.data.transport.threads import side_by_side
from stream_pretrain.errors import SourceError, TransportError
from stream_pretrain.redaction import printable
from stream_pretrain.units import KIB
from stream_pretrain.urls import without_secrets

_PIECE = 64 * KIB

_CONNECT_TIMEOUT = 30.0

_ENCODINGS = ("gzip", "deflate", "br", "zstd", "compress", "dcb", "dcz")
"""Values of Content-Encoding that change the bytes; objects of stores also have others there, such as utf-8."""


def sizes_and_identities(urls: Sequence[str], options: TransportOptions) -> dict[str, tuple[int | None, str | None]]:
    """Size and identity (`KIND:VALUE`) of each file, None where its server says none. Asks each for its first byte.

    Raises: TransportError for the first file that cannot be read.
    """
    headers = http_headers(dict(options.storage_options))
    found: dict[str, tuple[int | None, str | None]] = {}

    def ask(url: str, own: TransportOptions) -> None:
        name = without_secrets(url)

        def answer() -> dict[str, str]:
            """What the server says, by kind. Not by HEAD, which a URL that is signed for GET refuses."""
            with closing(HttpFile(url, name, headers, None, own, {})) as file:
                next(file.pieces(0, 1), None)
            return file.known

        known = retried(answer, name, own.retry_deadline)
        kind = next((kind for kind in ("etag", "size") if kind in known), None)
        found[url] = int(known["size"]) if "size" in known else None, f"{kind}:{known[kind]}" if kind else None

    side_by_side("ask servers", urls, options, ask)
    return found


def http_headers(storage_options: dict[str, Any]) -> dict[str, str]:
    """The headers in --data.storage-options. Raises SourceError for anything else there."""
    headers = storage_options.pop("headers", {})
    if storage_options:
        raise SourceError(f"--data.storage-options: http(s) knows only headers, not {', '.join(sorted(storage_options))}")
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise SourceError('--data.storage-options: headers are an object of strings, like {"Authorization": "Bearer ..."}')
    return dict(headers)


class HttpFile:
    """A `Store` on a web server: one ranged GET for a call of pieces().

    A body stays open between calls and is read forward: a server that ignores Range sends all of the file, and `seekable` is
    false then. The target of a redirect is used until it fails: signed URLs expire, and the Hub counts requests.

    Invariant: `_position` is the offset in the file of the next byte of `_unread`, which the body continues; the body must
    end at `_end`, where that is known. A body that ends elsewhere is a fault, not the end of the file.
    """

    def __init__(
        self,
        url: str,
        name: str,
        headers: Mapping[str, str],
        size: int | None,
        options: TransportOptions,
        known: dict[str, str],
    ):
        """name: the URL without secrets; size: as listed, in bytes; known: the identity in earlier responses, by kind; a
        response with another one is refused.
        """
        self.total: int | None = None
        self.seekable = True
        self.known = known
        self._memory = options.memory
        self._url = url
        self._name = name
        self._size = size
        self._user_headers = headers
        self._headers = {**headers, "Accept-Encoding": "identity"}
        self._timeout = (_CONNECT_TIMEOUT, options.read_timeout)
        self._session = self._given = None if options.sessions is None else options.sessions.of(headers)
        self._target: tuple[str, Mapping[str, str | bytes]] | None = None  # of the last redirect
        self._response: requests.Response | None = None  # whose body is being read
        self._position = 0
        self._furthest = 0  # the highest `_position` so far
        self._end: int | None = None
        self._unread = b""  # received beyond the requested bytes

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        while start < self._bound(stop):
            if self._response is None or self._position > start or (self._end is not None and self._end <= start):
                self.reset_body()
                self._request(start, self._bound(stop))
                continue
            piece = self._unread or self._response.raw.read1(_PIECE, decode_content=False)
            self._unread = b""
            if not piece and self._end is None:
                self.total = self._end = self._position
            if not piece and self._position != self._end:
                raise TransientError(f"the answer ended at byte {self._position} of {self._end}")
            bound = self._bound(stop)
            wanted = (bound if self._end is None else min(bound, self._end)) - self._position
            useful, self._unread = piece[max(0, start - self._position) : wanted], piece[wanted:]
            self._position += min(len(piece), wanted)
            if self._position == self._end:
                self.reset_body()
            if useful or self._position >= self._furthest + LEAST_BYTES:
                self._furthest = max(self._furthest, self._position)
                start += len(useful)
                yield useful

    def duplicate(self) -> Store:
        other = copy.copy(self)
        other._session, other._response, other._unread = None, None, b""
        return other

    def reset(self) -> None:
        self.close()
        self._session, self._target = None, None

    def reset_body(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response, self._unread = None, b""

    def close(self) -> None:
        self.reset_body()
        if self._session is not None and self._session is not self._given:
            self._session.close()

    def _bound(self, stop: int) -> int:
        return stop if self.total is None else min(stop, self.total)

    def _request(self, start: int, stop: int) -> None:
        """Open a body that holds byte `start`; none where the file ends before it.

        Raises: TransientError for an answer that may be another one later, TransportError for one that may not.
        """
        url, headers = self._target or (self._url, self._headers)
        response = self._answer(url, {**headers, "Range": f"bytes={start}-{stop - 1}"})
        if response.status_code == 416 and "Content-Range" not in response.headers:  # as stores answer for an empty file
            response.close()
            response = self._answer(url, headers)
        self._response = response
        if is_busy(response.status_code):
            raise TransientError(f"HTTP {response.status_code}", wait=retry_after(response.headers))
        if response.status_code >= 400 and response.status_code != 416 and self._target is not None:
            raise TransientError(f"HTTP {response.status_code} from the redirect target", at_once=True)
        first, end, known_total = content_range(response.headers.get("Content-Range", ""))
        if response.status_code == 416 and known_total is not None:
            self._remember(response, known_total)
            self.reset_body()
            if start < known_total:
                raise TransientError(f"HTTP 416 for bytes {start}-{stop - 1} of {known_total}")
            return
        self._refuse_useless(response)
        if response.status_code == 200 and (first is None or (first, end) == (0, known_total)):
            known_total = self._total_of_full_body(response)
            self._position, self._end = 0, known_total
            if self.seekable and known_total != 0:
                self._memory.warn_of_ignored_range(urllib.parse.urlsplit(response.url).netloc)
                self.seekable = False
        else:
            if response.status_code == 200 or first is None or end is None or not first <= start < end:
                raise TransportError(
                    f"{self._name}: asked for bytes {start}-{stop - 1}, the server answers HTTP {response.status_code} with "
                    f"Content-Range {response.headers.get('Content-Range', 'missing')!r}; its Range support is broken"
                )
            if known_total is not None and known_total < end:
                raise TransientError(f"Content-Range {response.headers['Content-Range'][:80]!r}")
            known_total = next((size for size in (known_total, self.total, self._size) if size is not None), None)
            if known_total is None:
                raise TransportError(f"{self._name}: the server does not say how large the file is (Content-Range .../*)")
            self._position, self._end = first, end
        self._remember(response, known_total)
        if response.history:
            self._target = (response.url, _without_range(response.request))

    def _refuse_useless(self, response: requests.Response) -> None:
        """Refuse a response without the bytes of the file. Raises: as _request()."""
        if response.status_code in (401, 403):
            advice = ASK_FOR_ACCESS if response.headers.get("X-Error-Code") == "GatedRepo" else CHECK_TOKEN
            if urllib.parse.urlsplit(self._url).query:
                advice += "; if the URL is signed, its signature may have expired: give it signed anew"
            raise TransportError(f"{self._name}: access refused (HTTP {response.status_code}); {advice}")
        if response.status_code == 407:
            raise TransportError(f"{self._name}: the proxy wants a login (HTTP 407); {CHECK_PROXY}")
        if response.status_code in (404, 410):
            raise TransportError(f"{self._name}: not found (HTTP {response.status_code}); {CHECK_ID}")
        if response.status_code not in (200, 206):
            raise TransportError(f"{self._name}: the server answers HTTP {response.status_code} to a GET with Range")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            page = f"the server answers with an HTML page{_title(response)} instead of the shard"
            if self._memory.reached:  # a login or maintenance page may stand in the way for a while
                raise TransientError(page)
            raise TransportError(f"{self._name}: {page}; check the URL, a login or a proxy")
        encodings = [
            name.strip().removeprefix("x-") for name in response.headers.get("Content-Encoding", "").lower().split(",")
        ]
        # Many servers name the compression of the file itself so; anything else is an encoding of the server's own.
        if (own := [name for name in encodings if name in _ENCODINGS]) and own != [compression_of(self._name)]:
            raise TransportError(
                f"{self._name}: the server sends it with Content-Encoding: {', '.join(own)}, although asked not to; "
                "turn that off, or name the file after its compression"
            )
        coding = response.headers.get("Transfer-Encoding", "").lower()
        # Their frames would be taken for the file.
        if coding != "chunked" and re.search("chunked|gzip|deflate|compress", coding):
            raise TransientError(f"Transfer-Encoding {coding[:40]!r}")

    def _answer(self, url: str, headers: Mapping[str, str | bytes]) -> requests.Response:
        """The answer to a GET. Raises: as _request()."""
        if self._session is None:
            self._session = Session(self._user_headers)
        try:
            return self._session.open(url, headers, self._timeout)
        except RedirectError as error:
            raise TransportError(f"{self._name}: {error}; check the URL, a login or a proxy") from error
        except ValueError as error:
            if isinstance(error, requests.exceptions.InvalidHeader) and error.request is not None:
                raise TransientError(in_words(error)) from error  # of the answer, such as two lengths
            if isinstance(error, requests.exceptions.InvalidProxyURL) or "SOCKS" in str(error):
                raise TransportError(f"{self._name}: no way to the proxy ({in_words(error)}); {CHECK_PROXY}") from error
            raise TransportError(
                f"{self._name}: invalid request ({in_words(error)}); check the URL, and where its server redirects to"
            ) from error

    def _total_of_full_body(self, response: requests.Response) -> int | None:
        """Bytes of a body that is all of the file; None where the size is unknown and chunks mark the end."""
        if (length := _content_length(response)) is not None:
            return length
        known = self.total if self.total is not None else self._size
        if known is not None or response.raw.chunked:
            return known
        assert self._session is not None
        head = self._session.head(response.url, headers=_without_range(response.request), timeout=self._timeout)
        if is_busy(head.status_code):
            raise TransientError(f"HTTP {head.status_code}", wait=retry_after(head.headers))
        length = _content_length(head) if head.status_code == 200 else None
        if length is None:
            raise TransportError(
                f"{self._name}: the server does not say how large the file is, so a connection that breaks would look like "
                "its end; serve it with Content-Length"
            )
        return length

    def _remember(self, response: requests.Response, total: int | None) -> None:
        # Not the modification time: a file that is written anew with the same content is the same.
        answer = {"size": None if total is None else str(total), "etag": bare_etag(response.headers.get("ETag"))}
        refuse_replaced(self._name, self.known, {kind: value for kind, value in answer.items() if value})
        self.total = total if total is not None else self.total


def _title(response: requests.Response) -> str:
    """What a page says that it is, in quotes and parentheses; empty where it says nothing."""
    try:
        begin = response.raw.read1(8 * KIB)
    except (urllib3.exceptions.HTTPError, OSError):  # what is known without a title must not be taken for a fault that passes
        return ""
    found = re.search(rb"<title[^>]*>(.*?)</title", begin, re.IGNORECASE | re.DOTALL)
    words = " ".join(html.unescape(found[1].decode(errors="replace")).split()) if found else ""
    return f' ("{printable(words[:80])}")' if words else ""


def _content_length(response: requests.Response) -> int | None:
    """Bytes of the body, as the header says. Raises TransientError where that is no number."""
    header = response.headers.get("Content-Length")
    if header is None:
        return None
    length = natural_number(header)
    if length is None:
        raise TransientError(f"Content-Length {header[:40]!r}")
    return length


def _without_range(request: requests.PreparedRequest) -> dict[str, str | bytes]:
    """Headers of a request for the complete file."""
    return {name: value for name, value in request.headers.items() if name != "Range"}
