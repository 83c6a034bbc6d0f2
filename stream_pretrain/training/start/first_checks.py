"""Checks of the first second, before torch is imported or a model is asked for."""

from __future__ import annotations

import os
from pathlib import Path

from stream_pretrain.config import Config, run_directory, sources_of
from stream_pretrain.data.corpus.missing_dataset import refuse_absent
from stream_pretrain.data.rows.installed_engines import refuse_uninstalled
from stream_pretrain.errors import CheckpointError
from stream_pretrain.training.report.tracking import refuse_wandb


def refuse_at_once(config: Config) -> None:
    """Refuse a missing dataset, an OUT that is no folder, a missing package, and Weights & Biases online without a key.

    Raises: SourceError, CheckpointError, ConfigError.
    """
    refuse_wandb(config.run)
    refuse_uninstalled(config.data.engine)
    _refuse_no_folder(run_directory(config))
    for source in sources_of(config.data):
        refuse_absent(source)
    for dataset in (config.eval.dataset, *(one.dataset for one in config.eval.sets)):
        if dataset is not None:
            refuse_absent(config.data, dataset=dataset)


def _refuse_no_folder(out: Path) -> None:
    """Refuse an OUT that cannot be made or written, by what there is of its path. Raises: CheckpointError."""
    there = next(place for place in (out, *out.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise CheckpointError(f"--output-dir {out}: {there} is not a folder: give another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CheckpointError(f"--output-dir {out}: {there} cannot be written to: give another folder")
