"""What `inspect` found, as JSON and as lines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.config import Config
from stream_pretrain.data.corpus.file_formats import count_formats, show_counts
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus, PinnedSource
from stream_pretrain.data.lanes.mixture import Shares
from stream_pretrain.data.lanes.pinning import share_schedule
from stream_pretrain.data.lanes.reading_costs import memory_bound, reading_cost
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.lanes.window_sizes import content_of
from stream_pretrain.inspection.model_cost import ModelCost
from stream_pretrain.inspection.packing_trial import packed
from stream_pretrain.inspection.sample import Sample
from stream_pretrain.inspection.unread_files import SHOWN, Unread
from stream_pretrain.units import human_bytes, human_count, human_duration

PERCENTILES = (1, 25, 50, 75, 99)
MFU = 0.4
"""At which hours on GPUs are given."""
GPUS = ("A100", "H100", "H200", "B200")
WIDTH = 79
LABEL = 14
BAR = 30
"""Characters of the longest bar of a histogram."""
FEWEST_SHOWN = 0.005
"""Of the letters: rarer scripts are not shown."""


def source_report(
    source: PinnedSource, plan: SourcePlan, unread: Unread, sample: Sample, framing: int | None, config: Config
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
        "revision": source.corpus.revision,
        "shards": len(shards),
        "empty_shards": {"count": len(empty), "first": empty[:SHOWN]},
        "not_read": asdict(unread),
        "formats": dict(count_formats(shard.name for shard in shards)),
        "compressions": {kind: sum(s.compression == kind for s in shards) for kind in sorted({s.compression for s in shards})},
        "stored_bytes": None if any(s.size is None for s in shards) else sum(s.size or 0 for s in shards),
        "content_bytes": total,
        "is_content_estimated": any(shard.content_bytes is None or shard.is_content_estimated for shard in shards),
        "sample": {
            "shards": sample.shards,
            "is_whole": sample.whole,
            "content_bytes": sample.content_bytes,
            "read_in_the_middle": sample.in_the_middle,
            "documents": sample.documents,
            "read": sample.read,
            "skipped": sample.skipped,
            "examples_skipped": sample.examples,
            "empty": sample.empty,
            "filtered": sample.filtered,
            "duplicates": sample.duplicates,
            "damaged": sample.damaged,
            "characters": sample.characters,
        },
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
        tokens = int(lengths.sum())
        scale = None if total is None or not sample.content_bytes else 1.0 if sample.whole else total / sample.content_bytes
        framed = tokens + framing * sample.documents
        found |= {
            "bytes_per_token": sample.text_bytes / tokens,
            "unknown_tokens": sample.unknown / tokens,
            "tokens": None if scale is None else framed * scale,
            "documents": None if scale is None else sample.documents * scale,
            "longer_than_a_row": float((lengths > config.data.sequence_length - framing).mean()),
            "packing": [
                vars(packed(sample.windows, length, framing, config.data.packing, plan.layout.lanes))
                for length in _lengths(config.data.sequence_length, framing)
            ],
        }
    return found


def histogram(lengths: NDArray[np.int64]) -> dict[str, list[int]]:
    """Numbers of documents by powers of two. edges: the least length of each bar; counts: of the documents in it."""
    counts = np.bincount(np.frexp(lengths)[1])
    first = int(counts.nonzero()[0][0])
    return {"edges": [2**power // 2 for power in range(first, len(counts))], "counts": counts[first:].tolist()}


def _bars(shown: Mapping[str, Sequence[int]]) -> Iterator[str]:
    most, every = max(shown["counts"]), sum(shown["counts"])
    for edge, count in zip(shown["edges"], shown["counts"], strict=True):
        bar = "█" * round(BAR * count / most) or ("▏" if count else "")
        yield f"{edge:>10,}+ {bar:{BAR}}{count:>9,} {count / every:6.1%}"


def _lengths(length: int, framing: int) -> Sequence[int]:
    return [one for one in (length // 2, length, 2 * length) if one > framing + 1]


def plan_report(
    config: Config,
    pinned: PinnedCorpus,
    plans: Sequence[SourcePlan],
    sources: Sequence[Mapping[str, Any]],
    model: ModelCost | None,
) -> dict[str, Any]:
    """What a run with these options would take, on one rank."""
    layout, workers = plans[0].layout, max(1, config.data.workers)
    cost = reading_cost(plans, 1, config.data.workers)
    positions = layout.global_batch_size * layout.sequence_length
    found: dict[str, Any] = {
        "lanes": pinned.lanes,
        "windows": [sum(plan.windows_of(unit) for unit in range(len(plan.units))) for plan in plans],
        "window_bytes": [plan.read.window_bytes for plan in plans],
        "fullest_lane": [plan.fullest_lane for plan in plans],
        "read_amplification": cost.amplification,
        "resume_bytes": cost.resume_bytes,
        "requests": [
            sum(math.ceil((plan.size_of(unit) or 0) / plan.read.transport.block_bytes) for unit in range(len(plan.units)))
            for plan in plans
        ],
        "reader_bytes_per_worker": memory_bound(plans, -(-pinned.lanes // workers)),
        "world_sizes_that_read_alike": [world for world in range(1, pinned.lanes + 1) if pinned.lanes % world == 0],
        "positions_per_step": positions,
    }
    fills = [fill for source in sources if (fill := _fill(source, layout.sequence_length)) is not None]
    tokens = [float(source["tokens"]) for source in sources if source.get("tokens")]
    if len(tokens) < len(sources) or len(fills) < len(sources):
        return found
    steps = _steps(config, tokens, fills, positions)
    if steps is not None:
        shares = _mean_shares(share_schedule(config.data), steps)
        read = [steps * positions * share * fill for share, fill in zip(shares, fills, strict=True)]
        found |= {
            "steps": steps,
            "tokens_of_run": sum(read),
            "epochs": [of_source / one for of_source, one in zip(read, tokens, strict=True)],
        }
        if model is not None:
            flops = steps * model.flops_per_step
            found |= {
                "flops": flops,
                "gpu_hours": {gpu: flops / (model.peaks[gpu] * MFU) / 3600 for gpu in GPUS},
                "mfu": MFU,
            }
    if model is not None:
        kept = config.run.keep_last + 1
        found |= {
            "parameters": model.parameters,
            "checkpoint_bytes": model.checkpoint_bytes,
            "output_bytes_at_most": model.checkpoint_bytes * kept + model.model_bytes,
        }
    return found


def _mean_shares(schedule: Sequence[Shares], steps: float) -> list[float]:
    """The share of the rows that each source has over so many steps."""
    begins = [min(shares.from_step, steps) for shares in schedule]
    spans = np.diff([*begins, steps]) / steps
    parts = np.array([shares.parts for shares in schedule], dtype=np.float64)
    return (spans @ (parts / parts.sum(axis=1, keepdims=True))).tolist()  # type: ignore[no-any-return]


def _fill(source: Mapping[str, Any], length: int) -> float | None:
    return next((float(one["real"]) for one in source.get("packing", ()) if one["sequence_length"] == length), None)


def _steps(config: Config, tokens: Sequence[float], fills: Sequence[float], positions: int) -> float | None:
    if config.train.max_epochs is None:
        return config.train.max_steps
    limits = [source.max_epochs or config.train.max_epochs for source in config.data.sources] or [config.train.max_epochs]
    of_epochs = sum(one * epochs / fill for one, epochs, fill in zip(tokens, limits, fills, strict=True)) / positions
    return of_epochs if config.train.max_steps is None else min(of_epochs, config.train.max_steps)


def warnings_of(config: Config, sources: Sequence[Mapping[str, Any]], plan: Mapping[str, Any]) -> Iterator[str]:
    """What may be wrong, each with the option that mends it."""
    for source in sources:
        of, sample = f"{source['name']}: " if source["name"] else "", source["sample"]
        met = max(1, sample["read"])
        if sample["is_whole"] and not sample["documents"]:
            yield f"{of}no document has text: a run is refused; give another --dataset, or check --data.text-field"
        for damaged in sample["damaged"]:
            yield f"{of}a shard cannot be read ({damaged}): replace it, or give --data.on-bad-shard skip"
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


def lines_of(report: Mapping[str, Any]) -> Iterator[str]:
    """For people, in a terminal of 80 columns; rows of tokens are as long as they are."""
    for source in report["sources"]:
        title, paragraphs = _of_source(source)
        yield from (*_wrapped(title, 2), *(line for name, text in paragraphs for line in _paragraph(name, text)), "")
    yield "plan, on one rank"
    if report["start"]:
        yield from _paragraph("start", report["start"]["said"])
    for name, text in _of_plan(report["plan"], report["sources"]):
        yield from _paragraph(name, text)
    if report["rows"]:
        yield from ("", *report["rows"])
    for line in report["warnings"]:
        yield from ("", *_wrapped(f"warning: {line}", 2))


def _paragraph(name: str, text: str) -> list[str]:
    return _wrapped(f"  {name:{LABEL}}{text}", LABEL + 2)


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _of_source(source: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    sample, about = source["sample"], "" if source["sample"]["is_whole"] else "~"
    stored = "unknown size" if source["stored_bytes"] is None else human_bytes(source["stored_bytes"])
    guessed = "~" if source["is_content_estimated"] else ""
    content = "" if source["content_bytes"] is None else f", {guessed}{human_bytes(source['content_bytes'])} of content"
    at = f" at {source['revision']}" if source["revision"] else ""
    title = (
        f"{source['name'] or 'corpus'}: {source['shards']:,} shards{at} ({show_counts(source['formats'])}), {stored}{content}"
    )
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in source["compressions"].items())
    part = "all of it" if sample["is_whole"] else f"the beginnings of {sample['shards']} shards; ~ follows from these"
    left_out = [f"{sample[kind]:,} {kind}" for kind in ("skipped", "empty", "filtered", "duplicates") if sample[kind]]
    found = [
        ("compression", f"{kinds}; {sample['read_in_the_middle']} of {sample['shards']} can be entered in their middle"),
        *_said_of_files("empty shards", source["empty_shards"], "0 bytes"),
        *_said_of_files("not read", source["not_read"], _kinds_in_words(source["not_read"])),
        ("read", f"{human_bytes(sample['content_bytes'])}: {part}"),
        ("documents", "; ".join([f"{sample['documents']:,} with text", *left_out])),
        *(("", f"skipped: {example}") for example in sample["examples_skipped"]),
    ]
    for unit in ("tokens", "characters"):
        if spread := source.get(f"{unit}_per_document"):
            ranks = ", ".join(f"{rank} {human_count(spread[rank])}" for rank in spread if rank != "mean")
            found.append((unit, f"{human_count(spread['mean'])} a document ({ranks})"))
            found += [("", bar) for bar in _bars(source[f"histogram_of_{unit}"])]
    if source.get("tokens"):
        found.append(
            (
                "in all",
                f"{about}{human_count(source['tokens'])} tokens in {about}{human_count(source['documents'])} documents; "
                f"{source['bytes_per_token']:.2f} bytes a token, {source['unknown_tokens']:.2%} unknown; "
                f"{source['longer_than_a_row']:.0%} longer than a row",
            )
        )
    for one in source.get("packing", ()):
        filled = f"{one['real']:.2%} real tokens, {one['segments_per_row']:.1f} documents or parts a row"
        found.append((f"rows of {one['sequence_length']}", f"{filled}, {one['segments_per_document']:.2f} parts a document"))
    if scripts := [f"{name} {share:.1%}" for name, share in source["scripts"].items() if share >= FEWEST_SHOWN]:
        found.append(("letters", ", ".join(scripts)))
    return title, found


def _kinds_in_words(unread: Mapping[str, Any]) -> str:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in unread["kinds"].items())
    return kinds if unread["is_all"] else f"{kinds} and more"


def _said_of_files(label: str, files: Mapping[str, Any], what: str) -> Iterator[tuple[str, str]]:
    if files["count"]:
        more = files["count"] - len(files["first"])
        yield label, f"{what}: {', '.join(files['first'])}{f' and {more:,} more' if more else ''}"


def _of_plan(plan: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    windows = f"{sum(plan['windows']):,} windows of up to {human_bytes(max(plan['window_bytes']))}"
    yield "lanes", f"{plan['lanes']}, {windows}; the fullest lane has {max(plan['fullest_lane']):.2f} times the mean"
    yield "ranks", f"any number; on {', '.join(map(str, plan['world_sizes_that_read_alike']))} each reads as many lanes"
    times = f"an epoch reads the corpus {plan['read_amplification']:.2f} times, in about {sum(plan['requests']):,} requests"
    again = f"a resume reads at most {human_bytes(plan['resume_bytes'])} again"
    yield "reading", f"{times}; {again}; readers hold at most {human_bytes(plan['reader_bytes_per_worker'])} a worker"
    if "steps" in plan:
        epochs = [f"{source['name']} {one:.2f}".strip() for source, one in zip(sources, plan["epochs"], strict=True)]
        said = f"~{round(plan['steps']):,} steps, ~{human_count(plan['tokens_of_run'])} tokens"
        yield "run", f"{said}; epochs: {', '.join(epochs)}"
    if "gpu_hours" in plan:
        hours = ", ".join(f"{gpu} {human_duration(3600 * one)}" for gpu, one in plan["gpu_hours"].items())
        yield "compute", f"~{plan['flops']:.2g} FLOPs; at an MFU of {plan['mfu']:.0%} on one GPU: {hours}"
    if "parameters" in plan:
        checkpoint = f"a checkpoint {human_bytes(plan['checkpoint_bytes'])}"
        most = human_bytes(plan["output_bytes_at_most"])
        yield "output", f"{human_count(plan['parameters'])} parameters; {checkpoint}, OUT at most {most}"
