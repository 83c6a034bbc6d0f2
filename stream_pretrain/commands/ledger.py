"""`stream-pretrain ledger`: show which documents the steps of a run trained on, read again from its cursors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from stream_pretrain.arguments import Invocation
from stream_pretrain.commands import Answer
from stream_pretrain.config import COMMAND_GROUPS
from stream_pretrain.errors import ConfigError
from stream_pretrain.redaction import printable
from stream_pretrain.replay.documents import document_name, place_of, texts_of, why_not_trained_on
from stream_pretrain.replay.ledger import replayed, write_parquet
from stream_pretrain.replay.recorded_run import RecordedRun, recorded_run, steps_in
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.state.passed_steps import is_passed, steps_in_words
from stream_pretrain.units import counted

GROUPS = ("ledger", "data")
ALSO = ("model.tokenizer", "model.trust-remote-code")
NEEDED = ()
OPERANDS = "OUT"
EXAMPLE = """
stream-pretrain ledger runs/first --step 1200 --text
"""

SHOWN_CHARACTERS = 200
"""Of a text, on the terminal; --json has the full text."""


def run(given: Invocation, progress: Progress) -> Answer:
    """Answer one question about the run in OUT."""
    options = given.own["ledger"]
    assert isinstance(options, COMMAND_GROUPS["ledger"])
    transformers.utils.logging.disable_progress_bar()
    found = recorded_run(Path(given.operands[0]), given.config, [name for name in given.typed if name.startswith("data.")])
    progress.notice(f"the run {found.state}")
    if options.step is not None:
        return _step(found, options.step, given.config.data.workers, progress, with_text=options.text)
    if options.document is not None:
        return _document(found, options.document, steps_in(found, options.steps), given.config.data.workers, progress)
    return _export(found, Path(options.export), steps_in(found, options.steps), given.config.data.workers, progress)


def _step(found: RecordedRun, step: int, workers: int, progress: Progress, *, with_text: bool) -> Answer:
    steps = steps_in(found, str(step), "--ledger.step")
    _say_cost(found, steps, progress)
    with progress.phase("reading again") as report:
        [(_, segments)] = replayed(found, steps, workers, report)
    places: dict[tuple[int, int, int], list[int]] = {}
    for segment in segments:
        places.setdefault((segment.epoch, segment.shard, segment.offset), []).append(segment.row)
    texts: dict[tuple[int, int], str] = {}
    if with_text:
        with progress.phase("reading the texts") as report:
            texts = texts_of(found.plan, {(shard, offset) for _, shard, offset in places}, report)
    documents: list[dict[str, Any]] = [
        {
            "document": document_name(found.plan, shard, offset),
            **found.plan.named(shard),
            "offset": offset,
            "epoch": epoch,
            "rows": sorted(set(rows)),
        }
        | ({"text": texts[shard, offset]} if with_text else {})
        for (epoch, shard, offset), rows in sorted(places.items())
    ]
    passes_over = is_passed(found.passed, step)
    passed = ", passed over for --train.skip-steps: the run did not train on them" if passes_over else ""
    in_rows = counted(len({segment.row for segment in segments}), "row")
    lines = [f"step {step:,}: {counted(len(documents), 'document')} in {in_rows}{passed}"]
    for one in documents:
        rows = ", ".join(map(str, one["rows"]))
        lines.append(f"  {one['document']}  epoch {one['epoch']}  rows {rows}")
        if with_text:
            lines.append(f"    {printable(one['text'][:SHOWN_CHARACTERS])}")
    return Answer(lines, {"step": step, "documents": documents} | ({"passed_over": True} if passes_over else {}))


def _document(found: RecordedRun, document: str, steps: range, workers: int, progress: Progress) -> Answer:
    shard, offset = place_of(found.plan, document)
    _say_cost(found, steps, progress)
    seen: list[dict[str, int]] = []  # passed_over: read, and not trained on
    with progress.phase("reading again") as report:
        for step, segments in replayed(found, steps, workers, report):
            of_it = [one for one in segments if (one.shard, one.offset) == (shard, offset)]
            for epoch in sorted({one.epoch for one in of_it}):
                tokens = sum(one.tokens for one in of_it if one.epoch == epoch)
                passed = {"passed_over": True} if is_passed(found.passed, step) else {}
                seen.append({"step": step, "epoch": epoch, "tokens": tokens, **passed})
    between = f"steps {steps.start:,} to {steps.stop - 1:,}"
    lines = [f"{document}: {'not in' if not seen else f'in {len(seen)} of'} {between}"]
    for one in seen:
        passed_over = ", passed over" if "passed_over" in one else ""
        lines.append(f"  step {one['step']:,}  epoch {one['epoch']}  {one['tokens']:,} tokens{passed_over}")
    record: dict[str, Any] = {"document": document, "steps": [steps.start, steps.stop - 1], "seen": seen}
    if not seen:
        with progress.phase("looking for it in its shard") as report:
            why = why_not_trained_on(found.plan, shard, offset, report)
        lines.append(f"  {why or 'read in other steps, or not yet'}")
        record["why_not"] = why
    return Answer(lines, record)


def _export(found: RecordedRun, path: Path, steps: range, workers: int, progress: Progress) -> Answer:
    if path.exists():
        raise ConfigError(f"--ledger.export {path} is there already: remove it, or give another name")
    _say_cost(found, steps, progress)
    try:
        with progress.phase("reading again") as report:
            trained = (one for one in replayed(found, steps, workers, report) if not is_passed(found.passed, one[0]))
            written = write_parquet(path, found.plan, trained)
    except OSError as error:
        raise ConfigError(f"--ledger.export {path}: {error.strerror}") from error
    without = f", without {', '.join(steps_in_words(found.passed))}, which were passed over" if found.passed else ""
    line = f"{path}: {written:,} records of steps {steps.start:,} to {steps.stop - 1:,}{without}"
    return Answer([line], {"file": str(path), "records": written, "steps": [steps.start, steps.stop - 1]})


def _say_cost(found: RecordedRun, steps: range, progress: Progress) -> None:
    begin, _, faults = found.cursors_before(steps.start - 1)
    for fault in faults:
        progress.warning(f"{fault}; reading from earlier cursors")
    count = steps.stop - 1 - begin
    rows = count * found.plan.layout.global_batch_size
    progress.notice(f"reads {counted(count, 'step')} again, {counted(rows, 'row')}, from the cursors of step {begin:,}")
