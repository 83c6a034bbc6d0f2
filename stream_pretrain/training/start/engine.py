"""The tokenizer engine of a run: chosen on the first rank, and installed alike on all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from stream_pretrain.config import Config
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.rows.engine_choice import Choice, choose
from stream_pretrain.data.rows.installed_engines import installed
from stream_pretrain.errors import CheckpointError, ConfigError, EngineError
from stream_pretrain.training.files.atomic_files import replace_file, writing
from stream_pretrain.training.files.out_files import ENGINE
from stream_pretrain.training.files.retried_reads import read_object
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.report.progress import Progress


def with_engine(config: Config, plan: StreamPlan, out: Path, ranks: Ranks, progress: Progress) -> StreamPlan:
    """The plan with the engine of --data.engine, or the one that OUT keeps to. Called by all ranks.

    Raises: ConfigError, CheckpointError.
    """
    choice = _on_all_ranks(config, plan, out, ranks)
    progress.notice(choice.in_words())
    return replace(plan, encoder=replace(plan.encoder, engine=choice.name))


def engine_of(config: Config, plan: StreamPlan, out: Path) -> Choice:
    """The engine that OUT keeps to, else the one for --data.engine. Raises: ConfigError, CheckpointError."""
    return _kept(out) or choose(config.data.engine, plan.encoder)


def keep_tokenizers(out: Path, why: str) -> None:
    """Record in OUT that the run continues with `tokenizers`. Raises: CheckpointError."""
    with writing(out / ENGINE):
        replace_file(out / ENGINE, [json.dumps({"engine": "tokenizers", "why": why}, indent=2).encode(), b"\n"])


def is_of_engine(why: str) -> bool:
    """Whether a run ended because of its engine, by the error that its ranks announced: its type and text."""
    return why.startswith(f"{EngineError.__name__}: ")


def _kept(out: Path) -> Choice | None:
    """The engine that OUT keeps to. Raises: CheckpointError."""
    path, advice = out / ENGINE, "delete it, and the run chooses its engine again"
    content = read_object(path, advice)
    if content is not None and content.get("engine") != "tokenizers":
        raise CheckpointError(f"{path} does not name the engine tokenizers: {advice}")
    return None if content is None else Choice("tokenizers", f"{path} says why")


def _on_all_ranks(config: Config, plan: StreamPlan, out: Path, ranks: Ranks) -> Choice:
    choice = ranks.from_first(lambda: engine_of(config, plan, out))
    if choice.name == "tokenizers":
        return choice
    versions = ranks.gather(installed(choice.name))
    unlike = next((rank for rank, version in enumerate(versions) if version != versions[0]), None)
    if unlike is None:
        return choice
    has = f"rank {unlike} has {choice.name} {versions[unlike]}" if versions[unlike] else f"rank {unlike} has no {choice.name}"
    why = f"{has}, and rank 0 has {versions[0]}: install the same on all machines"
    if config.data.engine != "auto":
        raise ConfigError(f"--data.engine {config.data.engine}: {why}, or give --data.engine auto")
    return Choice("tokenizers", why)
