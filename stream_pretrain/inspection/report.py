"""What `inspect` found, as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.config import Config
from stream_pretrain.data.corpus.file_formats import count_formats
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus, PinnedSource
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.lanes.pinning import requests_of_start, share_schedule
from stream_pretrain.data.lanes.reading_costs import memory_bound, reading_cost
from stream_pretrain.data.lanes.rows_of_run import rows_of_run
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.lanes.window_sizes import content_of
from stream_pretrain.inspection.extrapolation import Extrapolation
from stream_pretrain.inspection.model_cost import ModelCost
from stream_pretrain.inspection.packing_trial import packed
from stream_pretrain.inspection.sample import SourceSample
from stream_pretrain.inspection.unread_files import SHOWN, Unread
from stream_pretrain.training.state.checkpoint_size import most_kept
from stream_pretrain.urls import is_remote

PERCENTILES = (1, 25, 50, 75, 99)
MFU = 0.4
"""At which hours on GPUs are given."""
GPUS = ("A100", "H100", "H200", "B200")
TOKENS_BY_ORDER, ROWS_BY_ORDER = 0.001, 0.01
"""Relative differences that the order makes in which a run packs the documents of a window: it splits others. Of the rows of
a short window one is more than that."""
BYTES_OF_CURSOR = 200
"""Of one lane in one source, in stream.json."""
BYTES_OF_METRICS = 1500
"""A line of metrics.jsonl, a source."""
BYTES_OF_RECORDS = 16_384
"""run.json, config.yaml and the like."""


def source_report(
    source: PinnedSource,
    plan: SourcePlan,
    unread: Unread,
    sample: SourceSample,
    framing: int | None,
    model: ModelCost | None,
    config: Config,
) -> dict[str, Any]:
    """One source: its shards, and what its documents are like.

    framing: special tokens of a segment; None without a tokenizer.
    """
    shards, unit = plan.shards, "characters" if framing is None else "tokens"
    content = [content_of(shard) for shard in shards]
    total = None if None in content else sum(size or 0 for size in content)
    lengths = sample.lengths
    empty = [shard.name for shard in shards if shard.size == 0]
    found: dict[str, Any] = {
        "name": source.name,
        "revision": source.revision,
        "shards": len(shards),
        "empty_shards": {"count": len(empty), "first": empty[:SHOWN]},
        "not_read": asdict(unread),
        "formats": dict(count_formats(shard.name for shard in shards)),
        "compressions": {kind: sum(s.compression == kind for s in shards) for kind in sorted({s.compression for s in shards})},
        "stored_bytes": None if any(s.size is None for s in shards) else sum(s.size or 0 for s in shards),
        "content_bytes": total,
        "is_content_estimated": any(shard.content_bytes is None or shard.is_content_estimated for shard in shards),
        "sample": _sample_report(sample),
        "scripts": {name: count / max(1, sum(sample.scripts.values())) for name, count in sample.scripts.most_common()},
    }
    if len(lengths):
        found[f"{unit}_per_document"] = {
            "mean": float(lengths.mean()),
            **{f"p{rank}": float(value) for rank, value in zip(PERCENTILES, np.percentile(lengths, PERCENTILES), strict=True)},
            "max": int(lengths.max()),
        }
        found[f"histogram_of_{unit}"] = histogram(lengths)
    if framing is not None and lengths.sum():
        found |= _token_report(plan, sample, framing, model, config, total)
    return found


def _sample_report(sample: SourceSample) -> dict[str, Any]:
    """What was read of a source."""
    return {
        "shards": sample.shards,
        "is_whole": sample.is_complete and not sample.damaged,
        "is_sampled": not sample.is_complete,
        "has_no_text": sample.is_complete and not sample.documents,
        "content_bytes": sample.content_bytes,
        "read_in_the_middle": sample.enterable,
        "documents": sample.documents,
        "read": sample.read,
        "skipped": sample.skipped,
        "examples_skipped": sample.examples,
        "empty": sample.empty,
        "filtered": sample.filtered,
        "held_out": sample.held_out,
        "duplicates": sample.duplicates,
        "damaged": sample.damaged,
        "characters": sample.characters,
    }


def _token_report(
    plan: SourcePlan, sample: SourceSample, framing: int, model: ModelCost | None, config: Config, content_bytes: int | None
) -> dict[str, Any]:
    """How the documents fill rows, and how many documents, tokens and rows the source has. content_bytes: of the source."""
    lengths, length = sample.lengths, config.data.sequence_length
    tokens = int(lengths.sum())
    trials = {
        one: packed(sample.windows, one, framing, config.data.packing, plan.layout.lanes) for one in _lengths(length, framing)
    }
    found: dict[str, Any] = {
        "bytes_per_token": sample.text_bytes / tokens,
        "unknown_tokens": sample.unknown / tokens,
        "longer_than_a_row": float((lengths > length - framing).mean()),
        "packing": [asdict(trial) for trial, _ in trials.values()],
    }
    own, segments = trials.get(length, (None, lengths))
    if own is not None and model is not None:
        found["flops_per_row"] = model.flops_of(segments) / own.rows
    if own is not None and (sample.is_complete or (content_bytes is not None and sample.content_bytes)):
        of_all = Extrapolation(sample, content_bytes or 0)
        error = of_all.error(lambda window: float(window.sum()))
        # The windows that were not read may be of other lengths, which split documents and fill rows otherwise.
        split = of_all.unread * (own.tokens - tokens - framing * sample.documents) / own.tokens
        by_order = max(ROWS_BY_ORDER, len(sample.windows) / own.rows)
        found |= {
            "documents": sample.documents * of_all.scale,
            "documents_error": of_all.error(len),
            "tokens": own.tokens * of_all.scale,
            "tokens_error": None if error is None else error + split + TOKENS_BY_ORDER,
            "rows": own.rows * of_all.scale,
            "rows_error": None if error is None else error + split + of_all.unread * (1 - own.real) + by_order,
        }
    return found


def histogram(lengths: NDArray[np.int64]) -> dict[str, list[int]]:
    """Numbers of documents by powers of two. edges: the least length of each bar; counts: of the documents in it."""
    counts = np.bincount(np.frexp(lengths)[1])
    first = int(counts.nonzero()[0][0])
    return {"edges": [2**power // 2 for power in range(first, len(counts))], "counts": counts[first:].tolist()}


def _lengths(length: int, framing: int) -> Sequence[int]:
    return [one for one in (length // 2, length, 2 * length) if one > framing + 1]


def plan_report(
    config: Config,
    pinned: PinnedCorpus,
    plans: Sequence[SourcePlan],
    sources: Sequence[Mapping[str, Any]],
    model: ModelCost | None,
    *,
    resumes: bool = False,
) -> dict[str, Any]:
    """What a run with these options would take, on one rank. resumes: whether its next start goes on from a checkpoint."""
    layout, workers = plans[0].layout, max(1, config.data.workers)
    cost = reading_cost(plans, 1, config.data.workers)
    found: dict[str, Any] = {
        "lanes": pinned.lanes,
        "windows": [sum(plan.windows_of(unit) for unit in range(len(plan.units))) for plan in plans],
        "window_bytes": [plan.read.window_bytes for plan in plans],
        "fullest_lane": [plan.fullest_lane for plan in plans],
        "windows_are_estimated": any(_guesses_windows(shard) for shard in pinned.shards),
        "read_amplification": cost.amplification,
        "amplification_is_least": any(map(_shares_row_groups, plans)),
        "resume_bytes": cost.resume_bytes,
        "requests_of_start": requests_of_start(config, pinned, resumes=resumes),
        "requests_of_epoch": cost.requests,
        "requests_are_least": any(shard.format == "parquet" and is_remote(shard.url) for shard in pinned.shards),
        "reader_bytes_per_worker": memory_bound(plans, -(-pinned.lanes // workers)),
        "world_sizes_that_read_alike": [world for world in range(1, pinned.lanes + 1) if pinned.lanes % world == 0],
        "positions_per_step": layout.positions_of_step,
    }
    if any(not source.get("tokens") for source in sources):
        return found
    run = _run_report(config, plans, sources, model)
    found |= run
    if model is not None:
        checkpoint = model.checkpoint_bytes(pinned.encoded)
        found |= {
            "parameters": model.parameters,
            "checkpoint_bytes": checkpoint,
            "output_bytes_at_most": output_bytes(config, checkpoint, model.model_bytes, run.get("steps"), pinned),
        }
    return found


def _run_report(
    config: Config, plans: Sequence[SourcePlan], sources: Sequence[Mapping[str, Any]], model: ModelCost | None
) -> dict[str, Any]:
    """Steps, tokens, epochs and FLOPs of the run; empty where its steps are not known."""
    in_epoch = [float(source["rows"]) for source in sources]
    rows = rows_of_run(
        share_schedule(config.data),
        in_epoch,
        [plan.max_epochs for plan in plans],
        config.train.global_batch_size,
        config.train.max_steps,
    )
    if math.isinf(rows.steps):
        return {}
    epochs = [given / one for given, one in zip(rows.of_sources, in_epoch, strict=True)]
    found: dict[str, Any] = {
        "steps": rows.steps,
        "steps_error": _error_of_sum(sources, "rows") if rows.epochs_end_it else 0.0,
        "tokens_of_run": sum(one * source["tokens"] for one, source in zip(epochs, sources, strict=True)),
        "epochs": epochs,
    }
    if model is not None:
        flops = sum(of_source * source["flops_per_row"] for of_source, source in zip(rows.of_sources, sources, strict=True))
        found |= {"flops": flops, "gpu_hours": {gpu: flops / (model.peaks[gpu] * MFU) / 3600 for gpu in GPUS}, "mfu": MFU}
    return found


def _guesses_windows(shard: Shard) -> bool:
    """Whether only a reader finds out how many windows a shard has; those of Parquet end with row groups."""
    return shard.format in ("parquet", "examples") or shard.content_bytes is None or shard.is_content_estimated


def _shares_row_groups(plan: SourcePlan) -> bool:
    """Whether lanes are in the same row groups, which each of their processes reads from the start."""
    stripes = [stripe for lane in range(plan.layout.lanes) for stripe in plan.stripes(0, lane)]
    return any(stripe.count > 1 and plan.shards_of(stripe.unit)[0].format == "parquet" for stripe in stripes)


def output_bytes(config: Config, checkpoint: int, model: int, steps: float | None, pinned: PinnedCorpus) -> int:
    """The most that OUT has at a time, without what W&B, the evaluation documents and skipped documents take.

    steps: of the run; None where that is not known, and only the checkpoints that are kept count.
    """
    run, taken = config.run, 0 if steps is None else math.ceil(steps)
    saved = math.ceil(taken / run.save_every)
    of_lanes = BYTES_OF_CURSOR * pinned.lanes * len(pinned.sources)
    logged = (taken // run.log_every + 1) * BYTES_OF_METRICS * len(pinned.sources)
    # A new checkpoint is complete before an old one is deleted.
    return (most_kept(run, steps) + 1) * (checkpoint + of_lanes) + model + saved * of_lanes + logged + BYTES_OF_RECORDS


def _fill(source: Mapping[str, Any], length: int) -> float | None:
    return next((float(one["real"]) for one in source.get("packing", ()) if one["sequence_length"] == length), None)


def _error_of_sum(sources: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Relative, of independent figures; None where that of one is not known."""
    errors = [source[f"{name}_error"] for source in sources]
    if None in errors:
        return None
    squares = ((source[name] * error) ** 2 for source, error in zip(sources, errors, strict=True))
    return float(math.sqrt(sum(squares)) / sum(source[name] for source in sources))


