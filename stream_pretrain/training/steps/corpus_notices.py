"""Notices and records about the corpus: skipped documents, sources that end, documents of bad steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.data.lanes.stream_state import LaneCursors
from stream_pretrain.training.files.out_files import BAD_STEPS, PASSED_OVER, QUARANTINE
from stream_pretrain.training.files.records import append
from stream_pretrain.training.start.setup import Setup
from stream_pretrain.training.state.totals import sources_without_text
from stream_pretrain.training.steps.loop import EndOfCorpus, PassedOver, StepResult
from stream_pretrain.training.steps.rows_of_rank import cursors_of_all_lanes
from stream_pretrain.units import counted


class CorpusNotices:
    """Remembers what was reported. Every method is called by all ranks; the first one reports and writes."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._unused, self._stripes, self._skipped = setup.totals.unused, setup.totals.stripes, setup.totals.skipped
        self._without_text = set[str]()
        self._present = self._left_over(setup.cursors)

    def of_step(self, result: StepResult | PassedOver | EndOfCorpus, *, last_saved: int) -> None:
        """Record what was skipped up to a step or the end of the corpus, and the documents of a bad step.

        A record has a step, and is dropped by a resume from before that step. Documents after the last row get the last
        step, or the next one where the checkpoint of the last step is written already: a resume from there skips them again,
        and records them again.
        """
        setup, totals = self._setup, self._setup.totals
        at_end = isinstance(result, EndOfCorpus)
        if totals.unused != self._unused:
            self._record_skipped(result.rows_seen, totals.step + (at_end and last_saved == totals.step))
            if totals.skipped >= max(1, 2 * self._skipped):
                setup.progress.warning(
                    f"step {totals.step:,}: {totals.skipped:,} of {totals.read:,} documents skipped so far: "
                    "OUT/quarantine.jsonl names them"
                )
                self._skipped = totals.skipped
            if totals.stripes > self._stripes:
                new = totals.stripes - self._stripes
                setup.progress.warning(
                    f"step {totals.step:,}: skipped the rest of {counted(new, 'damaged stripe')}: "
                    "OUT/quarantine.jsonl names them"
                )
                self._stripes = totals.stripes
            self._unused = totals.unused
        for source, line in sources_without_text(totals, setup.plan.sources, at_end=at_end).items():
            if source not in self._without_text:
                setup.progress.warning(line)
                self._without_text.add(source)
        if isinstance(result, StepResult) and not result.updated:
            setup.progress.warning(f"step {result.step}: loss or gradient not finite, no update")
            self._record_documents(BAD_STEPS, result)
        if isinstance(result, PassedOver):
            setup.progress.notice(f"step {result.step:,}: passed over, for --train.skip-steps")
            totals.passed_over += self._record_documents(PASSED_OVER, result)

    def of_metrics(self, metrics: Mapping[str, float]) -> None:
        """Report sources of a mixture that all lanes have read for their max_epochs."""
        setup, plan = self._setup, self._setup.plan
        ended = [
            source for source in self._present
            if source.max_epochs is not None and metrics.get(f"train/{source.name}/epoch_least", 0) >= source.max_epochs
        ]  # fmt: skip
        self._present = [source for source in self._present if source not in ended]
        continues = plan.parts_at(setup.totals.step, [source not in self._present for source in plan.sources])
        for source in ended if continues else []:  # else the run ends
            setup.progress.notice(
                f"step {setup.totals.step:,}: source {source.name} leaves the mixture, after max_epochs {source.max_epochs}; "
                "the others share its weight"
            )

    def of_end(self) -> None:
        """Report sources of a mixture that were not read to the end, for lack of a weight."""
        if left := self._left_over(cursors_of_all_lanes(self._setup.cursors, self._setup.ranks)):
            self._setup.progress.notice(
                f"step {self._setup.totals.step:,}: the run ends, as all sources with a weight are read; not read to the end, "
                f"without a weight: {', '.join(source.name for source in left)}"
            )

    def _left_over(self, cursors: Sequence[LaneCursors]) -> list[SourcePlan]:
        """The sources that some lane has not read for their max_epochs."""
        sources = enumerate(self._setup.plan.sources)
        return [source for number, source in sources if not all(source.ended(lane[number]) for lane in cursors)]

    def _record_skipped(self, rows: StepRows, step: int) -> None:
        plan = self._setup.plan
        gathered = [skip for skipped in self._setup.ranks.gather(rows.skipped) for skip in skipped]
        skips = sorted(gathered, key=lambda skip: (skip.epoch, skip.shard, skip.offset))
        if self._setup.ranks.is_first:
            append(
                self._setup.out.path / QUARANTINE,
                [
                    {
                        "step": step,
                        "epoch": skip.epoch,
                        **plan.named(skip.shard),
                        "offset": skip.offset,
                        "documents": skip.documents,
                        "why": skip.reason,
                    }
                    for skip in skips
                ],
            )

    def _record_documents(self, record: str, result: StepResult | PassedOver) -> int:
        """Record the documents of a step; returns how many there are."""
        plan = self._setup.plan
        gathered = self._setup.ranks.gather(result.rows_seen.origins.tolist())
        seen = sorted({(epoch, shard, offset) for origins in gathered for epoch, shard, offset in origins})
        if self._setup.ranks.is_first:
            documents = [{"epoch": epoch, **plan.named(shard), "offset": offset} for epoch, shard, offset in seen]
            append(self._setup.out.path / record, [{"step": result.step, "documents": documents}])
        return len(seen)
