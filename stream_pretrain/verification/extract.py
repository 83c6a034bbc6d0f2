"""A small corpus of the first documents of a large one, so that an epoch ends within some steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stream_pretrain.config import Config, sources_of
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.lanes.pinning import read_options
from stream_pretrain.data.lanes.window_sizes import FULL_WINDOW_BYTES
from stream_pretrain.errors import SourceError
from stream_pretrain.training.evaluation.collecting import collect
from stream_pretrain.units import MIB

MOST_BYTES = 256 * MIB
"""Of the text that is read of each source."""

_AS_WRITTEN: dict[str, Any] = {
    **dict.fromkeys(("text_template", "revision", "data_files", "data_dir", "storage_options")),
    "split": "train",
}
"""Options of a corpus of JSON lines with a field `text`."""


def extracted(config: Config, documents: Sequence[int], folder: Path, report: Callable[[str], None]) -> Config:
    """Write the first documents of each source to a folder; returns the options of a run on them, which holds none of them out.

    Raises: SourceError.
    """
    folder.mkdir()
    files = []
    for number, (source, count) in enumerate(zip(sources_of(config.data), documents, strict=True)):
        texts = collect(
            resolve(source).shards,
            read_options(source, FULL_WINDOW_BYTES, share=1),
            documents=count,
            heldout_fraction=None,
            max_read_bytes=MOST_BYTES,
            skip_bad_shards=source.on_bad_shard == "skip",
            report=report,
        ).texts
        if not texts:
            raise SourceError(f"{source.dataset} begins with no document that can be read: check --data.text-field")
        files.append(folder / f"{number}.jsonl")
        with files[-1].open("x", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    fields: dict[str, Any] = dict.fromkeys(("text_field", "text_documents", "config", "max_epochs", "heldout_fraction"))
    sources = tuple(
        replace(source, dataset=str(file), **_AS_WRITTEN, **fields)
        for source, file in zip(config.data.sources, files, strict=False)
    )
    data = replace(
        config.data, reader="auto", text_field="text", text_documents="line", name=None, heldout_fraction=0.0, **_AS_WRITTEN
    )
    return replace(config, data=replace(data, sources=sources, dataset=None if sources else str(files[0])))
