"""Which documents are in the evaluation sets: collected at the first start that needs them, kept in OUT."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from stream_pretrain.config import Config, EvalConfig, EvalSetConfig
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.corpus.shard import Corpus
from stream_pretrain.data.lanes import pinning
from stream_pretrain.data.lanes.mixture import largest_shares
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.errors import CheckpointError, ConfigError, SourceError
from stream_pretrain.training.evaluation.collecting import collect
from stream_pretrain.training.files.atomic_files import replace_file, writing
from stream_pretrain.training.files.out_files import EVALUATION, EVALUATION_ORIGIN
from stream_pretrain.training.files.retried_reads import lines_of, parsed, read_object
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.typed_json import from_json
from stream_pretrain.units import counted
from stream_pretrain.urls import without_secrets


@dataclass(frozen=True)
class Origin:
    """What evaluation.json says: the options that the documents of OUT were collected with."""

    documents: int | None = None
    dataset: str | None = None
    split: str | None = None
    sets: tuple[EvalSetConfig, ...] = ()
    after_step: int | None = None
    """Losses up to this step are those of other sets."""

    @classmethod
    def of_options(cls, options: EvalConfig) -> Origin:
        """Without secrets."""
        dataset = options.dataset and without_secrets(options.dataset)
        sets = tuple(replace(one, dataset=one.dataset and without_secrets(one.dataset)) for one in options.sets)
        return cls(options.documents, dataset, options.split, sets)

    @classmethod
    def read(cls, out: Path) -> Origin | None:
        """That of OUT. Raises: CheckpointError."""
        path = out / EVALUATION_ORIGIN
        content = read_object(path, "delete it")
        return None if content is None else cast(Origin, from_json(cls, content, f"{path}:"))

    def save(self, out: Path) -> None:
        """Write it to OUT. Raises: CheckpointError."""
        content = asdict(self)
        for name in ("dataset", "split") if self.sets else ("sets",):
            del content[name]
        if self.after_step is None:
            del content["after_step"]
        with writing(out / EVALUATION_ORIGIN):
            replace_file(out / EVALUATION_ORIGIN, [json.dumps(content).encode()])

    def names_place(self, one: EvalSetConfig) -> bool:
        """Whether documents of this set were collected where it says."""
        return any((one.name, one.dataset, one.split) == (there.name, there.dataset, there.split) for there in self.sets)


def evaluation_corpora(config: Config, out: Path) -> dict[str, Corpus]:
    """The corpora of sets with a dataset or split, by name, where their documents are yet to be collected.

    Raises: SourceError, TransportError, CheckpointError.
    """
    if not config.eval.every:
        return {}
    kept = _kept(config.eval, Origin.read(out), out) or {}
    missing = [one for one in _sets(config.eval) if one.name not in kept and (one.dataset, one.split) != (None, None)]
    return {one.name: resolve(config.data, split=one.split, dataset=one.dataset) for one in missing}


def evaluation_documents(
    config: Config, plan: StreamPlan, corpora: Mapping[str, Corpus], out: Path, progress: Progress, *, step: int
) -> dict[str, list[str]]:
    """The texts of each evaluation set of OUT by its name; where there are none, collected from the `evaluation_corpora`.

    step: after which the run resumes. Raises: SourceError, ConfigError, CheckpointError.
    """
    wanted, recorded = Origin.of_options(config.eval), Origin.read(out)
    kept = _kept(config.eval, recorded, out)
    began = None if kept is None else recorded or wanted
    trained_on = {shard.url for shard in plan.shards}
    texts, are_new = {}, False
    for one in _sets(config.eval):
        if kept is not None and one.name in kept:
            texts[one.name] = kept[one.name]
            continue
        are_new = True
        if one.name in corpora and any(shard.url in trained_on for shard in corpora[one.name].shards):
            progress.warning(
                f"{_set_in_words(one.name)} has shards that are trained on: its loss says little of other documents"
            )
        with progress.phase(f"collecting {_set_in_words(one.name)}") as found:
            texts[one.name] = _collected(config, plan, one, corpora.get(one.name), found, progress.warning)
            found(counted(len(texts[one.name]), "document"))
    if began is not None and not are_new and not wanted.sets and not began.sets:
        _report_other_options(wanted, began, out, progress)
        if recorded is None:  # a start was killed between the two files
            began.save(out)
        return texts
    if began is not None and replace(began, after_step=None) != wanted:
        progress.warning(f"other evaluation sets: losses up to step {step:,} are not compared with those of later steps")
        wanted = replace(wanted, after_step=step)
    elif began is not None and began.after_step is not None:
        wanted = replace(wanted, after_step=min(step, began.after_step))
    if are_new or wanted != recorded:
        # First the documents: without a record of their origin, they are taken for those of the options.
        save_documents(out / EVALUATION, texts)
        wanted.save(out)
    return texts


def save_documents(path: Path, texts: Mapping[str, Sequence[str]]) -> None:
    """Write the texts of the evaluation sets, by name, to OUT. Raises: CheckpointError."""
    lines = ({"set": name, "text": text} if name else {"text": text} for name, of_set in texts.items() for text in of_set)
    with writing(path):
        replace_file(path, (json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines))


def load_documents(path: Path) -> dict[str, list[str]]:
    """Read the texts of the evaluation sets of OUT, by name; the only one has none. Raises: CheckpointError."""
    texts: dict[str, list[str]] = {}
    for number, line in enumerate(lines_of(path), start=1):
        try:
            found = from_json(dict[str, Any], parsed(line), "")
            name, text = (from_json(str, value, "") for value in (found.get("set", ""), found["text"]))
            texts.setdefault(name, []).append(text)
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{path}, line {number}: not a document; delete the file for a new evaluation set") from error
    return texts


def compared_after(out: Path) -> int | None:
    """The step up to which losses are those of other evaluation sets. Raises: CheckpointError."""
    origin = Origin.read(out)
    return None if origin is None else origin.after_step


def _sets(options: EvalConfig) -> tuple[EvalSetConfig, ...]:
    """Those of --eval.sets, else the only one, which has no name: with neither dataset nor split, of held-out documents."""
    return options.sets or (EvalSetConfig("", options.dataset, options.split),)


def _kept(options: EvalConfig, recorded: Origin | None, out: Path) -> dict[str, list[str]] | None:
    """The documents in OUT of the sets of the options, by name; None where it has no documents at all.

    A set without a name stays that of the first start, whatever the options are.
    """
    if not (out / EVALUATION).exists():
        return None
    texts, wanted = load_documents(out / EVALUATION), Origin.of_options(options)
    began = recorded or wanted
    if not wanted.sets and not began.sets:
        return {"": texts[""]} if "" in texts else {}
    same = [one.name for one in wanted.sets if wanted.documents == began.documents and began.names_place(one)]
    return {name: texts[name] for name in same if name in texts}


def _report_other_options(wanted: Origin, began: Origin, out: Path, progress: Progress) -> None:
    names = [name for name in ("dataset", "split", "documents") if getattr(began, name) != getattr(wanted, name)]
    if names:
        was = ", ".join(f"--eval.{name} was {getattr(began, name)}, is {getattr(wanted, name)}" for name in names)
        progress.warning(
            f"the evaluation set is still that of the first start ({was}): delete {out / EVALUATION} for a new one"
        )


def _set_in_words(name: str) -> str:
    return f"evaluation set {name}" if name else "the evaluation set"


def _collected(
    config: Config,
    plan: StreamPlan,
    one: EvalSetConfig,
    corpus: Corpus | None,
    report: Callable[[str], None],
    warn: Callable[[str], None],
) -> list[str]:
    """Documents of a split or dataset, else those held out of training. Raises: SourceError, ConfigError."""
    if corpus is None:
        return _held_out(config, plan, report, warn)
    found = collect(
        corpus.shards,
        pinning.read_options(config.data, plan.sources[0].read.window_bytes, share=1),
        documents=config.eval.documents,
        heldout_fraction=None,
        max_read_bytes=config.eval.max_read_bytes,
        skip_bad_shards=config.data.on_bad_shard == "skip",
        report=report,
    )
    if found.warning is not None:
        warn(f"{_set_in_words(one.name)}: {found.warning}")
    if not found.texts:
        place = f"split {one.split}" if one.dataset is None else without_secrets(one.dataset)
        raise SourceError(f"no document for {_set_in_words(one.name)} in {place}: give another, or raise --eval.max-read-bytes")
    return found.texts


def _held_out(config: Config, plan: StreamPlan, report: Callable[[str], None], warn: Callable[[str], None]) -> list[str]:
    """Documents held out of each source, in proportion to its largest share in the schedule."""
    shares = zip(plan.sources, largest_shares(plan.schedule), strict=True)
    holding = [(source, share) for source, share in shares if source.heldout_fraction and share]
    if not holding:
        raise ConfigError("--eval-every needs documents: give --data.heldout-fraction, --eval.split or --eval.dataset")
    total = sum(share for _, share in holding)
    found = {
        source.name: collect(
            source.shards,
            source.read,
            documents=max(1, round(config.eval.documents * share / total)),
            heldout_fraction=source.heldout_fraction,
            max_read_bytes=int(config.eval.max_read_bytes * share / total),
            skip_bad_shards=source.skip_bad_shards,
            report=report,
        ).texts  # training counts and records what cannot be read
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
