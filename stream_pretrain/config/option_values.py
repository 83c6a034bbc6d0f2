"""The values of options by their names: all of them, those that a run must not change, those of each source."""

from __future__ import annotations

import dataclasses
from typing import Any

from stream_pretrain.config.corpus_options import DataConfig
from stream_pretrain.config.options import GROUPS, Config, fields_of
from stream_pretrain.non_utf8_names import escaped


def flatten(config: Config) -> dict[str, Any]:
    """All options by dotted name; records as plain dictionaries, text that is not UTF-8 escaped."""
    return {f"{group}.{name}": _plain(value) for group in GROUPS for name, value in vars(getattr(config, group)).items()}


def _plain(value: Any) -> Any:
    match value:
        case tuple():
            return [{key: _plain(inner) for key, inner in dataclasses.asdict(record).items()} for record in value]
        case str():
            return escaped(value)
        case _:
            return value


def sources_of(data: DataConfig) -> tuple[DataConfig, ...]:
    """The options of each source as if it were the only dataset."""
    own = {"name", "weight", "max_epochs", "config"}
    return tuple(
        dataclasses.replace(
            data,
            sources=(),
            weight_schedule=(),
            name=source.config,
            **{
                option.name: value
                for option in dataclasses.fields(source)
                if option.name not in own and (value := getattr(source, option.name)) is not None
            },
        )
        for source in data.sources
    ) or (data,)


def defaults(config: Config) -> dict[str, Any]:
    """The default of every option."""
    groups: dict[str, Any] = {group: type(getattr(config, group))() for group in GROUPS}
    return flatten(dataclasses.replace(config, **groups))


def fixed_options(config: Config) -> dict[str, Any]:
    """The options that must not change in a run (seed, batch, objective, corpus...), by dotted name."""
    fields = fields_of({group: getattr(config, group) for group in GROUPS})
    return {name: value for name, value in flatten(config).items() if not fields[name].metadata.get("may_change")}


def without_places(fixed: dict[str, Any]) -> dict[str, Any]:
    """Fixed options without the place of the corpus, which may move: its shards are compared instead.

    Keys of sources without a value are dropped, since the run may have begun before there was such a key.
    """
    places = ("dataset", "storage_options")
    records = fixed.get("data.sources", [])
    records = [{k: v for k, v in record.items() if k not in places and v is not None} for record in records]
    return {**{name: value for name, value in fixed.items() if name != "data.dataset"}, "data.sources": records}
