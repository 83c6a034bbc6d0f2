"""The text of a document: the value of a field, or of several, in any of these forms.

"text": "one"                                  text_field text              one
"text": ["one", null, "two"]                   text_field text              one, a blank line, two
"body": [{"text": "one"}, {"text": "two"}]     text_field body.text         the same
"title": null, "body": "one"                   text_template {title}{body}  one
"""

from __future__ import annotations

import difflib
import itertools
import string
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

BETWEEN_PARTS = "\n\n"
"""Joins the texts of a list."""

NOT_UTF8, NO_FIELD, NULL, BLANK = "not UTF-8", "no field", "text is null", "text is blank"

MANY = 10
"""If the first documents of a shard, at least this many, are all unusable, the shard or the options are wrong."""

_FIELDS_SHOWN = 20

_HOLDS = "field "

_ABSENT = object()
"""The value of a missing field."""


class BadDocumentError(Exception):
    """A document that cannot be used; the message is the reason in records."""


class NoTextError(Exception):
    """A document without text, which is no error."""

    def __init__(self, reason: str, value: object = None) -> None:
        """value: the document, where it lacks a field."""
        self.reason = reason
        self.value = value

    def __str__(self) -> str:
        return self.reason if self.value is None else f"{self.reason}; {_fields_seen(seen_in(self.value))}"


def text_getter(field: str, template: str | None) -> Callable[[object], str]:
    """A function from an object to its text: a field, or a template filled with several.

    The function raises BadDocumentError and NoTextError.
    """
    if template is not None:
        return _template_filler(template.replace("\\n", "\n"))  # a shell passes on a backslash and an n
    names = field.split(".")

    def text_of(value: object) -> str:
        found = value[field] if type(value) is dict and field in value else _value_at(value, names)
        text = found if type(found) is str else _as_text(found, field)
        if not text or text.isspace():
            raise _no_text_in([found], [field], value)
        return text

    return text_of


def _template_filler(template: str) -> Callable[[object], str]:
    parts = [
        (literal, name, [] if name is None else name.split(".")) for literal, name, _, _ in string.Formatter().parse(template)
    ]
    fields = list(dict.fromkeys(name for _, name, _ in parts if name is not None))

    def fill(value: object) -> str:
        found = {field: _value_at(value, field.split(".")) for field in fields}
        texts = {field: str(part) if _is_number(part) else _as_text(part, field) for field, part in found.items()}
        if not any(text and not text.isspace() for text in texts.values()):
            raise _no_text_in(found.values(), fields, value)
        return encodable("".join(literal + ("" if name is None else texts[name]) for literal, name, _ in parts))

    return fill


def _no_text_in(found: Collection[object], fields: Sequence[str], value: object) -> NoTextError:
    """Why the values `found` in these fields of a document are no text."""
    if all(part is _ABSENT for part in found):
        return NoTextError(f"{NO_FIELD} {' or '.join(fields)}", value)
    return NoTextError(NULL if all(part is None or part is _ABSENT for part in found) else BLANK)


def _value_at(value: object, names: Sequence[str], start: int = 0) -> object:
    """The field at the path `names[start:]` in an object, through nested objects and lists."""
    if start == len(names) or (value is None and start):
        return value
    if isinstance(value, list) and start:
        found = [_value_at(one, names, start) for one in _flat(value) if one is not None]
        return _ABSENT if found and all(one is _ABSENT for one in found) else [one for one in found if one is not _ABSENT]
    if not isinstance(value, dict):
        within = ".".join(names[:start])
        raise BadDocumentError(f"{_HOLDS}{within!r} holds {kind_of(value)}, not an object" if start else "not an object")
    for stop in range(len(names), start, -1):
        name = ".".join(names[start:stop])  # a name may have dots of its own: the longest match counts
        if name in value:
            return _value_at(value[name], names, stop)
    return _ABSENT


def _as_text(value: object, field: str) -> str:
    """A value as text, empty where there is none; of a list, its texts that are not blank, joined."""
    if value is None or value is _ABSENT:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise BadDocumentError(NOT_UTF8) from None
    if isinstance(value, list):
        parts = list(_flat(value))
        if all(part is None or isinstance(part, str | bytes) for part in parts):
            texts = [_as_text(part, field) for part in parts]
            return BETWEEN_PARTS.join(text for text in texts if text and not text.isspace())
    raise BadDocumentError(f"{_HOLDS}{field!r} holds {kind_of(value)}, not text")


