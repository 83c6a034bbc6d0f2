"""Documents of a source, sampled from the beginnings of shards that are spread over it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash
from numpy.typing import NDArray

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.document import Documents, ReadOptions
from stream_pretrain.data.documents.filters import without_held_out
from stream_pretrain.data.documents.reader import windows_of_unit
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.engine import Engine
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.errors import ContentError

MOST_UNITS = 16
"""Shards of a source, or bundles of small ones, that are sampled."""

MOST_EXAMPLES = 3
"""Of documents that are skipped."""


@dataclass
class SourceSample:
    """What was found in the documents of a source that were read."""

    shards: int = 0
    """How many shards were read from."""
    enterable: int = 0
    """Shards that can be read from more than one place: a resume need not begin at their start."""
    is_complete: bool = True
    """Whether all of the source was read, except what follows damage in a shard."""
    read: int = 0
    """Documents, used or not."""
    content_bytes: int = 0
    """Of them."""
    skipped: int = 0
    empty: int = 0
    filtered: int = 0
    held_out: int = 0
    duplicates: int = 0
    """Documents whose text was seen before in the sample."""
    examples: list[str] = field(default_factory=list)
    """Of skipped documents: where, and why."""
    damaged: list[str] = field(default_factory=list)
    """Shards that cannot be read, with the reason."""
    windows: list[NDArray[np.int64]] = field(default_factory=list)
    """Tokens of the documents of each window, without special tokens; characters without a tokenizer."""
    window_origins: list[tuple[int, int]] = field(default_factory=list)
    """Of each window: the number of its shard or bundle, and the bytes of its content."""
    characters: int = 0
    text_bytes: int = 0
    """In UTF-8."""
    unknown: int = 0
    """Tokens."""
    scripts: Counter[str] = field(default_factory=Counter)
    """Letters by the first word of their Unicode names."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of all documents, or characters."""
        return np.concatenate([np.empty(0, dtype=np.int64), *self.windows])

    @property
    def documents(self) -> int:
        """Documents with text."""
        return len(self.lengths)


def sample_of(
    plan: SourcePlan, encoder: Encoder | None, unknown_id: int | None, most_bytes: int, report: Callable[[str], None]
) -> SourceSample:
    """Read about `most_bytes` of content at most. A damaged shard is noted, and the next one read. Raises: TransportError."""
    sample, engine = SourceSample(), None if encoder is None else encoder.build()
    units = len(plan.units)
    chosen = np.unique(np.linspace(0, units - 1, min(units, MOST_UNITS)).astype(int)).tolist()
    sample.is_complete = len(chosen) == units
    seen: set[int] = set()
    for place, unit in enumerate(chosen):
        shards = plan.shards_of(unit)
        report(f"{shards[0].name} ({place + 1} of {len(chosen)})")
        try:
            for window in _read(sample, shards, plan.read, most_bytes // len(chosen)):
                trained = without_held_out(window, plan.heldout_fraction).texts
                sample.held_out += len(window.texts) - len(trained)
                _count_texts(sample, trained, engine, unknown_id, seen)
                sample.window_origins.append((unit, window.content_bytes))
        except ContentError as error:
            sample.damaged.append(str(error))
        sample.shards += len(shards)
    return sample


def _read(sample: SourceSample, shards: Sequence[Shard], options: ReadOptions, most_bytes: int) -> Iterator[Documents]:
    """The windows of a shard or of a bundle, counted."""
    restart, read = RestartPoint(), 0
    enterable = sum(shard.compression == "none" and shard.format != "examples" for shard in shards)
    try:
        for window in windows_of_unit(shards, options):
            if len(shards) == 1 and restart.compressed > 0:
                enterable = 1
            sample.read += window.read
            sample.skipped += sum(skip.documents for skip in window.skips)
            sample.empty += sum(skip.documents for skip in window.empty)
            sample.filtered += window.filtered
            sample.damaged += [str(damage.error) for damage in window.damaged]
            for skip in window.skips[: MOST_EXAMPLES - len(sample.examples)]:
                sample.examples.append(f"{shards[skip.member].name}:{skip.offset}: {skip.reason}")
            sample.content_bytes += window.content_bytes
            yield window
            restart, read = window.restart, read + window.content_bytes
            if read >= most_bytes and not _is_all_of(shards, read):
                sample.is_complete = False
                return
    finally:
        sample.enterable += enterable


def _is_all_of(shards: Sequence[Shard], read: int) -> bool:
    """Whether `read` bytes of content are known to be all of a shard; a bundle is always read completely."""
    shard, *others = shards
    is_known = shard.format in ("jsonl", "text") and not shard.is_content_estimated
    return bool(others) or (is_known and read == shard.content_bytes)


def _count_texts(
    sample: SourceSample, texts: Sequence[str], engine: Engine | None, unknown_id: int | None, seen: set[int]
) -> None:
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    hashes = [xxhash.xxh3_64_intdigest(one) for one in encoded]
    sample.duplicates += len(hashes) - len(set(hashes) - seen)
    seen.update(hashes)
    sample.characters += sum(map(len, texts))
    sample.text_bytes += sum(map(len, encoded))
    for sign, count in Counter("".join(texts)).items():
        if sign.isalpha():
            script = unicodedata.name(sign, "UNNAMED").partition(" ")[0]
            sample.scripts[script if script == "CJK" else script.capitalize()] += count
    if engine is None:
        sample.windows.append(np.array([len(text) for text in texts], dtype=np.int64))
        return
    ids, lengths = engine.encode(texts)
    sample.empty += int((lengths == 0).sum())
    sample.windows.append(lengths[lengths > 0])
    if unknown_id is not None:
        sample.unknown += int((ids == unknown_id).sum())
