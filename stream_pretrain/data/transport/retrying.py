"""Faults of transport: which are transient, how long to wait, when to give up."""

from __future__ import annotations

import errno
import http.client
import logging
import os
import random
import re
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TypeVar

import requests
from huggingface_hub.errors import OfflineModeIsEnabled

from stream_pretrain.data.transport.http_session import retry_after
from stream_pretrain.errors import DeadlineError, StreamPretrainError, TransportError, causes

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BACKOFF_BASE, _BACKOFF_CAP = 0.5, 60.0


class TransientError(Exception):
    """A transient fault of transport; `wait` is the wait that the server requested, in seconds."""

    def __init__(self, cause: str, wait: float | None = None, *, at_once: bool = False):
        super().__init__(cause)
        self.wait = wait
        self.at_once = at_once

    def wait_after(self, tries: int) -> float:
        """Seconds until the next attempt: exponential backoff with jitter, at least the wait that the server requested."""
        if self.at_once and tries == 0:
            return 0.0
        # not the module's generator: its state belongs to the training
        growing = random.SystemRandom().uniform(0.5, 1.0) * min(_BACKOFF_CAP, _BACKOFF_BASE * 2.0 ** min(tries, 10))
        return growing if self.wait is None else max(self.wait, growing)


class Retrying:
    """One operation on a store, retried after transient faults: the only loop that waits for a server.

        for attempt in Retrying("a.jsonl", deadline=1800.0):
            with attempt:
                return ask()

    Raises: DeadlineError after `deadline` seconds without success or `progress()`; TransportError at once where trying again
    cannot help, or where no server answers, or none that can be trusted, and none has before: then the name may be wrong.
    """

    def __init__(
        self, name: str, deadline: float, *, reached: bool = False, pause: Callable[[float], object] = time.sleep
    ) -> None:
        """reached: whether a store has responded before; pause: waits some seconds, or until the operation is cancelled."""
        self._name, self._deadline, self._pause = name, deadline, pause
        self.reached = reached
        self.tries, self._since = 0, time.monotonic()
        """Attempts that have failed since the last success or `progress()`."""
        self._failed = False
        self.byte: int | None = None
        """The compressed byte that is requested, for messages."""

    def progress(self) -> None:
        """Note that new bytes have come: the deadline and the growing waits start anew."""
        self.reached = True
        self.tries, self._since = 0, time.monotonic()

    def __iter__(self) -> Iterator[Retrying]:
        self._failed = True
        while self._failed:
            self._failed = False
            yield self

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        if not isinstance(error, Exception) or isinstance(error, StreamPretrainError):
            return False
        fault = error if isinstance(error, TransientError) else self._transient(error)
        wait = fault.wait_after(self.tries)
        self.tries += 1
        silent = time.monotonic() - self._since
        if silent + wait > self._deadline:
            nothing = "no good answer" if self.byte is None else f"nothing from compressed byte {self.byte} on"
            raise DeadlineError(
                f"{self._name}: {nothing} for {silent:.0f} s ({fault}), and the next attempt would be in {wait:.0f} s; "
                "check the network and the server, then run the same command again, "
                f"or raise --data.retry-deadline (now {self._deadline:g} s)"
            ) from fault
        place = "" if self.byte is None else f" at compressed byte {self.byte}"
        logger.warning("%s: %s%s; retrying in %.1f s", self._name, fault, place, wait)
        self._pause(wait)
        self._failed = True
        return True

    def _transient(self, error: Exception) -> TransientError:
        if is_unreachable(error) and not self.reached:
            raise TransportError(
                f"{self._name}: no server answers ({in_words(error)}); check the network and the name"
            ) from error
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes(error)) and not self.reached:
            raise TransportError(
                f"{self._name}: no connection ({in_words(error)}); check the URL, the clock, and the certificates of this "
                "machine (REQUESTS_CA_BUNDLE, SSL_CERT_FILE)"
            ) from error
        refused = next((str(cause) for cause in causes(error) if str(cause).startswith("Tunnel connection failed: 4")), None)
        if refused is not None and not self.reached:
            raise TransportError(f"{self._name}: the proxy refuses the connection ({refused}); {CHECK_PROXY}") from error
        return fault_of(error, self._name)


def retried(ask: Callable[[], T], name: str, deadline: float) -> T:
    """What `ask` returns, with the retries and the errors of `Retrying`."""
    for attempt in Retrying(name, deadline):
        with attempt:
            return ask()
    raise AssertionError("ends by an answer or an error")


def is_unreachable(error: BaseException) -> bool:
    """Whether a connection was refused, or the name of the server does not resolve."""
    return any(isinstance(cause, (ConnectionRefusedError, socket.gaierror)) for cause in causes(error))


