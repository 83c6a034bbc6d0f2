"""Kinds of URLs, and URLs without their secrets."""

from __future__ import annotations

import re

HIDDEN = "…"

_USER = re.compile(rf"([^/:@\[]*:(?!:|\d+(?:[/?#]|$)).*?[^/?#]*|{HIDDEN})@")
"""Name and password, which may contain an unescaped slash; a number after the colon is a port."""
_USER_ON_WEB = re.compile(rf"([^/?#]*)@|{_USER.pattern}")
_QUERY = re.compile(rf"[?#][A-Za-z][\w.-]*=.*|(?<!\?)\?(?:[\w%+~-]{{4,}}|{HIDDEN})$")
"""Off the web `?` is also a wildcard: in a query, a name and `=` follow, or a word without an extension."""
_QUERY_ON_WEB = re.compile(r"(?:[?#]|;(?=[^/?#]*=)).*")


def is_remote(url: str) -> bool:
    """Whether the file is in a store, not in a folder of this machine."""
    return "://" in url and not url.startswith("file://")


def on_web(url: str) -> bool:
    """Whether the file is on a web server: no listings, and the query may be a signature."""
    return url.lower().startswith(("http://", "https://"))


def unsigned(url: str) -> str:
    """A web URL without its query, which may be a signature that changes at each start."""
    return url.removesuffix(user_and_query(url)[1]) if on_web(url) else url


def without_secrets(url: str) -> str:
    """The URL without user and query, for messages and records."""
    user, query = user_and_query(url)
    shown = url.removesuffix(query)
    return shown.replace(f"://{user}@", "://", 1) if user else shown


def redacted_url(url: str) -> str:
    """The URL with `…` for its user and its query."""
    user, query = user_and_query(url)
    shown = url.replace(f"://{user}@", f"://{HIDDEN}@", 1) if user else url
    return f"{shown.removesuffix(query)}{query[0]}{HIDDEN}" if len(query) > 1 else shown


def user_and_query(url: str) -> tuple[str, str]:
    """The user of a URL, and all from its query, fragment or session on; empty where they cannot be secret.

    Off the web, a name before @ without a password may be a bucket or container, and ? a wildcard.
    """
    if "://" not in url or url.startswith("hf://"):
        return "", ""
    if web := re.search("https?://", url, re.IGNORECASE):  # also inside of another protocol
        user, query_of = _USER_ON_WEB.match(url, web.end()), _QUERY_ON_WEB
    else:
        users = (_USER.match(url, scheme.end()) for scheme in re.finditer("://", url))
        user, query_of = next(filter(None, users), None), _QUERY
    query = query_of.search(url, user.end() if user else (web.end() if web else 0))
    return (user[0].removesuffix("@") if user else ""), (query[0] if query else "")
