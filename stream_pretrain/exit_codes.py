"""How a run ends, as shells and schedulers are told; README.md has the same table."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator

from stream_pretrain.errors import ConfigError, DeadlineError, LostRankError

FINISHED = 0
FAILED = 1
USAGE = 2
RESUMES = os.EX_TEMPFAIL
"""75: stopped, lost, or ended by a temporary failure: the same command resumes."""
CTRL_C = 128 + signal.SIGINT

_NO_ROOM = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))


def of_stop(name: str | None) -> int:
    """Of a run that was asked to stop by the signal of this name; None: by one that another rank got."""
    return CTRL_C if name == "SIGINT" else RESUMES


def of_stopped_process(name: str | None) -> int:
    """Of a process of such a run: a launcher takes all but 0 for a failure."""
    return 0 if is_launched() else of_stop(name)


def of_error(error: BaseException) -> int:
    """Of a run, or a start, that an error has ended."""
    if isinstance(error, ConfigError):
        return USAGE
    passes = isinstance(error, DeadlineError | LostRankError) or any(map(_is_full_disk, _causes(error)))
    return RESUMES if passes else FAILED


def is_launched() -> bool:
    """Whether `torchrun` or `accelerate launch` has started this process; the latter does without torchrun for one process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_DYNAMO_BACKEND" in os.environ


def _is_full_disk(error: BaseException) -> bool:
    # By its words, since safetensors and tokenizers give no number. A RuntimeError is torch's: shared memory is no disk.
    return not isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_ROOM)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
