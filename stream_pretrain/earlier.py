"""What the names of runs went by up to November 2026: all options, defaults included.

Never to be changed: runs have these names, and the same command has to find them.
"""

from __future__ import annotations

from typing import Any

OPTIONS: dict[str, Any] = {
    "data.dataset": None,
    "data.sources": [],
    "data.weight_schedule": [],
    "data.name": None,
    "data.split": "train",
    "data.revision": None,
    "data.data_files": None,
    "data.data_dir": None,
    "data.reader": "auto",
    "data.text_field": "text",
    "data.text_template": None,
    "data.min_characters": 0,
    "data.max_characters": None,
    "data.drop_duplicates": False,
    "data.sequence_length": 512,
    "data.packing": "best_fit",
    "data.heldout_fraction": 0.0,
    "data.max_line_bytes": 67108864,
    "model.path": None,
    "model.config": None,
    "model.tokenizer": None,
    "model.revision": None,
    "model.init_from": None,
    "model.resize_embeddings": False,
    "objective.name": "mlm",
    "objective.mask_rate": 0.3,
    "objective.selection": "token",
    "objective.mask_share": 0.8,
    "objective.random_share": 0.1,
    "train.global_batch_size": 256,
    "train.seed": 0,
}
"""Options that must not change in a run, with their defaults of then."""

RECORDS = {
    "data.sources": frozenset(
        {
            "name",
            "dataset",
            "weight",
            "max_epochs",
            "config",
            "split",
            "revision",
            "data_files",
            "data_dir",
            "storage_options",
            "text_field",
            "text_template",
            "min_characters",
            "max_characters",
            "heldout_fraction",
        }
    ),
    "data.weight_schedule": frozenset({"from_step", "weights"}),
}
"""Keys of the records of an option."""


def with_keys_of_then(name: str, value: Any) -> Any:
    """The value of an option, with the keys that its records had then."""
    fields = RECORDS.get(name)
    return value if fields is None else [{key: inner for key, inner in r.items() if key in fields} for r in value]
