"""`stream-pretrain inspect`: show what a run would read, its rows and its cost. Nothing is trained."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import transformers

from stream_pretrain import exit_codes
from stream_pretrain.arguments import Invocation
from stream_pretrain.commands import Answer
from stream_pretrain.config import Config, run_directory, sources_of
from stream_pretrain.config.command_options import InspectConfig
from stream_pretrain.data.lanes.pinning import source_plans
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import first_cursors
from stream_pretrain.data.rows.train_rows import TrainRows
from stream_pretrain.errors import StreamPretrainError
from stream_pretrain.inspection.model_cost import ModelCost, model_cost
from stream_pretrain.inspection.next_start import next_start
from stream_pretrain.inspection.report import GPUS, plan_report, source_report, warnings_of
from stream_pretrain.inspection.report_lines import lines_of
from stream_pretrain.inspection.sample import sample_of
from stream_pretrain.inspection.shown_rows import LEGEND, first_rows, lines_of_rows
from stream_pretrain.inspection.unread_files import unread_files
from stream_pretrain.model.tokenizer import load_tokenizer
from stream_pretrain.training.evaluation.evaluation_documents import evaluation_corpora
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.start.advice import advice, advice_on_learning_rate
from stream_pretrain.training.start.corpus import pin_on_all_ranks, plan_on_all_ranks
from stream_pretrain.training.start.setup import restored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GROUPS = ("inspect", "data", "model", "objective", "train", "run")
ALSO = ("eval.every",)
NEEDED = ("data.dataset",)
EXAMPLE = """
stream-pretrain inspect --dataset 'data/*.jsonl.zst' --model bert-base-uncased \\
    --sequence-length 128 --max-steps 10000 --rows 2
"""


def run(given: Invocation, progress: Progress) -> Answer:
    """Look at the corpus, and plan a run."""
    config, options = given.config, given.own["inspect"]
    assert isinstance(options, InspectConfig)
    transformers.utils.logging.disable_progress_bar()
    has_tokenizer = config.model.path is not None or config.model.tokenizer is not None
    upcoming = next_start(config, given.command, progress) if given.dry_run else None
    saved = None
    if upcoming is not None:
        if upcoming.is_finished:
            return Answer([upcoming.in_words], {"start": upcoming.to_json()})
        config, saved = upcoming.config, upcoming.saved
    ranks, out = Ranks(), run_directory(config)
    pinned = pin_on_all_ranks(config, saved, ranks, progress)
    if upcoming is not None:
        evaluation_corpora(config, out)  # refuses what is not there
    tokenizer = load_tokenizer(config.model) if has_tokenizer else None
    plans, plan, framing, cursors = source_plans(config, pinned), None, None, None
    if tokenizer is not None:
        plan, _ = plan_on_all_ranks(config, tokenizer, pinned, saved, out, ranks, progress)
        encoder = plan.encoder
        framing = encoder.framing + len(encoder.document_end)
        cursors = first_cursors(pinned.lanes, len(pinned.sources)) if saved is None else restored(saved, plan)[0]
    model = None if plan is None or tokenizer is None else _model_cost(config, plan, tokenizer)
    sources = []
    for source, of_source, of_plan in zip(pinned.sources, sources_of(config.data), plans, strict=True):
        with progress.phase(f"reading {source.name or 'documents'}") as found:
            unknown = None if tokenizer is None else tokenizer.unk_token_id
            sample = sample_of(of_plan, None if plan is None else plan.encoder, unknown, options.max_read_bytes, found)
        unread = unread_files(of_source, pinned.shards)
        sources.append(source_report(source, of_plan, unread, sample, framing, model, config))
    planned = plan_report(config, pinned, plans, sources, model, resumes=saved is not None)
    rows, refused = list[str](), None
    if plan is not None and tokenizer is not None and cursors is not None and options.rows:
        step = 0 if upcoming is None else upcoming.start.step
        try:
            shown = first_rows(plan, step, cursors, options.rows)
        except StreamPretrainError as error:  # the report of the corpus is shown all the same
            shown, refused = None, error
        if shown is not None:
            rows = list(_lines_of(shown, tokenizer, causal=plan.objective.causal, as_json=given.as_json))
    warnings = [
        *warnings_of(config, sources, planned),
        *([] if refused is None else [f"a run is refused: {refused}"]),
        *advice_on_learning_rate(config.train),
        *([] if plan is None else advice(plan, ranks, config.data.workers)),
    ]
    start = None if upcoming is None else upcoming.to_json()
    report: dict[str, Any] = {"start": start, "sources": sources, "plan": planned, "rows": rows, "warnings": warnings}
    samples = [source["sample"] for source in sources]
    damaged = config.data.on_bad_shard == "error" and any(sample["damaged"] for sample in samples)
    empty = any(sample["has_no_text"] for sample in samples)
    code = exit_codes.FAILED if damaged or empty else exit_codes.FINISHED
    return Answer(list(lines_of(report)), report, code if refused is None else exit_codes.of_error(refused))


def _model_cost(config: Config, plan: StreamPlan, tokenizer: PreTrainedTokenizerFast) -> ModelCost | None:
    if config.model.path is None and config.model.config is None:
        return None
    return model_cost(config, plan.objective, plan.encoder, tokenizer, GPUS)


def _lines_of(rows: TrainRows, tokenizer: PreTrainedTokenizerFast, *, causal: bool, as_json: bool) -> Iterator[str]:
    coloured = not as_json and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    yield from () if as_json else (LEGEND,)
    yield from lines_of_rows(rows, tokenizer, causal=causal, coloured=coloured)
