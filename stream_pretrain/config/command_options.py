"""Options of single commands, which are not options of a run; declared like those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from stream_pretrain.config.option_field import option
from stream_pretrain.units import GIB, MIB

LEAST_STEPS = 4
"""Of a run that `verify-resume` kills on its way."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What the models are compared on."""

    sample: int = option(500, bounds="positive")
    """Documents of each source, from up to 16 of its shards."""
    max_bytes: int = option(GIB, bounds="positive")
    """Uncompressed bytes to read from each source, at most."""
    batch_rows: int = option(32, bounds="positive")
    """Rows of one forward pass."""
    likelihood_sample: int = option(32, bounds="positive")
    """Documents whose likelihood is compared per byte, for models with different tokenizers."""
    probe: str | None = option(None, is_path=True)
    """JSON lines of "text" and "label": classified by the features of each frozen model. Needs scikit-learn."""


@dataclass(frozen=True)
class LedgerConfig:
    """Questions about the documents of a run."""

    step: int | None = option(None, bounds="positive")
    """Show the documents that this step trained on."""
    document: str | None = None
    """SHARD:OFFSET, as --ledger.step shows it: the steps that trained on this document."""
    export: str | None = option(None, is_path=True)
    """Write all of it to this Parquet file: step, row, source, epoch, shard, offset, tokens."""
    steps: str | None = None
    """A:B, both included: only these steps are read again, for --ledger.document and --ledger.export."""
    text: bool = False
    """Show the texts of the documents of a step: their shards are read once more."""


@dataclass(frozen=True)
class InspectConfig:
    """How much of the corpus is read and shown."""

    max_read_bytes: int = option(64 * MIB, bounds="positive")
    """Bytes of content to read from each source, at most, from the beginnings of up to 16 shards."""
    rows: int = option(0, bounds="not negative")
    """Packed rows to show, with what is masked in them; needs a tokenizer."""


@dataclass(frozen=True)
class VerifyConfig:
    """How a run is verified."""

    run_steps: int = option(12, bounds="positive")
    """Optimizer steps of each run."""
    kills: int = option(3, bounds="positive")
    """Kills at random moments, besides the named ones."""
    full_model: bool = False
    """Use the whole model with its weights, instead of two layers with new weights."""
    tolerance: float | Literal["auto"] = option("auto", bounds="not negative")
    """Relative difference of losses where only rounding may differ. auto: 1e-4, with bf16 0.02."""
    folder: str | None = option(None, is_path=True)
    """Empty folder for what the runs write, which stays there. Default: a temporary one, which is deleted."""


COMMAND_GROUPS: dict[str, Any] = {
    "evaluate": EvaluateConfig,
    "ledger": LedgerConfig,
    "inspect": InspectConfig,
    "verify": VerifyConfig,
}
"""The dataclass of each group of options that one command alone takes."""
