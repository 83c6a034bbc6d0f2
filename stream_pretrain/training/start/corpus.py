"""The corpus of a run on every rank: pinned, then dealt to lanes and tokenized as when the run began. Needs no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stream_pretrain.config import Config
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.corpus.file_formats import count_formats, show_counts
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus
from stream_pretrain.data.lanes import pinning
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.tokenizer_probe import EngineRecord, note_on_engine, probed, refuse_mismatch
from stream_pretrain.errors import CheckpointError
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.start.engine import with_engine
from stream_pretrain.training.state.checkpoint import Saved
from stream_pretrain.units import counted, human_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def pin_on_all_ranks(config: Config, saved: Saved | None, ranks: Ranks, progress: Progress) -> PinnedCorpus:
    """The corpus of a new run, or that of a checkpoint, at its current place. Called by all ranks; the first one lists.

    Raises: SourceError, ConfigError, CheckpointError.
    """
    with progress.phase("resolving the corpus") as found:
        if saved is None:
            pinned = ranks.from_first(lambda: pinning.pin(config, ranks.world))
        else:
            pinned = ranks.from_first(lambda: pinning.relocate(config, PinnedCorpus.from_json(saved.corpus), ranks.world))
        sizes = [shard.size for shard in pinned.shards if shard.size is not None]
        mixed = f"{len(pinned.sources)} sources, " if len(pinned.sources) > 1 else ""
        kinds = show_counts(count_formats(shard.name for shard in pinned.shards))
        shards, lanes = counted(len(pinned.shards), "shard"), counted(pinned.lanes, "lane")
        found(f"{mixed}{shards} ({kinds}), {human_bytes(sum(sizes))}, {lanes}")
    return pinned


def plan_on_all_ranks(
    config: Config,
    tokenizer: PreTrainedTokenizerFast,
    pinned: PinnedCorpus,
    saved: Saved | None,
    out: Path,
    ranks: Ranks,
    progress: Progress,
) -> tuple[StreamPlan, EngineRecord]:
    """How the corpus becomes rows. Called by all ranks; writes nothing. Raises: ConfigError, ModelError, CheckpointError."""
    plan = stream_plan(config, tokenizer, pinned)
    for note in plan.encoder.notes:
        progress.notice(note)
    plan = with_engine(config, plan, out, ranks, progress)
    return plan, _engine_of_all_ranks(config, plan.encoder, saved, ranks, progress)


def _engine_of_all_ranks(
    config: Config, encoder: Encoder, saved: Saved | None, ranks: Ranks, progress: Progress
) -> EngineRecord:
    """The tokenizer engine, which gives the same ids on all ranks and as when the run began.

    Raises: CheckpointError, ModelError.
    """
    name = config.model.tokenizer or config.model.path
    assert name is not None, "validated: a model from scratch has a tokenizer"
    engine = probed(encoder, name)
    refuse_mismatch(ranks.gather(engine))
    if saved is None:
        return engine
    if saved.trainer.tokenizer != encoder.fingerprint:
        raise CheckpointError(
            f"the tokenizer of {name} is not the one the run began with: "
            "put it back, or start a new run with another --output-dir"
        )
    note = note_on_engine(engine, saved.trainer.engine)
    if note is not None:
        progress.notice(note)
    return engine
