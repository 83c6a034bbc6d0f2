"""Faults of transport: which may pass, how long to wait, when to give up."""

from __future__ import annotations

import errno
import logging
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import requests
from huggingface_hub.errors import OfflineModeIsEnabled

from stream_pretrain.data.transport.http_session import asked_wait
from stream_pretrain.errors import StreamPretrainError, TransportError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BACKOFF_BASE, _BACKOFF_CAP = 0.5, 60.0


class TransientError(Exception):
    """A fault of transport that may pass; `wait` is how long the server asked to wait, in seconds."""

    def __init__(self, cause: str, wait: float | None = None, *, at_once: bool = False):
        super().__init__(cause)
        self.wait = wait
        self.at_once = at_once

    def wait_after(self, tries: int) -> float:
        """Seconds until the next try: growing exponentially, with jitter, and at least what the server asked for."""
        if self.at_once and tries == 0:
            return 0.0
        # not the module's generator: its state belongs to the training
        growing = random.SystemRandom().uniform(0.5, 1.0) * min(_BACKOFF_CAP, _BACKOFF_BASE * 2.0 ** min(tries, 10))
        return growing if self.wait is None else max(self.wait, growing)


def answered(ask: Callable[[], T], name: str, deadline: float) -> T:
    """What `ask` returns; asked again for up to `deadline` seconds while a network or server fails as may pass.

    Raises: TransportError at the deadline, or at once where asking again cannot help, or where nobody answers: that is not
    waited for, since nothing has begun and the name may be a slip of the pen.
    """
    tries, began = 0, time.monotonic()
    while True:
        try:
            return ask()
        except StreamPretrainError:
            raise
        except TransientError as passing:
            fault = passing
        except Exception as error:
            if nobody_answers(error):
                raise unanswered(name, error) from error
            fault = fault_of(error, name)
        wait = fault.wait_after(tries)
        tries += 1
        if time.monotonic() + wait - began > deadline:
            raise TransportError(
                f"{name}: no good answer for {time.monotonic() - began:.0f} s ({fault}), "
                f"and the next try would be in {wait:.0f} s; "
                f"check the network and the server, or raise --data.retry-deadline (now {deadline:g} s)"
            ) from fault
        logger.warning("%s: %s; asking again in %.1f s", name, fault, wait)
        time.sleep(wait)


def unanswered(name: str, error: BaseException) -> TransportError:
    return TransportError(f"{name}: no server answers ({in_words(error)}); check the network and the name")


def nobody_answers(error: BaseException) -> bool:
    """Whether a connection was refused, or nobody knows the name of the server."""
    return any(isinstance(cause, (ConnectionRefusedError, socket.gaierror)) for cause in causes(error))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_busy(status: int) -> bool:
    """Whether a server that answers so may answer otherwise later."""
    return status in (408, 425, 429) or status >= 500


def status_of(error: BaseException) -> int | None:
    """The HTTP status in an error of any library."""
    response = getattr(error, "response", None)
    for holder in (error, response):
        for key in ("status_code", "status", "code"):
            if isinstance(value := getattr(holder, key, None), int):
                return value
    behind = getattr(error.__cause__, "response", None)  # what s3fs has of botocore
    return behind.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(behind, dict) else None


def in_words(error: BaseException) -> str:
    """What a library raised, in one line, without the queries of URLs: a signed one opens the file to anybody."""
    return re.sub(r"\?[^\s'\")>]+=[^\s'\")>]+", "?...", f"{type(error).__name__}: {' '.join(str(error).split())}")


def fault_of(error: Exception, name: str) -> TransientError:
    """What a library raised, as a fault that may pass. Raises TransportError where trying again cannot help."""
    words = in_words(error)
    status = status_of(error)
    if isinstance(error, OfflineModeIsEnabled):
        raise TransportError(
            f"{name}: HF_HUB_OFFLINE is set, so the Hub is not asked: unset it, or give a file or folder that is here"
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
    python_says = type(error).__module__ == "builtins" and not isinstance(error, (OSError, EOFError))
    if python_says:
        raise error
    if isinstance(error, (ValueError, IsADirectoryError, NotADirectoryError, requests.TooManyRedirects)):
        raise TransportError(f"{name}: cannot be read ({words})") from error
    headers = getattr(getattr(error, "response", None), "headers", None)
    return TransientError(words, wait=None if headers is None else asked_wait(headers))


CHECK_ID = "check the id, path and revision; what is private looks like this to a token without access (HF_TOKEN)"

ASK_FOR_ACCESS = "the dataset is gated: ask for access on its page on the Hub, and give the token of that account in HF_TOKEN"

CHECK_TOKEN = "check the token or keys: HF_TOKEN for the Hub, else the store's own or --data.storage-options"
