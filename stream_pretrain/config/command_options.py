"""Options of single commands, which are not options of a run; declared like those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stream_pretrain.config.option_field import option


@dataclass(frozen=True)
class EvaluateConfig:
    """What the models are compared on."""

    sample: int = option(500, bounds="positive")
    """Documents of each source, from up to 16 of its shards."""
    max_bytes: int = option(1024 * 1024 * 1024, bounds="positive")
    """Most uncompressed bytes to read of each source."""
    batch_rows: int = option(32, bounds="positive")
    """Rows that go through a model at once."""
    likelihood_sample: int = option(32, bounds="positive")
    """Documents whose likelihood is compared by byte, for models of different tokenizers."""
    probe: str | None = None
    """JSON lines of "text" and "label": classified by the features of each frozen model. Needs scikit-learn."""


COMMAND_GROUPS: dict[str, Any] = {"evaluate": EvaluateConfig}
"""The dataclass of each group of options that one command alone takes."""
