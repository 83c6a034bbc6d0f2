"""A run as its folder records it: running, finished or failed. Nothing in the folder is changed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream_pretrain.arguments import parse
from stream_pretrain.config import Config, ModelConfig, fixed_options, without_places
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus
from stream_pretrain.data.lanes import pinning
from stream_pretrain.data.lanes.cursor_checks import refuse_impossible
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import CURSOR_VERSION, LaneCursors, cursors_from, first_cursors, refuse_changed
from stream_pretrain.errors import CheckpointError, ConfigError, DamagedCheckpointError, ModelError, SourceError, TransportError
from stream_pretrain.model.tokenizer import load_tokenizer
from stream_pretrain.training.files.manifest import json_of
from stream_pretrain.training.files.options_file import NAME as OPTIONS
from stream_pretrain.training.files.out_files import CHECKPOINTS, CURSORS, MODEL, RUN
from stream_pretrain.training.start.engine import engine_of
from stream_pretrain.training.start.kept_defaults import kept_options, with_options
from stream_pretrain.training.start.resume import changed_options
from stream_pretrain.training.state.passed_steps import Passed
from stream_pretrain.training.state.trainer_state import TrainerState, read_trainer_state, refuse_other_version


@dataclass(frozen=True)
class RecordedRun:
    """What a run reads, and the cursors that its folder has."""

    out: Path
    plan: StreamPlan
    state: str
    """Of run.json, as a predicate of "the run"."""
    cursor_files: Mapping[int, Path]
    """By step, oldest first: the stream.json after it."""
    first_step: int
    """Steps before the run, where it began from the checkpoint of another one."""
    passed: Passed = ()
    """Steps whose rows were read and not trained on."""

    @property
    def last_step(self) -> int:
        """The last step that cursors are known of."""
        return max(self.cursor_files, default=0)

    def cursors_before(self, step: int) -> tuple[int, list[LaneCursors], list[str]]:
        """The nearest cursors at or before a step that can be read, the step that they are of, and the faults of nearer ones.

        Raises: CheckpointError.
        """
        faults: list[str] = []
        for known in sorted((of for of in self.cursor_files if of <= step), reverse=True):
            file = self.cursor_files[known]
            try:
                state = json_of(file)
            except DamagedCheckpointError as error:
                faults.append(str(error))
                continue
            try:
                cursors = cursors_from(state, known, self.plan.layout.lanes, file)
                refuse_impossible(cursors, self.plan, known, file)
                refuse_changed(state, file)
            except CheckpointError as error:
                faults.append(str(error))
                continue
            return known, cursors, faults
        if self.first_step:
            raise CheckpointError(
                f"the cursors of step {step:,} are not in {self.out}, which began at step {self.first_step:,} from the "
                f"checkpoint {json_of(self.out / RUN).get('parent')}; ask the run of that checkpoint"
            )
        return 0, first_cursors(self.plan.layout.lanes, len(self.plan.sources)), faults


def recorded_run(out: Path, given: Config, typed: Sequence[str]) -> RecordedRun:
    """The run of a folder. typed: options that are given now, such as where the corpus is today; others are those of the run.

    Raises: CheckpointError where the folder has no run, or none of its checkpoints can be read; SourceError, ModelError.
    """
    try:
        own = parse([f"--config={out / OPTIONS}"])
    except ConfigError as error:
        raise CheckpointError(f"{out / OPTIONS} is not what the run wrote: was the folder copied in part? ({error})") from error
    names = [word.replace("-", "_") for word in typed]
    if own.data.sources and "data.dataset" in names:
        raise ConfigError("--dataset: this run reads several sources: give --data.sources with the places of all of them")
    if not own.data.sources and "data.sources" in names:
        raise ConfigError("--data.sources: this run reads one dataset: give its place with --dataset")
    config = with_options(own, {name: _value(given, name) for name in names})
    _refuse_other_rows(own, config)
    checkpoint = _newest_readable(out)
    refuse_other_version(checkpoint, "read it with")  # also for steps before its first cursors
    trainer = read_trainer_state(checkpoint)
    config = with_options(config, kept_options(config, trainer.defaults, checkpoint))
    _refuse_other_options(config, trainer, out)
    pinned = PinnedCorpus.from_json(json_of(checkpoint / "corpus.json"))
    try:
        pinned = pinning.relocate(config, pinned, world=1)
    except TransportError:
        raise
    except SourceError as error:
        raise SourceError(f"{error}; a corpus that has moved is given with --dataset or --data.sources") from error
    plan = _plan(config, given.model, pinned, out, checkpoint, trainer.tokenizer)
    recorded = _record(out)
    files = _cursor_files(out)
    if (parent := recorded.get("parent")) and (of_parent := _parent_cursors(Path(parent))):
        files = {**of_parent, **files}
    first_step = min(files, default=0) if recorded.get("parent") else 0
    return RecordedRun(out, plan, _in_words(recorded, max(files, default=0)), files, first_step, trainer.passed)


def _refuse_other_rows(own: Config, given: Config) -> None:
    """Raises: ConfigError where options that are given now would make other rows than the run had."""
    was, now = (without_places(fixed_options(config)) for config in (own, given))
    for name, value in was.items():
        if now[name] != value:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is {value} in this run, not {now[name]}: leave it out, the run's own options count")


def _refuse_other_options(config: Config, trainer: TrainerState, out: Path) -> None:
    """Raises: CheckpointError where the file of options has others than the checkpoints, and so other rows."""
    for name, (was, now) in changed_options(config, trainer.fixed).items():
        if name.startswith("model."):
            continue  # of which the tokenizer alone decides rows, and is compared by its fingerprint
        raise CheckpointError(
            f"{out / OPTIONS} is not what the run wrote: --{name.replace('_', '-')} is {now}, and {was} in its checkpoints; "
            "was the folder copied in part?"
        )


def _record(out: Path) -> dict[str, Any]:
    """run.json; of a copy without it, or with what no run writes, only the state is unknown."""
    try:
        recorded = json_of(out / RUN)
    except DamagedCheckpointError:
        return {}
    kinds = {"state": str, "host": str, "step": int, "error": str, "parent": str}
    return recorded if all(isinstance(recorded.get(name), kind | None) for name, kind in kinds.items()) else {}


def _value(config: Config, name: str) -> Any:
    group, _, option = name.partition(".")
    return getattr(getattr(config, group), option)


def _newest_readable(out: Path) -> Path:
    """The newest checkpoint with all that a replay needs. Raises: CheckpointError."""
    faults = []
    for checkpoint in sorted((out / CHECKPOINTS).glob("step-*"), reverse=True):
        try:
            json_of(checkpoint / "corpus.json")
            if json_of(checkpoint / "stream.json").get("version") == CURSOR_VERSION:  # another one is refused with its writer
                read_trainer_state(checkpoint)
            return checkpoint
        except (CheckpointError, OSError) as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError(f"{out}: no checkpoint can be read; the newest: {faults[0]}")
    if (out / CURSORS).exists() or (out / MODEL).exists():
        raise CheckpointError(f"the checkpoints of {out}, which say what the run reads, are gone: was it copied in part?")
    raise CheckpointError(f"{out} has no checkpoint yet, which says what the run reads: ask again after the first one")


def _plan(
    config: Config, given: ModelConfig, pinned: PinnedCorpus, out: Path, checkpoint: Path, fingerprint: str
) -> StreamPlan:
    """With the tokenizer of the checkpoint, else that of the options, whichever the run has. Raises: CheckpointError."""
    faults, trust = [], given.trust_remote_code
    of_options = dataclasses.replace(
        config.model,
        path=config.model.path or "",
        tokenizer=given.tokenizer or config.model.tokenizer,
        trust_remote_code=trust,
    )
    for own in (ModelConfig(path=str(checkpoint), trust_remote_code=trust), of_options):
        try:
            plan = stream_plan(config, load_tokenizer(own), pinned)
        except ModelError as error:
            faults.append(str(error))
            continue
        if plan.encoder.fingerprint == fingerprint:
            engine = engine_of(config, plan, out).name  # the rows are those of the run, so the ids must be, too
            return dataclasses.replace(plan, encoder=dataclasses.replace(plan.encoder, engine=engine))
        faults.append(f"that of {own.tokenizer or own.path} is not the one of the run")
    raise CheckpointError(f"the tokenizer of the run is gone: {'; '.join(faults)}; give it with --model.tokenizer")


def _cursor_files(out: Path) -> dict[int, Path]:
    """The cursors of checkpoints that are there, and of those that were deleted."""
    files = [*out.glob(f"{CURSORS}/step-*.json"), *out.glob(f"{CHECKPOINTS}/step-*/stream.json")]
    named = ((re.search(r"step-([0-9]+)(?:\.json|/stream\.json)$", path.as_posix()), path) for path in files)
    return dict(sorted((int(match[1]), path) for match, path in named if match))


def _parent_cursors(checkpoint: Path) -> dict[int, Path]:
    """Those of the checkpoint that a run began from, by step, where it is there still."""
    named = re.fullmatch(r"step-([0-9]+)", checkpoint.name)
    file = checkpoint / "stream.json"
    return {int(named[1]): file} if named and file.is_file() else {}


def _in_words(recorded: Mapping[str, Any], last: int) -> str:
    state = recorded.get("state")
    if state is None:
        return f"has no run.json that can be read; its last checkpoint is of step {last:,}"
    if state == "running":
        return (
            f"is running, or killed, on {recorded.get('host')}: what follows its last checkpoint, step {last:,}, is not known"
        )
    step = f"at step {recorded.get('step', last):,}"
    return f"has failed {step}: {recorded.get('error')}" if state == "failed" else f"is {state} {step}"


def steps_in(run: RecordedRun, words: str | None, option: str = "--ledger.steps") -> range:
    """Steps A:B, both included, or one step, of a run; all of them without words. Raises: ConfigError."""
    known = range(run.first_step + 1, run.last_step + 1)
    if words is None:
        words = ":"
    match = re.fullmatch(r"([0-9]*)(?::([0-9]*))?", words.replace(",", ""))
    if match is None or not words:
        raise ConfigError(f"{option} {words}: give A:B, such as 900:1000, both included")
    last = match[1] if match[2] is None else match[2]
    steps = range(int(match[1] or known.start), int(last or known.stop - 1) + 1)
    if not steps:
        raise ConfigError(f"{option} {words}: the first step is after the last: give A:B, such as 900:1000")
    if steps.start < known.start or steps.stop > known.stop:
        raise ConfigError(f"{option} {words}: the run has cursors for steps {known.start:,} to {known.stop - 1:,}")
    return steps
