"""The overview that is shown before the first step: batch, corpus, learning rate, devices, checkpoints, evaluation."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Iterator

from stream_pretrain.training.files.out_files import BEST, CHECKPOINTS
from stream_pretrain.training.start.model import devices_of
from stream_pretrain.training.start.setup import Setup
from stream_pretrain.training.state.checkpoint_size import best_kept, checkpoint_bytes, most_kept
from stream_pretrain.training.steps.corpus_estimate import CorpusEstimate
from stream_pretrain.units import counted, first_of, human_bytes, human_count
from stream_pretrain.urls import without_secrets

WIDTH = 79
"""A terminal of 80 columns wraps a full line."""
LABEL = 13
SHOWN_SOURCES = 3
WELL_FILLED = 0.9
"""Of the positions of a row. What padding there is in others is no news."""


def overview(setup: Setup, estimate: CorpusEstimate) -> Iterator[str]:
    """The lines of the block. Called by the first rank, which knows the weights."""
    paragraphs = {
        "batch": _batch(setup, estimate),
        "corpus": _corpus(setup, estimate),
        "learning rate": _learning_rate(setup),
        "devices": _devices(setup),
        "checkpoints": _checkpoints(setup, estimate),
        "evaluation": _evaluation(setup, estimate),
        "output": str(setup.out.path),
    }
    for label, text in paragraphs.items():
        first, rest = f"{label:{LABEL}}  ", " " * (LABEL + 2)
        yield from textwrap.wrap(
            text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
        )


def lack_of_space(setup: Setup, estimate: CorpusEstimate) -> str | None:
    """A warning where the disk has no room for the checkpoints."""
    needed, free = _bytes_needed(setup, estimate), _free_bytes(setup)
    if needed <= free:
        return None
    fewer = ", lower --run.keep-last," if setup.config.run.keep_last > 1 else ""
    return (
        f"the checkpoints need {human_bytes(needed)} more, and {setup.out.path} has {human_bytes(free)} free: "
        f"free some space{fewer} or give another --output-dir"
    )


def _batch(setup: Setup, estimate: CorpusEstimate) -> str:
    layout, train = setup.plan.layout, setup.config.train
    tokens, steps = layout.positions_of_step, estimate.steps
    text = f"{layout.global_batch_size:,} rows of {layout.sequence_length:,} = {human_count(tokens)} tokens a step"
    if estimate.fill < WELL_FILLED:
        text += f" ({1 - estimate.fill:.0%} padding)"
    if steps is None:
        return f"{text}, {counted(train.max_epochs or 1, 'epoch')}"
    about = "" if steps == train.max_steps else "~"
    return f"{text}; {about}{counted(round(steps), 'step')} = {about}{human_count(tokens * steps)} tokens"


def _corpus(setup: Setup, estimate: CorpusEstimate) -> str:
    sources = list(zip(setup.plan.sources, estimate.tokens, estimate.epochs(setup.plan), strict=True))
    parts = []
    for source, tokens, epochs in sources[:SHOWN_SOURCES]:
        name = f"{source.name}: " if source.name else ""
        if tokens is None:
            parts.append(f"{name}unknown tokens, since the store does not report the size of every shard")
        else:
            read = "" if epochs is None else f", {_epochs(epochs)}"
            parts.append(f"{name}~{human_count(tokens)} tokens{read}")
    if len(sources) > SHOWN_SOURCES:
        parts.append(f"and {counted(len(sources) - SHOWN_SOURCES, 'source')} more")
    return "; ".join(parts)


def _epochs(number: float) -> str:
    shown = f"{number:.2g}" if number < 10 else f"{number:,.0f}"
    return f"{shown} {'epoch' if shown == '1' else 'epochs'}"


def _learning_rate(setup: Setup) -> str:
    train, with_auto = setup.config.train, setup.config_with_auto.train
    rate, warmup = (" (auto)" if value == "auto" else "" for value in (with_auto.learning_rate, with_auto.warmup_steps))
    decay = {
        "constant": "then constant",
        "wsd": f"wsd: last {train.decay_fraction:.0%} decays",
        "linear": "linear decay",
        "cosine": "cosine decay",
    }[train.schedule]
    to = f" to {train.final_learning_rate:g}" if train.final_learning_rate else ""
    return f"{train.learning_rate:g}{rate}, warm-up {counted(int(train.warmup_steps), 'step')}{warmup}, {decay}{to}"


def _devices(setup: Setup) -> str:
    rows, world = setup.plan.layout.global_batch_size, setup.ranks.world
    size, count = setup.plan.layout.micro_batches(setup.config.train.micro_batch_size, world)
    padding = 1 - rows / (count * size * world)
    cost = f", {padding:.0%} of it padding: another --micro-batch-size may be faster" if padding >= 0.005 else ", no padding"
    each = " on each" if world > 1 else ""
    precision = "bf16" if setup.parallel.accelerator.mixed_precision == "bf16" else "fp32"
    devices = f"{devices_of(setup.parallel.accelerator)} in {precision}"
    return f"{devices}; a step is {counted(count, 'micro-batch', 'es')} of {size:,} rows{each}{cost}"


def _checkpoints(setup: Setup, estimate: CorpusEstimate) -> str:
    run = setup.config.run
    kept, total = _kept(setup, estimate), _kept(setup, estimate) * _checkpoint_bytes(setup)
    best = best_kept(run)
    of_best = f", {best} of them for --run.keep-best" if best else ""
    also = f", and every {run.keep_every:,} steps one for good" if run.keep_every else ""
    return (
        f"every {counted(run.save_every, 'step')}, {human_bytes(_checkpoint_bytes(setup))} x {kept} kept = "
        f"{human_bytes(total)}{of_best}{also}; {human_bytes(_free_bytes(setup))} free"
    )


def _evaluation(setup: Setup, estimate: CorpusEstimate) -> str:
    options = setup.config.eval
    if not options.every:
        every = min(1000, max(1, int(estimate.steps or 1000) // 10))
        if setup.config.data.heldout_fraction:
            return f"none: give --eval-every {every}, for the held-out documents"
        documents = "--eval.dataset PATH" if setup.totals.step else "--data.heldout-fraction 0.01"  # a fixed option
        return f"none: give --eval-every {every} {documents}"
    if options.sets:
        documents = f"documents of each of {first_of([one.name for one in options.sets])}"
    elif options.dataset is not None:
        documents = f"documents of {without_secrets(options.dataset)}"
    else:
        documents = f"documents of split {options.split}" if options.split is not None else "held-out documents"
    return f"every {counted(options.every, 'step')}, on up to {options.documents:,} {documents}"


def _checkpoint_bytes(setup: Setup) -> int:
    export = setup.parallel.export()
    weights = sum(weight.numel() * weight.element_size() for weight in export.weights.values())
    trained = sum(parameter.numel() for parameter in setup.parallel.bare.parameters() if parameter.requires_grad)
    return checkpoint_bytes(weights, trained, export.tokenizer, setup.pinned.encoded)


def _kept(setup: Setup, estimate: CorpusEstimate) -> int:
    """Checkpoints that are kept at the end of the run."""
    run, steps = setup.config.run, estimate.steps
    most = most_kept(run, steps)
    return most if steps is None else min(most, max(1, math.ceil(steps / run.save_every)) + best_kept(run))


def _bytes_needed(setup: Setup, estimate: CorpusEstimate) -> int:
    """For those not written yet, and one more: a new one is complete before an old one is deleted."""
    there = sum(1 for folder in (BEST, CHECKPOINTS) for _ in (setup.out.path / folder).glob("step-*"))
    return max(0, _kept(setup, estimate) + 1 - there) * _checkpoint_bytes(setup)


def _free_bytes(setup: Setup) -> int:
    return shutil.disk_usage(setup.out.path).free
