"""`stream-pretrain inspect`: what a run would read, what its rows look like, what it would take. Nothing is trained."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import transformers

from stream_pretrain import exit_codes
from stream_pretrain.arguments import Invocation
from stream_pretrain.commands import Answer
from stream_pretrain.config import Config
from stream_pretrain.config.command_options import InspectConfig
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.lanes.pinning import pin, source_plans
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.rows.engine_choice import choose
from stream_pretrain.errors import ConfigError
from stream_pretrain.inspection.model_cost import ModelCost, model_cost
from stream_pretrain.inspection.report import GPUS, lines_of, plan_report, source_report, warnings_of
from stream_pretrain.inspection.sample import sample_of
from stream_pretrain.inspection.shown_rows import LEGEND, first_rows, lines_of_rows
from stream_pretrain.model.tokenizer import load_tokenizer
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.start.advice import advice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GROUPS = ("inspect", "data", "model", "objective", "train", "run")
NEEDED = ("data.dataset",)
EXAMPLE = """
stream-pretrain inspect --dataset 'data/*.jsonl.zst' --model bert-base-uncased \\
    --sequence-length 128 --max-steps 10000 --rows 2
"""


def run(given: Invocation, command: Sequence[str], progress: Progress) -> Answer:  # noqa: ARG001
    """Look at the corpus, and plan a run."""
    config, options = given.config, given.own["inspect"]
    assert isinstance(options, InspectConfig)
    transformers.utils.logging.disable_progress_bar()
    has_tokenizer = config.model.path is not None or config.model.tokenizer is not None
    if options.rows and not has_tokenizer:
        raise ConfigError("--inspect.rows needs a tokenizer: give --model or --model.tokenizer")
    with progress.phase("resolving the corpus") as found:
        pinned = pin(config, world=1)
        found(f"{len(pinned.shards):,} shards, {pinned.lanes} lanes")
    tokenizer = load_tokenizer(config.model) if has_tokenizer else None
    plans, plan, framing = source_plans(config, pinned), None, None
    if tokenizer is not None:
        plan = stream_plan(config, tokenizer, pinned)
        engine = choose(config.data.engine, plan.encoder)
        progress.notice(engine.in_words())
        encoder = dataclasses.replace(plan.encoder, engine=engine.name)
        plan = dataclasses.replace(plan, encoder=encoder)
        framing = len(encoder.prefix) + len(encoder.suffix) + len(encoder.document_end)
    sources = []
    for source, of_plan in zip(pinned.sources, plans, strict=True):
        with progress.phase(f"reading {source.name or 'documents'}") as found:
            sample = sample_of(
                of_plan.shards,
                of_plan.read,
                None if plan is None else plan.encoder,
                None if tokenizer is None else tokenizer.unk_token_id,
                options.max_read_bytes,
                found,
            )
        sources.append(source_report(source.name, of_plan, source.corpus.revision, sample, framing, config))
    model = None if plan is None else _model_cost(config, plan, sources)
    planned = plan_report(config, pinned, plans, sources, model)
    rows = [] if plan is None else list(_rows(plan, tokenizer, options.rows, as_json=given.as_json))
    warnings = [
        *warnings_of(config, sources, planned),
        *([] if plan is None else advice(plan, Ranks(), config.data.workers)),
    ]
    report: dict[str, Any] = {"sources": sources, "plan": planned, "rows": rows, "warnings": warnings}
    samples = [source["sample"] for source in sources]
    damaged = config.data.on_bad_shard == "error" and any(sample["damaged"] for sample in samples)
    empty = any(sample["is_whole"] and not sample["documents"] for sample in samples)
    return Answer(list(lines_of(report)), report, exit_codes.FAILED if damaged or empty else exit_codes.FINISHED)


def _model_cost(config: Config, plan: StreamPlan, sources: Sequence[dict[str, Any]]) -> ModelCost | None:
    if config.model.path is None and config.model.config is None:
        return None
    means = [source["tokens_per_document"]["mean"] for source in sources if "tokens_per_document" in source]
    return model_cost(config, plan.objective, max(means, default=config.data.sequence_length), GPUS)


def _rows(plan: StreamPlan, tokenizer: PreTrainedTokenizerFast | None, count: int, *, as_json: bool) -> Iterator[str]:
    if not count or tokenizer is None:
        return
    coloured = not as_json and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    yield from () if as_json else (LEGEND,)
    yield from lines_of_rows(first_rows(plan, count), tokenizer, causal=plan.objective.causal, coloured=coloured)
