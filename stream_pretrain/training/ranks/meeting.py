"""How the ranks of a run find each other: where one is missing, the others say so and do not fail with a traceback."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import (  # type: ignore[attr-defined]
    DistBackendError,
    DistError,
    PrefixStore,
    TCPStore,
    init_process_group,
)

from stream_pretrain.errors import LostRankError
from stream_pretrain.exit_codes import RESUMES
from stream_pretrain.terminal import say
from stream_pretrain.training.ranks.launcher import tell_launcher
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.watchdog import Watchdog

MEETING_SECONDS = 30.0
"""Ranks that are started together have found each other by then."""
_QUESTION, _ANSWER = "stream_pretrain: name of the start, asked by rank ", "stream_pretrain: answer to "
_POLL_SECONDS = 0.05


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


def connect(backend: str, timeout: timedelta) -> None:
    """Connect the ranks of torchrun, also those that it starts again; does nothing under other launchers.

    Its store outlives a restart (`--max-restarts`, another number of machines) with the addresses of the ranks before, which
    the new ones would take for each other's. So they agree on a part of it that is new.
    Raises: DistError; ValueError where a variable is malformed.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("WORLD_SIZE", "1") == "1":
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    own_part = PrefixStore(_name_of_start(store, rank, world, timeout), store)
    init_process_group(backend, store=own_part, rank=rank, world_size=world, timeout=timeout)


def _name_of_start(store: TCPStore, rank: int, world: int, timeout: timedelta) -> str:
    """A name that the ranks of this start have in common, and no other start: the first rank answers those that ask for it.

    It goes on to answer until all have joined, since what it finds first may have been asked by a rank of an earlier start.
    """
    name = secrets.token_hex(8)
    if rank:
        store.set(f"{_QUESTION}{rank}", name)
        name = store.get(f"{_ANSWER}{name}").decode()
        store.set(f"{name}/{rank}", "")
        return name
    deadline = time.monotonic() + timeout.total_seconds()
    missing = [str(other) for other in range(1, world)]
    while missing := [other for other in missing if not store.check([f"{name}/{other}"])]:
        for other in missing:
            if store.check([f"{_QUESTION}{other}"]):
                store.set(f"{_ANSWER}{store.get(f'{_QUESTION}{other}').decode()}", name)
        if time.monotonic() > deadline:
            store.wait([f"{name}/{other}" for other in missing], timedelta(seconds=1))  # raises
        time.sleep(_POLL_SECONDS)
    return name
