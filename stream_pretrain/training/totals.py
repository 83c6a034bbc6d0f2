"""What a run has done so far, and what the documents it did not train on say of the corpus."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.errors import CheckpointError, ContentError
from stream_pretrain.typed_json import from_json

JUDGED_DOCUMENTS = 1_000
"""Documents after which the share of those that are bad, or have no text, is judged."""
OF_WINDOWS = ("read", "skipped", "empty", "filtered", "stripes")
"""What cursors and `Totals` count a window at a time, as it is opened."""


@dataclass
class Totals:
    """What the run has done so far, over all ranks."""

    step: int = 0
    tokens: int = 0
    documents: int = 0
    read: int = 0
    """Documents of the windows that were opened; the next three are parts of them."""
    skipped: int = 0
    empty: int = 0
    filtered: int = 0
    stripes: int = 0
    """Stripes whose rest had to be skipped."""
    bad_steps: int = 0
    """Steps in a row without an update."""
    segments: int = 0
    source_tokens: list[int] = field(default_factory=list)
    source_documents: list[int] = field(default_factory=list)
    source_read: list[int] = field(default_factory=list)
    source_empty: list[int] = field(default_factory=list)

    @classmethod
    def from_json(cls, value: Any, sources: int, where: str) -> Totals:
        """What a checkpoint says of so many sources. Raises: CheckpointError."""
        totals: Totals = from_json(cls, value, where)
        of_sources = [counts for counts in vars(totals).values() if isinstance(counts, list)]
        numbers = [count for count in vars(totals).values() if isinstance(count, int)]
        wrong = any(len(counts) not in (0, sources) for counts in of_sources)
        if wrong or min(itertools.chain(numbers, *of_sources)) < 0 or totals.bad_steps > totals.step:
            raise CheckpointError(f"{where} are not those of a run with {sources} sources: use another checkpoint")
        return totals

    def count(self, of_windows: Sequence[float]) -> None:
        """Bring up to date what is counted as windows are opened: [sources x OF_WINDOWS]."""
        of_sources = {name: list(map(int, of_windows[i :: len(OF_WINDOWS)])) for i, name in enumerate(OF_WINDOWS)}
        for name, counts in of_sources.items():
            setattr(self, name, sum(counts))
        self.source_read, self.source_empty = of_sources["read"], of_sources["empty"]

    @property
    def unused(self) -> tuple[int, ...]:
        """How much was read that no row is made of, and is named."""
        return self.skipped, self.empty, self.stripes


def refuse_too_many_skipped(totals: Totals, most: float) -> None:
    """Raise ContentError where the share of bad documents is above `most`."""
    if totals.read >= JUDGED_DOCUMENTS and totals.skipped > most * totals.read:
        raise ContentError(
            f"{totals.skipped} of the first {totals.read} documents had to be skipped, more than --data.max-bad-fraction "
            f"{most}: OUT/quarantine.jsonl names them"
        )


def sources_without_text(totals: Totals, sources: Sequence[SourcePlan], *, at_end: bool) -> dict[str, str]:
    """Names of the sources most documents of which have no text, and what to say of them."""
    lines = {}
    for source, read, empty in zip(sources, totals.source_read, totals.source_empty, strict=True):
        if empty > read / 2 and (read >= JUDGED_DOCUMENTS or at_end):
            of = f" of source {source.name}" if source.name else ""
            fields = " or ".join(map(repr, source.read.fields))
            lines[source.name] = (
                f"{empty:,} of the first {read:,} documents{of} have no text: is it in {fields}? "
                "OUT/quarantine.jsonl says what they have; --data.min-characters 1 leaves them out"
            )
    return lines


def nothing_to_train_on(totals: Totals, reasons: Iterable[str]) -> str:
    """What is said of a corpus that gave no row; reasons: why, as far as they are known."""
    counts = {"without text": totals.empty, "that had to be skipped": totals.skipped, "left out as filtered": totals.filtered}
    met = " and ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    why = " / ".join(sorted(set(reasons))[:3])
    return f"holds no document to train on{f', but {met}' if met else ''}{f': {why}' if why else ''}"
