"""Redaction: where secrets are, and text without them.

Secrets are in known places: the user and query of a URL, values of storage options, some environment variables. What this
program records is redacted by place, with `…` for each secret; text of libraries is searched for the secrets.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from stream_pretrain.non_utf8_names import escaped
from stream_pretrain.urls import HIDDEN, redacted_url, user_and_query

# Names in storage options whose values are no secrets.
_NO_SECRETS = frozenset({"endpoint", "endpoint_url", "region", "region_name", "project", "profile", "account_name"})
_NUMBERS = re.compile(
    "age|attempts|batch|block|blocksize|bytes|cache|chunk|concurrency|connect|connections|count|days|delay|depth|expiry|hours|"
    "interval|length|level|limit|listings|max|min|minutes|mode|parallel|part|pool|port|retries|retry|seconds|size|ssl|threads|"
    "timeout|times|trials|ttl|verbose|verify|version|wait|workers"
)
"""Words in names of storage options whose numbers are no secrets."""
_NAMES_OF_SECRETS = re.compile(
    "sig|token|secret|passw|pwd|credential|auth|key|session|policy|sas|ticket|jwt|code|hash|hmac", re.IGNORECASE
)
_WORD = re.compile(r"[a-z]+([/._-][a-z]+)*")
_SECRET_VARIABLES = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY|ACCESS_KEY_ID|ACCOUNT_KEY|CONNECTION_STRING)$"
)
_PROXIES = re.compile(r"(https?|ftp|all)_proxy", re.IGNORECASE)
# In the text of a library: a user before @, and a query, also of a path alone.
_USER = re.compile(r"(?<=://)(?:[^\s/?#'\"<>@:]*:[^\s/'\"<>]*@)|(?<=https://)[^\s/?#'\"<>@]+@|(?<=http://)[^\s/?#'\"<>@]+@")
_QUERY = re.compile(r"\?[^\s'\")>]+=[^\s'\")>]+")
_SHORTEST, _SURE, _LONG = 3, 8, 24
"""Lengths of secrets in text: shorter than the first are not searched for; up to the second only as whole, uncommon words.

In a query, a value that is a plain word, such as `training`, is a secret only from the third length on, or by its name.
"""
_COMMON = frozenset({"true", "false", "none", "null", "auto", "json", "default"})


def redacted_options(storage_options: str) -> str:
    """Storage options, as JSON, with `…` for every value that may be secret; @FILE is a name."""
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
    """Whether `…` is a value of some storage options."""
    return any(leaf == HIDDEN for _, leaf in _leaves("", value))


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values inside of JSON that are no lists or objects, with the name of the nearest key."""
    match value:
        case dict():
            for key, inner in value.items():
                yield from _leaves(key, inner)
        case list():
            for inner in value:
                yield from _leaves(name, inner)
        case _:
            yield name, value


def _is_plain_number(name: str, value: float) -> bool:
    """Whether a number is not a password or key, by its name."""
    words = re.findall("[a-z]+", re.sub("([A-Z])", r"_\1", name).lower())
    return isinstance(value, bool) or any(map(_NUMBERS.fullmatch, words))


class Secrets:
    """Values that must not be shown, to search for in text of libraries."""

    def __init__(self, values: Iterable[str]) -> None:
        quote = partial(urllib.parse.quote, safe="", errors="surrogatepass")  # a variable need not be UTF-8
        forms = {form for value in values for form in (value, urllib.parse.unquote(value), quote(value))}
        long = sorted((form for form in forms if len(form) >= _SURE), key=len, reverse=True)
        short = sorted(form for form in forms if _SHORTEST <= len(form) < _SURE and form.lower() not in _COMMON)
        short = [form for form in short if not form.isdigit()]
        alternatives = [*map(re.escape, long), *(rf"(?:(?<!\w)|(?=\W)){re.escape(form)}(?!\w)" for form in short)]
        self._known = re.compile("|".join(alternatives)) if alternatives else None

    @classmethod
    def of(cls, urls: Iterable[str], storage_options: Iterable[Mapping[str, Any]], environment: Mapping[str, str]) -> Secrets:
        """The secrets of URLs, storage options and environment variables."""
        return cls(
            [
                *(secret for url in urls for secret in _of_url(url)),
                *(secret for options in storage_options for secret in _of_options(options)),
                *(secret for name, value in environment.items() for secret in _of_variable(name, value)),
            ]
        )

    def hide(self, text: str) -> str:
        """The text with `…` for every secret, and for the user and query of any URL."""
        known = text if self._known is None else self._known.sub(HIDDEN, text)
        return _QUERY.sub(f"?{HIDDEN}", _USER.sub(f"{HIDDEN}@", known))


def _of_url(url: str) -> Iterator[str]:
    user, query = user_and_query(url)
    name, _, password = user.partition(":")
    yield password
    if len(name) >= _SURE:  # a short one may be part of a path
        yield name
    for part in re.split("[?#;&]", query):
        key, equals, value = part.partition("=")
        if not equals:
            yield f"?{part}"  # with its `?`: alone it may be any word, such as a branch
        elif _NAMES_OF_SECRETS.search(key) or len(value) >= _LONG or (len(value) >= _SURE and not _WORD.fullmatch(value)):
            yield value


def _of_options(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in _leaves("", options):
        match value:
            case str() if name in _NO_SECRETS:
                yield from _of_url(value)
            case str():
                yield value
                yield from (word for word in value.split() if len(word) >= _SURE)  # "Bearer" and a token
            case int() | float() if not _is_plain_number(name, value):
                yield str(value)


def _of_variable(name: str, value: str) -> Iterator[str]:
    if _PROXIES.fullmatch(name):
        yield from _of_url(value)
    elif _SECRET_VARIABLES.search(name) and len(value) >= _SURE:
        yield value


def printable(text: str, *, kept: str = "") -> str:
    """The text in one line, with control characters, line ends and lone surrogates escaped; kept: those to keep."""
    if text.isprintable():
        return text
    text = escaped(text)
    return "".join(sign if sign.isprintable() or sign in kept else sign.encode("unicode_escape").decode() for sign in text)
