"""Which documents are in the evaluation set: collected at the first start, kept in OUT."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from stream_pretrain.config import Config
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.corpus.shard import Corpus
from stream_pretrain.data.lanes import pinning
from stream_pretrain.data.lanes.mixture import largest_shares
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.errors import ConfigError, SourceError
from stream_pretrain.training.evaluation import evaluation
from stream_pretrain.training.files.atomic_files import replace_file, writing
from stream_pretrain.training.files.out_files import EVALUATION, EVALUATION_ORIGIN
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.urls import without_secrets


def evaluation_corpus(config: Config, out: Path) -> Corpus | None:
    """The corpus of --eval.dataset or --eval.split, where the evaluation set is yet to be collected from it.

    Raises: SourceError, TransportError.
    """
    named, split = config.eval.dataset, config.eval.split
    if not config.eval.every or (named is None and split is None) or (out / EVALUATION).exists():
        return None
    return resolve(config.data, split=split, dataset=named)


def evaluation_documents(config: Config, plan: StreamPlan, corpus: Corpus | None, out: Path, progress: Progress) -> list[str]:
    """The texts of the evaluation set of OUT; where there is none, collected from the `evaluation_corpus`.

    Raises: SourceError, ConfigError.
    """
    kept, origin = out / EVALUATION, out / EVALUATION_ORIGIN
    dataset = None if config.eval.dataset is None else without_secrets(config.eval.dataset)
    asked = {"dataset": dataset, "split": config.eval.split, "documents": config.eval.documents}
    if not kept.exists():
        with progress.phase("collecting the evaluation set") as found:
            texts = _collected(config, plan, corpus, found, progress.warning)
            found(f"{len(texts)} documents")
        with writing(origin):
            replace_file(origin, [json.dumps(asked).encode()])
        evaluation.save_documents(kept, texts)
    began = asked
    with suppress(FileNotFoundError):
        began = evaluation.load_origin(origin)
    if began != asked:
        was = ", ".join(
            f"--eval.{name} was {began.get(name)}, is {asked[name]}" for name in asked if began.get(name) != asked[name]
        )
        progress.warning(f"the evaluation set is still that of the first start ({was}): delete {kept} for a new one")
    return evaluation.load_documents(kept)


def _collected(
    config: Config, plan: StreamPlan, corpus: Corpus | None, report: Callable[[str], None], warn: Callable[[str], None]
) -> list[str]:
    """Documents of --eval.split or --eval.dataset, else those held out of training. Raises: SourceError, ConfigError."""
    if corpus is None:
        return _held_out(config, plan, report, warn)
    texts = evaluation.collect(
        corpus.shards,
        pinning.read_options(config.data, plan.sources[0].read.window_bytes, share=1),
        documents=config.eval.documents,
        heldout_fraction=None,
        max_read_bytes=config.eval.max_read_bytes,
        skip_bad_shards=config.data.on_bad_shard == "skip",
        report=report,
    )
    if not texts:
        named, split = config.eval.dataset, config.eval.split
        raise SourceError(
            f"no document for the evaluation set in {f'split {split}' if named is None else without_secrets(named)}: "
            "give another, or raise --eval.max-read-bytes"
        )
    return texts


def _held_out(config: Config, plan: StreamPlan, report: Callable[[str], None], warn: Callable[[str], None]) -> list[str]:
    """Documents held out of each source, in proportion to its largest share in the schedule."""
    shares = zip(plan.sources, largest_shares(plan.schedule), strict=True)
    holding = [(source, share) for source, share in shares if source.heldout_fraction and share]
    if not holding:
        raise ConfigError("--eval-every needs documents: give --data.heldout-fraction, --eval.split or --eval.dataset")
    total = sum(share for _, share in holding)
    found = {
        source.name: evaluation.collect(
            source.shards,
            source.read,
            documents=max(1, round(config.eval.documents * share / total)),
            heldout_fraction=source.heldout_fraction,
            max_read_bytes=int(config.eval.max_read_bytes * share / total),
            skip_bad_shards=source.skip_bad_shards,
            report=report,
        )
        for source, share in holding
    }
    if not any(found.values()):
        raise SourceError(
            "no document for the evaluation set: raise --data.heldout-fraction or --eval.max-read-bytes, or give --eval.dataset"
        )
    for name, texts in found.items():
        if not texts:
            warn(f"source {name} gives the evaluation set no document: raise its heldout_fraction or --eval.max-read-bytes")
    return [text for texts in found.values() for text in texts]
