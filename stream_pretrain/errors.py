"""What a user can run into: one family, one line each, always what, where and what to do."""


class StreamPretrainError(ValueError):
    """Base of every error meant for the user; the command line prints it as one line, or as those it is given in."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class ConfigError(StreamPretrainError):
    """An option is unknown, malformed or contradicts another; exit code 2."""


class SourceError(StreamPretrainError):
    """The corpus cannot be found or read as its owner published it."""


class TransportError(SourceError):
    """The bytes of a shard could not be had: network, permission, a server that answers nonsense."""


class ContentError(SourceError):
    """The bytes of a shard are damaged: truncated, a failed checksum, not the format its name says."""


class ModelError(StreamPretrainError):
    """The model or tokenizer cannot be used for this run."""


class CheckpointError(StreamPretrainError):
    """A checkpoint or run directory is missing, damaged, in use, or belongs to another run."""


class DamagedCheckpointError(CheckpointError):
    """What a checkpoint holds is not what was written: an older one can take its place."""


class TrainingError(StreamPretrainError):
    """The run cannot go on, for example after too many non-finite steps in a row."""
