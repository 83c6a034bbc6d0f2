"""Refuses a dataset that does not exist before anything heavy is imported, with at most one request."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.hub_datasets import HUB_URL, hub_token, pinned_revision
from stream_pretrain.data.corpus.listings import at_least_one, matching_files, refuse_unknown_ending, split_pattern
from stream_pretrain.data.corpus.resolve import (
    entries_of,
    local_path,
    may_be_on_hub,
    no_such_path,
    other_dataset,
    with_lower_scheme,
)
from stream_pretrain.data.transport.threads import in_thread
from stream_pretrain.errors import SourceError
from stream_pretrain.urls import is_remote

HUB_TIMEOUT = 10.0
"""Timeout of the request to the Hub; the listing has a longer one."""


def refuse_absent(data: DataConfig, *, dataset: str | None = None) -> None:
    """Refuse a path, a glob or a Hub dataset that does not exist; `dataset` replaces the configured one.

    Other faults, also of the network, are found when the dataset is listed. Raises: SourceError.
    """
    data = other_dataset(data, dataset)
    assert data.dataset is not None, "validated before"
    for entry in map(with_lower_scheme, entries_of(data.dataset)):
        if hub := HUB_URL.fullmatch(entry.rstrip("/")):
            _ask_hub(entry, hub["id"], data)
        elif not is_remote(entry):
            _look_for(entry, data)


def _look_for(entry: str, data: DataConfig) -> None:
    path = local_path(entry)
    if os.path.exists(path):
        if path.is_file():
            refuse_unknown_ending(entry, path.name)
        return
    if glob.has_magic(entry):
        root, pattern = split_pattern(path.as_posix())
        if "**" not in pattern:  # which may take long, and is listed later anyway
            at_least_one(matching_files(Path(root), pattern), entry, "no file matches")
    elif may_be_on_hub(entry):
        _ask_hub(entry, entry, data)
    else:
        raise no_such_path(entry)


def _ask_hub(entry: str, dataset_id: str, data: DataConfig) -> None:
    answer = in_thread("asking the Hub", pinned_revision, entry, dataset_id, None, hub_token(data))
    try:
        answer.result(HUB_TIMEOUT)
    except SourceError:
        raise
    except Exception:  # of the network: the listing requests it again, and reports what is wrong
        return
