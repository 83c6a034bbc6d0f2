"""What `inspect` found, as people read it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stream_pretrain.data.corpus.file_formats import show_counts
from stream_pretrain.units import counted, human_bytes, human_count, human_duration

WIDTH = 79
LABEL = 14
BAR = 30
"""Characters of the longest bar of a histogram."""
FEWEST_SHOWN = 0.005
"""Of the letters: rarer scripts are not shown."""


def lines_of(report: Mapping[str, Any]) -> Iterator[str]:
    """For people, in a terminal of 80 columns; rows of tokens are as long as they are."""
    for source in report["sources"]:
        title, paragraphs = _of_source(source)
        yield from (*_wrapped(title, 2), *(line for name, text in paragraphs for line in _paragraph(name, text)), "")
    yield "plan, on one rank"
    if report["start"]:
        yield from _paragraph("start", report["start"]["description"])
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
    sample = source["sample"]
    stored = "unknown size" if source["stored_bytes"] is None else human_bytes(source["stored_bytes"])
    guessed = "~" if source["is_content_estimated"] else ""
    content = "" if source["content_bytes"] is None else f", {guessed}{human_bytes(source['content_bytes'])} of content"
    at = f" at {source['revision']}" if source["revision"] else ""
    shards = counted(source["shards"], "shard")
    title = f"{source['name'] or 'corpus'}: {shards}{at} ({show_counts(source['formats'])}), {stored}{content}"
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in source["compressions"].items())
    part = f"the beginnings of {counted(sample['shards'], 'shard')}; ~ follows from these"
    if sample["is_whole"] or not sample["is_sampled"]:
        part = "all of it" if sample["is_whole"] else "all of it but what lies behind damage"
    unused = ("skipped", "empty", "filtered", "held_out", "duplicates")
    left_out = [f"{sample[kind]:,} {kind.replace('_', ' ')}" for kind in unused if sample[kind]]
    found = [
        ("compression", f"{kinds}; {sample['read_in_the_middle']} of {sample['shards']} can be entered in their middle"),
        *_files("empty shards", source["empty_shards"], "0 bytes"),
        *_files("not read", source["not_read"], _kinds_in_words(source["not_read"])),
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
                f"{_with_error(source, 'tokens')} tokens in {_with_error(source, 'documents')} documents; "
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


def _with_error(of: Mapping[str, Any], name: str, show: Callable[[float], str] = human_count) -> str:
    """A figure that follows from a sample, with its error where that is known."""
    error = of[f"{name}_error"]
    return f"{'' if error == 0 else '~'}{show(of[name])}{f' ± {error:.1%}' if error else ''}"


def _kinds_in_words(unread: Mapping[str, Any]) -> str:
    several = {kind: kind.replace("folder", "folders", 1) for kind, count in unread["kinds"].items() if count > 1}
    kinds = ", ".join(f"{count:,} {several.get(kind, kind)}" for kind, count in unread["kinds"].items())
    return kinds if unread["is_all"] else f"{kinds} and more"


def _files(label: str, files: Mapping[str, Any], what: str) -> Iterator[tuple[str, str]]:
    if files["count"]:
        more = files["count"] - len(files["first"])
        yield label, f"{what}: {', '.join(files['first'])}{f' and {more:,} more' if more else ''}"


def _of_plan(plan: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    about = "~" if plan["windows_are_estimated"] else ""
    windows = f"{about}{counted(sum(plan['windows']), 'window')} of up to {human_bytes(max(plan['window_bytes']))}"
    yield "lanes", f"{plan['lanes']}, {windows}; the fullest lane has {about}{max(plan['fullest_lane']):.2f} times the mean"
    yield "ranks", f"any number; on {', '.join(map(str, plan['world_sizes_that_read_alike']))} each reads as many lanes"
    least = "at least " if plan["amplification_is_least"] else ""
    again = f"a resume reads again what was read ahead, and at most {human_bytes(plan['resume_bytes'])} before it"
    if any("Parquet" in source["formats"] for source in sources):
        again += ", and row groups from their start"
    held = f"readers hold at most {human_bytes(plan['reader_bytes_per_worker'])} a worker, beside Python and the tokenizer"
    yield "reading", f"an epoch reads the corpus {least}{plan['read_amplification']:.2f} times; {again}; {held}"
    if plan["requests_of_epoch"]:
        about = "at least" if plan["requests_are_least"] else "about"
        at_start = f"{plan['requests_of_start']:,} at the start, about single files"
        yield "requests", f"{at_start}; {about} {plan['requests_of_epoch']:,} in an epoch"
    if "steps" in plan:
        epochs = [f"{source['name']} {one:.2f}".strip() for source, one in zip(sources, plan["epochs"], strict=True)]
        steps = _with_error(plan, "steps", lambda number: f"{math.ceil(number):,}")
        yield "run", f"{steps} steps, ~{human_count(plan['tokens_of_run'])} tokens; epochs: {', '.join(epochs)}"
    if "gpu_hours" in plan:
        hours = ", ".join(f"{gpu} {human_duration(3600 * one)}" for gpu, one in plan["gpu_hours"].items())
        yield "compute", f"~{plan['flops']:.1e} FLOPs; at an MFU of {plan['mfu']:.0%} on one GPU: {hours}"
    if "parameters" in plan:
        checkpoint = f"a checkpoint {human_bytes(plan['checkpoint_bytes'])}"
        most = human_bytes(plan["output_bytes_at_most"])
        beside = "beside the files of W&B, evaluation documents and lists of skipped ones"
        yield "output", f"{human_count(plan['parameters'])} parameters; {checkpoint}, OUT at most {most} {beside}"


def _bars(shown: Mapping[str, Sequence[int]]) -> Iterator[str]:
    most, every = max(shown["counts"]), sum(shown["counts"])
    for edge, count in zip(shown["edges"], shown["counts"], strict=True):
        bar = "█" * round(BAR * count / most) or ("▏" if count else "")
        yield f"{edge:>10,}+ {bar:{BAR}}{count:>9,} {count / every:6.1%}"
