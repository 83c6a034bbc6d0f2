"""What the commands around a run refuse before torch is imported: wrong uses, folders and datasets that are not there."""

from __future__ import annotations

import os
from pathlib import Path

from stream_pretrain.arguments import Invocation
from stream_pretrain.config import sources_of
from stream_pretrain.config.command_options import LEAST_STEPS, EvaluateConfig, InspectConfig, LedgerConfig, VerifyConfig
from stream_pretrain.data.corpus.missing_dataset import refuse_absent
from stream_pretrain.errors import CheckpointError, ConfigError
from stream_pretrain.training.files.options_file import NAME as OPTIONS
from stream_pretrain.training.files.out_files import CHECKPOINTS, CURSORS, RUN
from stream_pretrain.training.start.first_checks import refuse_too_large_step


def refuse_misuse(group: str, given: Invocation) -> None:
    """Refuse what the operands and options of a command show to be wrong. group: that of its own options.

    Raises: ConfigError, CheckpointError, SourceError.
    """
    if "RANK" in os.environ:  # each would do and write the same
        raise ConfigError("only a run takes several processes: start this command without torchrun or accelerate launch")
    match given.own[group]:
        case EvaluateConfig():
            _of_evaluate(given.operands)
        case LedgerConfig() as options:
            _of_ledger(options, given.operands)
        case InspectConfig() as options:
            _of_inspect(options, given)
        case VerifyConfig() as options:
            _of_verify_resume(options, given)
    for source in sources_of(given.config.data):
        if source.dataset is not None:
            refuse_absent(source)


def _of_evaluate(models: tuple[str, ...]) -> None:
    if not models:
        raise ConfigError("evaluate needs models: give folders or Hub ids, such as bert-base-uncased runs/first/model")
    if repeated := [name for name in models if models.count(name) > 1]:
        raise ConfigError(f"{repeated[0]} is given twice: leave one of them out")


def _of_ledger(options: LedgerConfig, folders: tuple[str, ...]) -> None:
    if len(folders) != 1:
        raise ConfigError("ledger needs the folder of one run, such as runs/first")
    if [options.step, options.document, options.export].count(None) != 2:
        raise ConfigError("give one of --ledger.step N, --ledger.document SHARD:OFFSET and --ledger.export FILE")
    if options.steps is not None and options.step is not None:
        raise ConfigError("--ledger.steps bounds --ledger.document and --ledger.export: leave it out with --ledger.step")
    if options.text and options.step is None:
        raise ConfigError("--ledger.text shows the texts of --ledger.step: leave it out without that")
    _refuse_unless_run(Path(folders[0]))


def _of_inspect(options: InspectConfig, given: Invocation) -> None:
    if options.rows:
        if given.config.model.path is None and given.config.model.tokenizer is None:
            raise ConfigError("--inspect.rows needs a tokenizer: give --model or --model.tokenizer")
        refuse_too_large_step(given.config)  # a whole step is read for them


def _of_verify_resume(options: VerifyConfig, given: Invocation) -> None:
    if options.run_steps < LEAST_STEPS:
        raise ConfigError(f"--verify.run-steps must be at least {LEAST_STEPS}, not {options.run_steps}")
    refuse_too_large_step(given.config)


def _refuse_unless_run(out: Path) -> None:
    """Refuse what is not the folder of a run with its options. Raises: CheckpointError."""
    if (out / OPTIONS).is_file():
        return
    if not out.is_dir():
        what = "is a file" if out.exists() else "is not there"
        raise CheckpointError(f"{out} {what}: give the folder of a run")
    if any((out / name).exists() for name in (RUN, CHECKPOINTS, CURSORS)):
        raise CheckpointError(f"{out / OPTIONS} is missing: was the folder copied in part?")
    around = next(
        (folder for folder in out.absolute().parents if (folder / RUN).is_file() and (folder / OPTIONS).is_file()), None
    )
    raise CheckpointError(f"{out} is no folder of a run{f'; did you mean {around}?' if around else ''}")
