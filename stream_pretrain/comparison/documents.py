"""The documents that models are compared on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stream_pretrain.config import DataConfig, sources_of
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.lanes.pinning import read_options
from stream_pretrain.data.lanes.window_sizes import FULL_WINDOW_BYTES
from stream_pretrain.data.randomness import EVAL_MASK, keyed_generator
from stream_pretrain.errors import SourceError
from stream_pretrain.training.evaluation.collecting import Collected, collect

MOST_SHARDS = 16
"""The most shards of a source that documents are taken from."""


@dataclass(frozen=True)
class ComparedDocuments:
    """Texts, and the source of each."""

    texts: list[str]
    sources: list[str]


def documents_of(
    data: DataConfig, most: int, max_read_bytes: int, report: Callable[[str], None], warn: Callable[[str], None]
) -> ComparedDocuments:
    """At most `most` documents of each source, from up to `MOST_SHARDS` shards: the same at every call.

    Those held out of training alone where `heldout_fraction` is given. Raises: SourceError, TransportError.
    """
    texts: list[str] = []
    sources: list[str] = []
    names = [source.name for source in data.sources] or [""]
    for name, source in zip(names, sources_of(data), strict=True):
        shards = resolve(source).shards
        chosen = keyed_generator(0, EVAL_MASK, len(shards)).permutation(len(shards))[:MOST_SHARDS].tolist()
        found = Collected()
        for place, shard in enumerate(sorted(chosen)):
            if len(found.texts) == most:
                break
            of_shard = collect(
                [shards[shard]],
                read_options(source, FULL_WINDOW_BYTES, share=1),
                documents=-(-(most - len(found.texts)) // (len(chosen) - place)),
                heldout_fraction=source.heldout_fraction or None,
                max_read_bytes=max_read_bytes // len(chosen),
                skip_bad_shards=source.on_bad_shard == "skip",
                report=report,
            )
            found.add(of_shard)
        if found.warning is not None:
            warn(found.warning)
        if not found.texts:
            of = f"source {name}" if name else "the dataset"
            held = ": raise --data.heldout-fraction or --evaluate.max-bytes" if source.heldout_fraction else ""
            raise SourceError(f"no document of {of} to evaluate on{held}")
        texts += found.texts
        sources += [name] * len(found.texts)
    return ComparedDocuments(texts, sources)
