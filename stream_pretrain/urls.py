"""What kind of place a URL names, and what of it may be shown."""

from __future__ import annotations

import re

HIDDEN = "…"

_USER = re.compile(rf"([^/:@\[]*:(?!:|\d+(?:[/?#]|$)).*?[^/?#]*|{HIDDEN})@")
"""A name and a password, in which a slash may stand that should be written %2F; a number behind the colon is a port."""
_USER_ON_WEB = re.compile(rf"([^/?#]*)@|{_USER.pattern}")
_QUERY = re.compile(rf"[?#][A-Za-z][\w.-]*=.*|(?<!\?)\?(?:[\w%+~-]{{4,}}|{HIDDEN})$")
"""Off the web a question mark is also a wildcard: behind one of a query are a name and `=`, or a word without an ending."""
_QUERY_ON_WEB = re.compile(r"(?:[?#]|;(?=[^/?#]*=)).*")


def is_remote(url: str) -> bool:
    """Whether a store holds the file, and not a folder of this machine."""
    return "://" in url and not url.startswith("file://")


def on_web(url: str) -> bool:
    """Whether a web server holds the file: it has no listings, and the query may be a signature."""
    return url.lower().startswith(("http://", "https://"))


def unsigned(url: str) -> str:
    """A URL on the web without its query, which may be a signature that is new at each start."""
    return url.removesuffix(user_and_query(url)[1]) if on_web(url) else url


def without_secrets(url: str) -> str:
    """The URL for messages and records: no password, no signed query."""
    user, query = user_and_query(url)
    shown = url.removesuffix(query)
    return shown.replace(f"://{user}@", "://", 1) if user else shown


def redacted_url(url: str) -> str:
    """The URL with `…` in place of its user and its query."""
    user, query = user_and_query(url)
    shown = url.replace(f"://{user}@", f"://{HIDDEN}@", 1) if user else url
    return f"{shown.removesuffix(query)}{query[0]}{HIDDEN}" if len(query) > 1 else shown


def user_and_query(url: str) -> tuple[str, str]:
    """What a URL has in front of @, and from its query, fragment or session on, where these may be secret; else empty.

    Off the web, a name before @ alone may be a bucket or a container, and ? a wildcard.
    """
    if "://" not in url or url.startswith("hf://"):
        return "", ""
    if web := re.search("https?://", url, re.IGNORECASE):  # also behind a protocol that wraps it
        user, query_of = _USER_ON_WEB.match(url, web.end()), _QUERY_ON_WEB
    else:
        users = (_USER.match(url, scheme.end()) for scheme in re.finditer("://", url))
        user, query_of = next(filter(None, users), None), _QUERY
    query = query_of.search(url, user.end() if user else (web.end() if web else 0))
    return (user[0].removesuffix("@") if user else ""), (query[0] if query else "")
