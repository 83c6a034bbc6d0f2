"""What kind of place a URL names, and what of it may be shown."""

from __future__ import annotations

import re


def is_remote(url: str) -> bool:
    """Whether a store holds the file, and not a folder of this machine."""
    return "://" in url and not url.startswith("file://")


def on_web(url: str) -> bool:
    """Whether a web server holds the file: it has no listings, and the query may be a signature."""
    return url.lower().startswith(("http://", "https://"))


def unsigned(url: str) -> str:
    """A URL on the web without its query, which may be a signature that is new at each start."""
    return url.partition("?")[0] if on_web(url) else url


def without_secrets(url: str) -> str:
    """The URL for messages and records: no password, no signed query."""
    user, query = user_and_query(url)
    shown = url.removesuffix(query).removesuffix("?") if query else unsigned(url)
    return shown.replace(f"://{user}@", "://", 1) if user else shown


def user_and_query(url: str) -> tuple[str, str]:
    """What a URL has in front of @ and behind ?, where these may be secret; else empty.

    Off the web, a name before @ alone may be a bucket or a container, and ? a wildcard.
    """
    if re.search("https?://", url, re.IGNORECASE):  # also behind a protocol that wraps it
        place, _, query = url.partition("?")
        found = re.search(r"(?<=://)[^/]*(?=@)", place)
    else:
        signed = re.search(r"\?([^/?]*=[^/]*)$", url) if "://" in url and not url.startswith("hf://") else None
        place, query = (url[: signed.start()], signed[1]) if signed else (url, "")
        found = re.search(r"(?<=://)[^/:@]*:[^/]*(?=@)", place)
    return found[0] if found else "", query
