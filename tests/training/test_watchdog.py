"""A stage that lasts too long is reported by rank and name, again when that has doubled, and nothing is ended."""

from __future__ import annotations

import queue
import re
import threading

from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.watchdog import Watchdog


def test_a_stage_that_lasts_is_named_with_its_rank_at_doubling_intervals() -> None:
    said: queue.Queue[str] = queue.Queue()
    with Watchdog(Ranks(3, 8), said.put, seconds=0.2) as watchdog, watchdog.stage("waiting for data"):
        reports = [said.get(timeout=120) for _ in range(3)]
    for report, least in zip(reports, (0.2, 0.4, 0.8), strict=True):
        found = re.fullmatch(r"rank 3 has been waiting for data for ([\d.]+) s", report)
        assert found is not None
        assert float(found[1]) >= least


def test_the_outer_stage_counts_anew_after_an_inner_one() -> None:
    said: queue.Queue[str] = queue.Queue()
    with Watchdog(Ranks(), said.put, seconds=0.2) as watchdog, watchdog.stage("computing"):
        with watchdog.stage("saving"):
            assert "saving" in said.get(timeout=120)
        stage = watchdog._stage
        assert stage is not None
        assert stage[0] == "computing"
        assert "this process has been computing for" in said.get(timeout=120)


def test_short_stages_and_no_stage_at_all_are_not_reported() -> None:
    said: queue.Queue[str] = queue.Queue()
    with Watchdog(Ranks(), said.put, seconds=600) as watchdog:
        for _ in range(100):
            with watchdog.stage("waiting for data"):
                pass
    assert said.empty()
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]
