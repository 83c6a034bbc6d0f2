"""What kind of place a URL names, and what of it may be shown."""

from __future__ import annotations

import re


def on_web(url: str) -> bool:
    """Whether a web server holds the file: it has no listings, and the query may be a signature."""
    return url.lower().startswith(("http://", "https://"))


def unsigned(url: str) -> str:
    """A URL on the web without its query, which may be a signature that is new at each start."""
    return url.partition("?")[0] if on_web(url) else url


def without_secrets(url: str) -> str:
    """The URL for messages: no password, no signed query."""
    user = r"[^/]*@" if on_web(url) else r"[^/:@]*:[^/]*@"  # elsewhere, a name before @ alone may be a bucket or a container
    return re.sub(f"(?<=://){user}", "", unsigned(url))
