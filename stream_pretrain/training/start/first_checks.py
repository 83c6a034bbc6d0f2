"""Checks of the first second, before torch is imported or a model is asked for."""

from __future__ import annotations

from stream_pretrain.config import Config, sources_of
from stream_pretrain.data.corpus.missing_dataset import refuse_absent
from stream_pretrain.training.report.tracking import refuse_wandb


def refuse_at_once(config: Config) -> None:
    """Refuse a missing dataset, and Weights & Biases online without a key. Raises: SourceError, ConfigError."""
    refuse_wandb(config.run)
    for source in sources_of(config.data):
        refuse_absent(source)
    if config.eval.dataset is not None:
        refuse_absent(config.data, dataset=config.eval.dataset)