def warnings_of(config: Config, sources: Sequence[Mapping[str, Any]], plan: Mapping[str, Any]) -> Iterator[str]:
    """What may be wrong, each with the option that mends it."""
    for source in sources:
        of, sample = f"{source['name']}: " if source["name"] else "", source["sample"]
        met = max(1, sample["read"])
        if sample["has_no_text"] and (left_out := sample["filtered"] + sample["held_out"]):
            yield f"{of}all of {left_out:,} documents with text are filtered or held out: a run is refused; loosen the filters"
        elif sample["has_no_text"]:
            yield f"{of}no document has text: a run is refused; give another --dataset, or check --data.text-field"
        for damaged in sample["damaged"]:
            skips = config.data.on_bad_shard == "skip"
            then = "a run skips the rest of it" if skips else "--data.on-bad-shard skip goes on without it"
            yield f"{of}a shard cannot be read: {damaged}; {then}"
        if sample["skipped"] / met > config.data.max_bad_fraction:
            yield (
                f"{of}{sample['skipped'] / met:.1%} of the documents are skipped ({sample['examples_skipped'][0]}): a run "
                f"ends at --data.max-bad-fraction {config.data.max_bad_fraction}"
            )
        if sample["empty"] / met > 0.5:
            yield f"{of}{sample['empty'] / met:.0%} of the documents have no text: check --data.text-field"
        if sample["duplicates"] / met > 0.01:
            repeated = f"{sample['duplicates'] / met:.1%} of the documents repeat another one"
            yield f"{of}{repeated}: --data.drop-duplicates leaves out those of a window"
        if source.get("unknown_tokens", 0.0) > 0.01:
            yield f"{of}{source['unknown_tokens']:.1%} of the tokens are unknown: give another --model.tokenizer"
        fill = _fill(source, config.data.sequence_length)
        if fill is not None and fill < 0.95:
            mend = "--data.packing best_fit" if config.data.packing != "best_fit" else "a shorter --sequence-length"
            yield f"{of}{1 - fill:.0%} of the positions are padding: {mend} fills more"
    for source, epochs in zip(sources, plan.get("epochs", ()), strict=False):
        if epochs > 4:
            of = f" of {source['name']}" if source["name"] else ""
            yield f"the documents{of} are read {epochs:.1f} times: fewer --max-steps, or more documents"
