"""The exit codes of a run, for shells and schedulers; README.md has the same table."""

from __future__ import annotations

import errno
import os
import signal

from stream_pretrain.errors import ConfigError, DeadlineError, EngineError, LostRankError, causes

FINISHED = 0
FAILED = 1
USAGE = 2
RESUMES = os.EX_TEMPFAIL
"""75: stopped, or ended by a temporary failure: the same command resumes."""
CTRL_C = 128 + signal.SIGINT
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""What stops a run."""

_DISK_FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))


def of_stop(name: str | None) -> int:
    """Of a run stopped by the signal of this name; None for a signal to another rank."""
    return CTRL_C if name == "SIGINT" else RESUMES


def of_stopped_process(name: str | None) -> int:
    """Of a process of such a run; launchers take anything but 0 for a failure."""
    return 0 if is_launched() else of_stop(name)


def of_stopped_start(name: str) -> int:
    """Of a process that is stopped before its run begins: not 0 where other ranks wait for it."""
    return of_stopped_process(name) if os.environ.get("WORLD_SIZE", "1") == "1" else of_stop(name)


def of_error(error: BaseException) -> int:
    """Of a run or start that an error ended."""
    if isinstance(error, ConfigError):
        return USAGE
    passes = isinstance(error, DeadlineError | EngineError | LostRankError) or any(map(_is_full_disk, causes(error)))
    return RESUMES if passes else FAILED


def is_launched() -> bool:
    """Whether `torchrun` or `accelerate launch` started this process; for one process, the latter does not use torchrun."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_DYNAMO_BACKEND" in os.environ


def _is_full_disk(error: BaseException) -> bool:
    # By its words: safetensors and tokenizers give no errno. A RuntimeError is of torch, about shared memory.
    return not isinstance(error, RuntimeError) and any(words in str(error) for words in _DISK_FULL)
