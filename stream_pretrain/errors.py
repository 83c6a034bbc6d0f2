"""Errors for the user, in one line: what is wrong, where, and what to do."""

import re
from collections.abc import Iterator

NO_MEMORY = re.compile("out of memory|allocate memory|not enough memory|_ALLOC_FAILED", re.IGNORECASE)
"""How torch says that a device, or this machine, has no memory left."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class StreamPretrainError(ValueError):
    """Base of all errors for the user. Each argument is a line."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class ConfigError(StreamPretrainError):
    """An option is unknown, malformed or contradicts another; exit code 2."""


class SourceError(StreamPretrainError):
    """The corpus cannot be found or read."""


class TransportError(SourceError):
    """The bytes of a shard cannot be fetched: network, permissions, wrong responses."""


class DeadlineError(TransportError):
    """Nothing arrived before --data.retry-deadline; exit code 75, since the same command resumes."""


class ContentError(SourceError):
    """The bytes of a shard are damaged: truncated, a wrong checksum, not of the format in its name."""


class ModelError(StreamPretrainError):
    """The model or tokenizer cannot be used for this run."""


class EngineError(StreamPretrainError):
    """A fast tokenizer engine fails, or gives other ids than `tokenizers`; exit code 75, since the same command resumes with
    `tokenizers`."""


class CheckpointError(StreamPretrainError):
    """A checkpoint or run directory is missing, damaged, in use, or belongs to another run."""


class DamagedCheckpointError(CheckpointError):
    """The content of a checkpoint is not what was written: an older one can replace it."""


class TrainingError(StreamPretrainError):
    """The run cannot continue, for example after too many non-finite steps in a row."""


class LostRankError(TrainingError):
    """The machine of another rank is lost; exit code 75, since the same command resumes."""