def is_busy(status: int) -> bool:
    """Whether a server with this status may respond otherwise later."""
    return status in (408, 425, 429) or status >= 500


def status_of(error: BaseException) -> int | None:
    """The HTTP status in an error of any library."""
    response = getattr(error, "response", None)
    for holder in (error, response):
        for key in ("status_code", "status", "code"):
            if isinstance(value := getattr(holder, key, None), int):
                return value
    cause = getattr(error.__cause__, "response", None)  # s3fs wraps botocore
    return cause.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(cause, dict) else None


def in_words(error: BaseException) -> str:
    """An error in one clause: of a network, with the host, and without the wrapping of HTTP libraries.

    Queries of URLs are left out: a signed one opens the file to anybody.
    """
    if _library(error) in _HTTP_LIBRARIES:
        chain = list(causes(error))
        host = next(filter(None, map(_host_of, reversed(chain))), None)  # nearest to the connection, perhaps that of a proxy
        for cause in chain:
            if isinstance(cause, http.client.HTTPException) or _library(cause) in ("builtins", "socket", "ssl"):
                return f"{host}: {_happened(cause)}" if host else _happened(cause)
        if (status := status_of(error)) is not None:
            message = getattr(error, "server_message", None)  # of the Hub
            return f"HTTP {status}: {message}" if message else f"HTTP {status}"
    return re.sub(r"\?[^\s'\")>]+=[^\s'\")>]+", "?...", _as_raised(error))


_HTTP_LIBRARIES = (
    *("requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub"),
    *("aiohttp", "botocore", "aiobotocore"),
)


def _library(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _as_raised(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _happened(error: BaseException) -> str:
    match error:
        case ssl.SSLCertVerificationError(verify_message=str() as why):
            return f"its certificate is refused ({why.rstrip('.')})"
        case socket.gaierror():
            return "its name does not resolve"
        case TimeoutError():
            return "timed out"
        case ssl.SSLError():
            return "the TLS connection failed"
        case OSError(errno=int(number)):
            return os.strerror(number).lower()
        case http.client.RemoteDisconnected() | http.client.IncompleteRead():
            return "closed the connection before the end of its answer"
        case _:
            return _as_raised(error)


def _host_of(error: BaseException) -> str | None:
    """Host and port that a request was sent to, as the libraries note it."""
    noted = vars(error)
    connection = noted.get("conn", error)  # urllib3; aiohttp has both itself
    host, port = getattr(connection, "host", None), getattr(connection, "port", None)
    if isinstance(host, str):
        return f"{host}:{port}"
    request = noted.get("request", noted.get("_request"))  # requests, httpx
    url = getattr(request, "url", None) or noted.get("kwargs", {}).get("endpoint_url")  # botocore
    return url and (urllib.parse.urlsplit(str(url)).netloc.rpartition("@")[2] or None)


def fault_of(error: Exception, name: str) -> TransientError:
    """The transient fault that an error of a library stands for. Raises TransportError where a retry cannot help."""
    words = in_words(error)
    status = status_of(error)
    if isinstance(error, OfflineModeIsEnabled):
        raise TransportError(
            f"{name}: HF_HUB_OFFLINE is set, so the Hub is not asked: unset it, or give a local file or folder"
        ) from error
    if any(getattr(cause, "errno", None) in (errno.EMFILE, errno.ENFILE) for cause in causes(error)):
        raise TransportError(
            f"{name}: this process may not open more files ({words}): "
            "raise `ulimit -n`, or give fewer --lanes or more --workers"
        ) from error
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        raise TransportError(f"{name}: not found ({words}); {CHECK_ID}") from error
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in type(error).__name__:
        raise TransportError(f"{name}: access refused ({words}); {CHECK_TOKEN}") from error
    if type(error).__module__ == "builtins" and not isinstance(error, (OSError, EOFError)):
        raise error
    if isinstance(error, (ValueError, IsADirectoryError, NotADirectoryError, requests.TooManyRedirects)):
        raise TransportError(f"{name}: cannot be read ({words})") from error
    headers = getattr(getattr(error, "response", None), "headers", None)
    return TransientError(words, wait=None if headers is None else retry_after(headers))


CHECK_ID = "check the id, path and revision; what is private looks like this to a token without access (HF_TOKEN)"

CHECK_PROXY = "check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY (socks: pip install pysocks) and NO_PROXY"

ASK_FOR_ACCESS = "the dataset is gated: ask for access on its page on the Hub, and give the token of that account in HF_TOKEN"

CHECK_TOKEN = "check the token or keys: HF_TOKEN for the Hub, else the store's own or --data.storage-options"
