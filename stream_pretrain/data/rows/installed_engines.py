"""Which tokenizer engines are installed. Imports none of them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from stream_pretrain.config import EngineName
from stream_pretrain.errors import ConfigError


def installed(name: str) -> str | None:
    """The version of an engine; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def refuse_uninstalled(requested: EngineName) -> None:
    """Refuse an engine that is named and not installed. Raises: ConfigError."""
    if requested != "auto" and installed(requested) is None:
        raise ConfigError(f"--data.engine {requested} is not installed: pip install {requested}, or give --data.engine auto")