def _flat(values: list[Any]) -> Iterator[Any]:
    """The values of a list and of the lists in it."""
    within = [iter(values)]
    while within:
        for value in within[-1]:
            if isinstance(value, list):
                within.append(iter(value))
                break
            yield value
        else:
            within.pop()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def encodable(text: str) -> str:
    """The text. Raises BadDocumentError where it has lone surrogates, as what Python's own parsers read may have."""
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        raise BadDocumentError("text has lone surrogates") from None
    return text


def kind_of(value: object) -> str:
    """A value in words: a number, an object with fields a, b, a list of numbers."""
    if isinstance(value, list):
        kinds = dict.fromkeys(_kind(one, plural=True) for one in value)
        return f"a list of {' and '.join(kinds)}" if kinds else "an empty list"
    return _kind(value, plural=False)


def _kind(value: object, *, plural: bool) -> str:
    match value:
        case None:
            return "null"
        case str():
            return "texts" if plural else "text"
        case bool():
            return "booleans" if plural else "a boolean"
        case int() | float():
            return "numbers" if plural else "a number"
        case bytes():
            return "bytes"
        case list():
            return "lists" if plural else "a list"
        case dict():
            fields = ", ".join(map(str, itertools.islice(value, _FIELDS_SHOWN)))
            return ("objects" if plural else "an object") + (f" with fields {fields}" if fields else "")
        case _:
            return f"{'values' if plural else 'a value'} of type {type(value).__name__}"


def wrong_field(values: Iterable[object], fields: Sequence[str], bad: str | None, *, many: int = MANY) -> str | None:
    """What is wrong with the chosen fields, by the first documents of a shard; None where nothing is.

    many: documents without a field, and none with it, from which on the field is wrong.
    bad: why the first document was skipped, where none has text.
    """
    lacking: Counter[str] = Counter()
    unseen = dict.fromkeys(fields)
    first: object = None
    for value in values:
        if not isinstance(value, dict):
            continue
        first = first or value
        for field in tuple(unseen):
            names = field.split(".")
            if _has_field(value, names):
                del unseen[field]
                continue
            with suppress(BadDocumentError):
                lacking[field] += _value_at(value, names) is _ABSENT
        if not unseen:
            break
    if absent := [field for field in unseen if lacking[field] >= many]:
        return no_text(absent, seen_in(first))
    return f"{bad}; {name_one_of(seen_in(first))}" if bad is not None and bad.startswith(_HOLDS) else None


def _has_field(value: object, names: Sequence[str]) -> bool:
    """Whether a document, or one in a list, has a field, whatever its value."""
    if isinstance(value, list):
        return any(_has_field(one, names) for one in _flat(value))
    return not names or (
        isinstance(value, dict)
        and any(
            ".".join(names[:stop]) in value and (stop == len(names) or _has_field(value[".".join(names[:stop])], names[stop:]))
            for stop in range(1, len(names) + 1)
        )
    )


def no_text(fields: Sequence[str], seen: Iterable[str]) -> str:
    """The message for fields without text, with those that are there."""
    names = list(seen)
    near = [name for field in fields for name in _like(field, names)]
    return f"has no text in field {' or '.join(map(repr, fields))}; {name_one_of(names, ''.join(near[:1]))}"


def name_one_of(seen: Iterable[str], likely: str = "") -> str:
    """The fields that are there, and the options that name them; likely: the one that may be meant."""
    option = f"--data.text-field {likely}".rstrip()
    return f"{_fields_seen(seen)}. Name one with {option}, or several with --data.text-template"


def _like(field: str, names: Sequence[str]) -> Sequence[str]:
    """The names that end in this field, or else the one that is spelt most alike."""
    return [name for name in names if name.endswith(f".{field}")] or difflib.get_close_matches(field, names, 1)


def _fields_seen(seen: Iterable[str]) -> str:
    return f"fields seen: {', '.join(seen) or 'none'}"


def seen_in(value: object, prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields of an object, as --data.text-field takes them."""
    if not isinstance(value, Mapping):
        return
    for name, inner in itertools.islice(value.items(), _FIELDS_SHOWN):
        one = next((one for one in _flat(inner) if one is not None), None) if isinstance(inner, list) else inner
        if isinstance(one, dict) and prefix.count(".") < 3:
            yield from seen_in(one, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
