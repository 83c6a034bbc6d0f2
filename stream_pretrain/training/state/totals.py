"""Counters of a run, and what its unused documents say about the corpus."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.errors import CheckpointError, ContentError, TrainingError

JUDGED_DOCUMENTS = 1_000
"""Documents after which the shares of bad and empty ones are judged."""
OF_WINDOWS = ("read", "skipped", "empty", "filtered", "stripes")
"""Counters of cursors and `Totals` that are raised when a window is opened."""


@dataclass
class Totals:
    """Counters of the run, over all ranks."""

    step: int = 0
    tokens: int = 0
    documents: int = 0
    read: int = 0
    """Documents of the windows that were opened; includes the next three."""
    skipped: int = 0
    empty: int = 0
    filtered: int = 0
    stripes: int = 0
    """Stripes whose remainder was skipped."""
    bad_steps: int = 0
    """Steps in a row without an update."""
    passed_over: int = 0
    """Documents of the steps of --train.skip-steps, counted in each of these steps; passed_over.jsonl names them."""
    progress: float = 0.0
    """Share of the rows before the last step, where epochs end the run; never less than it was."""
    segments: int = 0
    source_tokens: list[int] = field(default_factory=list)
    source_documents: list[int] = field(default_factory=list)
    source_read: list[int] = field(default_factory=list)
    source_empty: list[int] = field(default_factory=list)

    def refuse_impossible(self, sources: int, where: Path) -> None:
        """Raises: CheckpointError for what no run with this number of sources counts. where: the file that has them."""
        of_sources = [counts for counts in vars(self).values() if isinstance(counts, list)]
        numbers = [count for count in vars(self).values() if isinstance(count, int)]
        if (
            any(len(counts) not in (0, sources) for counts in of_sources)
            or min(itertools.chain(numbers, *of_sources)) < 0
            or self.bad_steps > self.step
            or not 0 <= self.progress <= 1
        ):
            raise CheckpointError(f"{where}: totals are not those of a run with {sources} sources: use another checkpoint")

    def count_windows(self, of_windows: Sequence[float]) -> None:
        """Set the counters of opened windows: [sources x OF_WINDOWS]."""
        of_sources = {name: list(map(int, of_windows[i :: len(OF_WINDOWS)])) for i, name in enumerate(OF_WINDOWS)}
        for name, counts in of_sources.items():
            setattr(self, name, sum(counts))
        self.source_read, self.source_empty = of_sources["read"], of_sources["empty"]

    def count_documents(self, of_sources: Sequence[float]) -> None:
        """Set the documents that have begun in a row: [sources]."""
        self.source_documents = list(map(int, of_sources))
        self.documents = sum(self.source_documents)

    def count_tokens(self, of_sources: Sequence[float]) -> None:
        """Add the tokens of a trained step: [sources]."""
        before = self.source_tokens or [0] * len(of_sources)
        self.source_tokens = [old + int(new) for old, new in zip(before, of_sources, strict=True)]
        self.tokens += int(sum(of_sources))

    @property
    def unused(self) -> tuple[int, ...]:
        """Counters of what quarantine.jsonl names."""
        return self.skipped, self.empty, self.stripes


def refuse_too_many_bad_steps(totals: Totals, most: int) -> None:
    """Raises: TrainingError after more steps in a row without an update than `most`."""
    if totals.bad_steps > most:
        raise TrainingError(
            f"loss or gradient was not finite in {totals.bad_steps} steps in a row, up to step {totals.step}: "
            "lower --train.learning-rate, or look at the documents of these steps in OUT/bad_steps.jsonl"
        )


def refuse_too_many_skipped(totals: Totals, most: float) -> None:
    """Raises: ContentError where the share of bad documents is above `most`."""
    if totals.read >= JUDGED_DOCUMENTS and totals.skipped > most * totals.read:
        raise ContentError(
            f"{totals.skipped} of the first {totals.read} documents were skipped, more than --data.max-bad-fraction "
            f"{most}: OUT/quarantine.jsonl names them"
        )


def sources_without_text(totals: Totals, sources: Sequence[SourcePlan], *, at_end: bool) -> dict[str, str]:
    """A warning by name for each source most of whose documents have no text."""
    lines = {}
    for source, read, empty in zip(sources, totals.source_read, totals.source_empty, strict=True):
        if empty > read / 2 and (read >= JUDGED_DOCUMENTS or at_end):
            of = f" of source {source.name}" if source.name else ""
            fields = " or ".join(map(repr, source.read.fields))
            lines[source.name] = (
                f"{empty:,} of the first {read:,} documents{of} have no text: is it in {fields}? "
                "OUT/quarantine.jsonl says what they have; --data.min-characters 1 filters them out"
            )
    return lines


def nothing_to_train_on(totals: Totals, reasons: Iterable[str]) -> str:
    """The error of a corpus without a row. reasons: those of the last skips."""
    counts = {"without text": totals.empty, "skipped": totals.skipped, "filtered": totals.filtered}
    met = " and ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    why = " / ".join(sorted(set(reasons))[:3])
    return f"no document to train on{f', but {met}' if met else ''}{f': {why}' if why else ''}"
