"""Which options may hold secrets, and their values without them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stream_pretrain.config.corpus_options import SourceConfig
from stream_pretrain.config.option_field import Secret
from stream_pretrain.config.options import GROUPS, Config, EvalSetConfig, fields_of
from stream_pretrain.errors import ConfigError
from stream_pretrain.redaction import Secrets, redacted_options
from stream_pretrain.urls import HIDDEN, redacted_url, without_secrets

_REDACT = {"url": redacted_url, "keys": redacted_options}


_RECORDS = {"data.sources": SourceConfig, "eval.sets": EvalSetConfig}
_KINDS: dict[str, Secret] = {
    name: kind for name, option in fields_of({**GROUPS, **_RECORDS}).items() if (kind := option.metadata.get("secret"))
}
"""By the dotted name of an option, or of a key of its records."""


def storage_options(given: str | None) -> dict[str, Any]:
    """Storage options from JSON, or from the JSON in @FILE. Raises: ConfigError."""
    option, text = "--data.storage-options", given or "{}"
    if text.startswith("@"):
        option = f"{option} {text}"
        try:
            text = Path(text[1:]).read_text("utf-8-sig")
        except OSError as error:
            raise ConfigError(f"{option}: the file cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{option}: the file is not UTF-8 text") from error
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{option} is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ConfigError(f"{option} must be a JSON object")
    return parsed


def secrets_of(config: Config, environment: Mapping[str, str]) -> Secrets:
    """The secrets in the options and the environment variables."""
    found = [secret for group in GROUPS for secret in _secrets(group, getattr(config, group))]
    return Secrets.of(
        [value for kind, value in found if kind == "url"],
        [storage_options(value) for kind, value in found if kind == "keys"],
        environment,
    )


def _secrets(place: str, options: Any) -> Iterator[tuple[Secret, str]]:
    """Values that may hold secrets in a group of options or a record, with their kind."""
    for name, value in vars(options).items():
        dotted = f"{place}.{name}"
        if isinstance(value, tuple):
            for record in value:
                yield from _secrets(dotted, record)
        elif dotted in _KINDS and value is not None:
            yield _KINDS[dotted], value


def redacted(name: str, value: Any) -> Any:
    """The value of an option with `…` for secrets. name: dotted, with underscores."""
    if name in _RECORDS:
        return [{key: redacted(f"{name}.{key.replace('-', '_')}", inner) for key, inner in record.items()} for record in value]
    return _REDACT[_KINDS[name]](value) if name in _KINDS and isinstance(value, str) else value


def redacted_text(name: str, text: str) -> str:
    """The value of an option on a command line with `…` for secrets; any option may be given a URL."""
    if name not in _RECORDS:
        return _REDACT[_KINDS.get(name, "url")](text)
    try:
        records = json.loads(text)
        shown = redacted(name, records)
    except (ValueError, TypeError, AttributeError):  # an error of the user, reported when the options are read
        return HIDDEN
    return text if shown == records else json.dumps(shown, ensure_ascii=False)


def shown_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options by dotted name, without secrets."""

    def shown(name: str, value: Any) -> Any:
        if name in _RECORDS:
            return [{key: shown(f"{name}.{key}", inner) for key, inner in record.items()} for record in value]
        if value is None or name not in _KINDS:
            return value
        return without_secrets(value) if _KINDS[name] == "url" else None

    return {name: shown(name, value) for name, value in options.items() if _KINDS.get(name) != "keys"}
