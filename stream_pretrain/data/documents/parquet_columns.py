"""Which columns of a Parquet file hold the text; fields may be nested in objects and in lists of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from stream_pretrain.data.documents.text_fields import name_one_of, no_text
from stream_pretrain.errors import ContentError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def text_columns(metadata: pq.FileMetaData, fields: Sequence[str], *, numbers: bool) -> list[int]:
    """The number of each field's column in the file; with `numbers`, as in a template, numbers count as text.

    Raises: ContentError for a field that is missing or holds something else.
    """
    leaves = [leaf for column in metadata.schema.to_arrow_schema() for leaf in _leaves(column.type, column.name)]
    assert len(leaves) == metadata.num_columns
    names = [name for name, _, _ in leaves]
    within = {field: [name for name in names if name.startswith(f"{field}.")] for field in fields}
    absent = [field for field in fields if field not in names and not within[field]]
    if absent:
        raise ContentError(no_text(absent, names))
    for field in fields:
        if field not in names:
            holds = f"objects with fields {', '.join(name.removeprefix(f'{field}.') for name in within[field])}"
        else:
            _, kind, in_list = leaves[names.index(field)]
            if _is_text(kind) or (numbers and _is_number(kind) and not in_list):
                continue
            holds = ("lists of " if in_list else "") + ("numbers" if _is_number(kind) else f"values of type {kind}")
        raise ContentError(f"field {field!r} holds {holds}, not text; {name_one_of(names)}")
    return [names.index(field) for field in fields]


def _leaves(kind: pa.DataType, name: str, *, in_list: bool = False) -> Iterator[tuple[str, pa.DataType, bool]]:
    """Of each stored column: its dotted name, which leaves out lists, its type, and whether it is in a list."""
    import pyarrow as pa
    from pyarrow import types

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if types.is_struct(kind):
        for inner in kind:
            yield from _leaves(inner.type, f"{name}.{inner.name}", in_list=in_list)
    elif types.is_map(kind):
        yield from _leaves(kind.key_type, f"{name}.key", in_list=True)
        yield from _leaves(kind.item_type, f"{name}.value", in_list=True)
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        yield from _leaves(kind.value_type, name, in_list=True)
    else:
        yield name, kind.value_type if types.is_dictionary(kind) else kind, in_list


def _is_text(kind: pa.DataType) -> bool:
    """Whether values may be text: bytes may be UTF-8, and a column may be all null."""
    from pyarrow import types

    text = (types.is_string, types.is_large_string, types.is_string_view)
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(is_it(kind) for is_it in (*text, *binary, types.is_null))


def _is_number(kind: pa.DataType) -> bool:
    from pyarrow import types

    return any(is_it(kind) for is_it in (types.is_integer, types.is_floating))
