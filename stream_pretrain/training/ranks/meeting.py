"""How the ranks of a run find each other: where one is missing, the others say so and do not fail with a traceback."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistBackendError, DistError

from stream_pretrain.errors import LostRankError
from stream_pretrain.exit_codes import RESUMES
from stream_pretrain.terminal import say
from stream_pretrain.training.ranks.launcher import tell_launcher
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.watchdog import Watchdog

MEETING_SECONDS = 30.0
"""Ranks that are started together have found each other by then."""


@contextmanager
def meeting() -> Iterator[None]:
    """Around what connects the ranks of a launcher; one on each machine reports that it waits. Raises: LostRankError."""
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and world.isdecimal() and int(world) > 1):  # what is malformed is refused later
        yield
        return
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} (MASTER_ADDR:MASTER_PORT)"
    is_reported = os.environ.get("LOCAL_RANK", "0") == "0"
    report = (lambda text: say(f"warning: {text}")) if is_reported else (lambda _: None)
    try:
        with (
            Watchdog(Ranks(int(rank), int(world)), report, MEETING_SECONDS) as watchdog,
            watchdog.stage(f"waiting for all {world} processes to meet at {place}"),
        ):
            yield
    except RuntimeError as error:
        if not isinstance(error, DistError) and "gloo" not in str(error).lower():
            raise
        if isinstance(error, DistBackendError) and not re.search("ncclSystemError|ncclRemoteError", str(error)):
            raise  # not of the network: two ranks on one GPU, a driver... which the same command does not mend
        why = str(error).splitlines()[0].rstrip(".")
        lost = LostRankError(
            f"rank {rank} does not find all {world} processes at {place}: {why}; see that each was started and reaches this "
            "address, then run the same command again"
        )
        tell_launcher(f"{type(lost).__name__}: {lost}", RESUMES)
        raise lost from error
