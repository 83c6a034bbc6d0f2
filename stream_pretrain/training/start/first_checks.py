"""Checks of the first second, before torch is imported or a model is looked up."""

from __future__ import annotations

import os
from pathlib import Path

from stream_pretrain.config import Config, run_directory, sources_of
from stream_pretrain.data.corpus.missing_dataset import refuse_absent
from stream_pretrain.data.corpus.resolve import local_path
from stream_pretrain.data.rows.installed_engines import refuse_uninstalled
from stream_pretrain.errors import CheckpointError, ConfigError
from stream_pretrain.model.hub import refuse_absent_folder, refuse_no_model
from stream_pretrain.training.files.out_files import CHECKPOINTS, METRICS, MODEL
from stream_pretrain.training.files.run_directory import RunDirectory
from stream_pretrain.training.report.tracking import refuse_wandb
from stream_pretrain.units import human_bytes


def refuse_at_once(config: Config) -> None:
    """Refuse at once what needs only the options and a look at the folders that they name.

    That is W&B online without a key, a package or a dataset that is missing, a folder that is no model or no checkpoint, an OUT
    that is no folder or has another purpose, and a step that no memory holds. A run that goes on needs no model to begin with,
    a finished one no dataset either.
    Raises: SourceError, ModelError, CheckpointError, ConfigError.
    """
    out, model = run_directory(config), config.model
    run = RunDirectory(out, [], lambda _: None)
    refuse_wandb(config.run)
    refuse_uninstalled(config.data.engine)
    refuse_too_large_step(config)
    _refuse_no_folder(out)
    if config.run.resume == "no":
        refuse_used(out)
    if not (out / CHECKPOINTS).is_dir():
        _refuse_folder_of_others(out, config)
        resume = config.run.resume
        parent = run.recorded().get("parent") if resume == "auto" else None if resume == "no" else resume
        init_from = None if parent else model.init_from  # a run that begins from a checkpoint has its weights
        for name in filter(None, (model.path, model.config, model.tokenizer, init_from)):
            refuse_absent_folder(name)
        for name in filter(None, (model.path, model.config)):
            refuse_no_model(name)
        if resume not in ("auto", "no"):
            refuse_no_checkpoint(Path(resume).resolve())
    if run.finished_at(config.train) is not None:
        return
    for source in sources_of(config.data):
        refuse_absent(source)
    for dataset in filter(None, (config.eval.dataset, *(one.dataset for one in config.eval.sets))):
        refuse_absent(config.data, dataset=dataset)


def refuse_used(out: Path) -> None:
    """Refuse an OUT with a run in it, for --resume no. Raises: CheckpointError."""
    if is_used(out):
        raise CheckpointError(f"{out} has a run: resume it with --resume auto, or give another --output-dir")


def is_used(out: Path) -> bool:
    """Whether a run has written a checkpoint, metrics or a model in OUT."""
    has_metrics = (out / METRICS).exists() and (out / METRICS).stat().st_size > 0
    return has_metrics or (out / MODEL).exists() or any((out / CHECKPOINTS).glob("step-*"))


def refuse_no_checkpoint(folder: Path) -> None:
    """Refuse what --resume cannot begin from. Raises: CheckpointError."""
    if not os.path.isfile(folder / "trainer.json"):  # False for a name that is too long, unlike Path.is_file
        raise CheckpointError(f"{folder} is not a checkpoint: give auto, no, or a folder such as OUT/checkpoints/step-00001000")


def physical_memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def refuse_too_large_step(config: Config) -> None:
    """Refuse a step whose tokens alone, 4 bytes each, are more than the memory of this machine. Raises: ConfigError."""
    if os.environ.get("WORLD_SIZE", "1") != os.environ.get("LOCAL_WORLD_SIZE", "1"):
        return  # several machines share it
    rows, memory = config.train.global_batch_size, physical_memory()
    needed = 4 * rows * config.data.sequence_length
    if needed > memory:
        raise ConfigError(
            f"--global-batch-size {rows:,}: the tokens of one step take {human_bytes(needed)} of memory, and this machine has "
            f"{human_bytes(memory)}: give fewer rows"
        )


def _refuse_folder_of_others(out: Path, config: Config) -> None:
    """Refuse an OUT that a new run would share with what it reads, or with everything else. Raises: CheckpointError."""
    given = {
        "the root of the file system": "/",
        "your home folder": os.path.expanduser("~"),
        "the folder of --model": config.model.path,
        "the folder of --model.config": config.model.config,
        "the folder of --model.tokenizer": config.model.tokenizer,
        "the folder of --eval.dataset": config.eval.dataset,
        **{f"the folder of the evaluation set {one.name}": one.dataset for one in config.eval.sets},
        **{f"the folder of the source {source.name}": source.dataset for source in config.data.sources},
        "the folder of --dataset": config.data.dataset,
    }
    for what, folder in given.items():
        if folder is not None and os.path.realpath(local_path(folder)) == os.path.realpath(out):
            raise CheckpointError(f"--output-dir {out} is {what}: give one of its own")


def _refuse_no_folder(out: Path) -> None:
    """Refuse an OUT that cannot be made or written, by what there is of its path. Raises: CheckpointError."""
    try:
        out.absolute()
    except FileNotFoundError as error:
        raise CheckpointError(f"--output-dir {out}: the working directory was deleted: start in another one") from error
    there = next(place for place in (out, *out.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise CheckpointError(f"--output-dir {out}: {there} is not a folder: give another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CheckpointError(f"--output-dir {out}: {there} cannot be written to: make it writable, or give another folder")
