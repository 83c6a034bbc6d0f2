"""What of the user's words is secret, and how text is shown without it.

A secret has its place: the user and the query of a URL, the values of storage options, some variables of the environment.
What is recorded is redacted by place, so that `…` stands where the secret was; text that libraries write is searched for it.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stream_pretrain.non_utf8_names import escaped
from stream_pretrain.urls import HIDDEN, redacted_url, user_and_query

# Names in storage options whose values say where, not who.
_NO_SECRETS = frozenset({"endpoint", "endpoint_url", "region", "region_name", "project", "profile", "account_name"})
_NUMBERS = re.compile(
    "age|attempts|batch|block|blocksize|bytes|cache|chunk|concurrency|connect|connections|count|days|delay|depth|expiry|hours|"
    "interval|length|level|limit|listings|max|min|minutes|mode|parallel|part|pool|port|retries|retry|seconds|size|ssl|threads|"
    "timeout|times|trials|ttl|verbose|verify|version|wait|workers"
)
"""Words in names of storage options whose values are numbers, and no secrets."""
_NAMES_OF_SECRETS = re.compile(
    "sig|token|secret|passw|pwd|credential|auth|key|session|policy|sas|ticket|jwt|code|hash|hmac", re.IGNORECASE
)
_WORD = re.compile(r"[a-z]+([/._-][a-z]+)*")
_SECRET_VARIABLES = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY|ACCESS_KEY_ID|ACCOUNT_KEY|CONNECTION_STRING)$"
)
_PROXIES = re.compile(r"(https?|ftp|all)_proxy", re.IGNORECASE)
# In the text of a library: a user in front of @, and a query, which also stands alone where only the path is told.
_USER = re.compile(r"(?<=://)(?:[^\s/?#'\"<>@:]*:[^\s/'\"<>]*@)|(?<=https://)[^\s/?#'\"<>@]+@|(?<=http://)[^\s/?#'\"<>@]+@")
_QUERY = re.compile(r"\?[^\s'\")>]+=[^\s'\")>]+")
_SHORTEST, _SURE, _LONG = 3, 8, 24
"""Shorter values are not searched for; those below the second length only as words of their own, and no usual ones.

Of a query, words such as `training` are no secret where they are not long and their name does not say that they are one.
"""
_USUAL = frozenset({"true", "false", "none", "null", "auto", "json", "default"})


def redacted_options(storage_options: str) -> str:
    """Storage options, as JSON, with `…` in place of every value that may be secret; @FILE is only a name."""
    if storage_options.startswith("@"):
        return storage_options
    try:
        value = json.loads(storage_options)
    except ValueError:
        return HIDDEN
    redacted = _redacted("", value)
    return storage_options if redacted == value else json.dumps(redacted, ensure_ascii=False)


def _redacted(name: str, value: Any) -> Any:
    match value:
        case dict():
            return {key: _redacted(key, inner) for key, inner in value.items()}
        case list():
            return [_redacted(name, inner) for inner in value]
        case str():
            return redacted_url(value) if name in _NO_SECRETS else HIDDEN
        case int() | float() if not _is_plain_number(name, value):
            return HIDDEN
        case _:
            return value


def says_hidden(value: Any) -> bool:
    """Whether a secret was left out of storage options."""
    match value:
        case dict():
            return any(map(says_hidden, value.values()))
        case list():
            return any(map(says_hidden, value))
        case _:
            return isinstance(value, str) and value == HIDDEN


def _is_plain_number(name: str, value: float) -> bool:
    """Whether a number is none that stands for a password or a key."""
    words = re.findall("[a-z]+", re.sub("([A-Z])", r"_\1", name).lower())
    return isinstance(value, bool) or any(map(_NUMBERS.fullmatch, words))


class Secrets:
    """Values that must not be shown, to be searched for in text that is not ours."""

    def __init__(self, values: Iterable[str]) -> None:
        forms = {form for value in values for form in (value, urllib.parse.unquote(value), urllib.parse.quote(value, safe=""))}
        long = sorted((form for form in forms if len(form) >= _SURE), key=len, reverse=True)
        short = sorted(form for form in forms if _SHORTEST <= len(form) < _SURE and form.lower() not in _USUAL)
        short = [form for form in short if not form.isdigit()]
        alternatives = [*map(re.escape, long), *(rf"(?:(?<!\w)|(?=\W)){re.escape(form)}(?!\w)" for form in short)]
        self._known = re.compile("|".join(alternatives)) if alternatives else None

    @classmethod
    def of(cls, urls: Iterable[str], storage_options: Iterable[Mapping[str, Any]], environment: Mapping[str, str]) -> Secrets:
        """Those of these URLs and storage options, and of the variables that hold keys."""
        return cls(
            [
                *(secret for url in urls for secret in _of_url(url)),
                *(secret for options in storage_options for secret in _of_options("", options)),
                *(secret for name, value in environment.items() for secret in _of_variable(name, value)),
            ]
        )

    def hide(self, text: str) -> str:
        """The text with `…` in place of every secret, and of what stands where a URL has one."""
        known = text if self._known is None else self._known.sub(HIDDEN, text)
        return _QUERY.sub(f"?{HIDDEN}", _USER.sub(f"{HIDDEN}@", known))


def _of_url(url: str) -> Iterator[str]:
    user, query = user_and_query(url)
    name, _, password = user.partition(":")
    yield password
    if len(name) >= _SURE:  # a short one may be part of any path
        yield name
    for part in re.split("[?#;&]", query):
        key, equals, value = part.partition("=")
        if not equals:
            yield f"?{part}"  # which is any word, such as a name of a branch, where nothing is in front of it
        elif _NAMES_OF_SECRETS.search(key) or len(value) >= _LONG or (len(value) >= _SURE and not _WORD.fullmatch(value)):
            yield value


def _of_options(name: str, value: Any) -> Iterator[str]:
    match value:
        case dict():
            for key, inner in value.items():
                yield from _of_options(key, inner)
        case list():
            for inner in value:
                yield from _of_options(name, inner)
        case str() if name in _NO_SECRETS:
            yield from _of_url(value)
        case str():
            yield value
            yield from (word for word in value.split() if len(word) >= _SURE)  # Bearer and a token
        case int() | float() if not _is_plain_number(name, value):
            yield str(value)


def _of_variable(name: str, value: str) -> Iterator[str]:
    if _PROXIES.fullmatch(name):
        yield from _of_url(value)
    elif _SECRET_VARIABLES.search(name) and len(value) >= _SURE:
        yield value


def printable(text: str, *, kept: str = "") -> str:
    """The text in one line that a terminal shows as it is: controls, line ends and half characters are escaped.

    kept: those that are meant.
    """
    if text.isprintable():
        return text
    text = escaped(text)
    return "".join(sign if sign.isprintable() or sign in kept else sign.encode("unicode_escape").decode() for sign in text)
