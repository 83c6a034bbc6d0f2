"""MFU counts the work that the loop does: one step against torch's own counter."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stream_pretrain.model import packed_attention
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.steps.metrics import StepMetrics, useful_flops
from tests.corpora import documents, write_shard, write_tiny_bert
from tests.training.runs import prepared, steps_of, tiny_run


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_the_work_of_a_step_is_what_mfu_takes_it_for(objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One call a document, in plain matrix products: as much attention as the kernel for packed rows computes on a GPU.
    monkeypatch.setattr(packed_attention, "LONGEST_MASKED_ROW", 0)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_shard(corpus / "s", documents(400, longest=40), "plain")
    model = write_tiny_bert(tmp_path / "model", dropout=0.0)
    config = tiny_run(corpus, model, tmp_path / "out", max_steps=1, global_batch_size=32, micro_batch_size=8)
    config = replace(config, objective=replace(config.objective, name=objective))
    config = replace(config, data=replace(config.data, lanes=2, window_bytes="auto"))
    with prepared(config) as setup, FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        (step,) = steps_of(setup)
        expected = useful_flops(setup.parallel.bare.model.config, step.rows_seen.trained)
    assert step.segments > 2 * step.rows
    filled = step.tokens / (step.rows * config.data.sequence_length)
    assert filled > 0.9
    # Padding is computed as well, and is no use to anyone: MFU leaves it out.
    assert expected / filled == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_steps_since_the_last_line_of_metrics_hold_none_of_their_rows(model: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_shard(corpus / "s", documents(100), "plain")
    config = tiny_run(corpus, model, tmp_path / "out", max_steps=3)
    with prepared(config) as setup:
        since_log = StepMetrics(setup.plan, setup.parallel.loaded.model, torch.device("cpu"), setup.ranks)
        rows = []
        for step in steps_of(setup):
            since_log.add(step)
            rows.append(weakref.ref(step.rows_seen))
        del step
        assert [seen() for seen in rows] == [None] * 3
        assert since_log.read(setup.totals, setup.cursors)["train/tokens"] == setup.totals.tokens


@dataclass(frozen=True)
class Threads(Ranks):
    """Ranks that are threads; one that gathers alone breaks the barrier, where a collective would hang."""

    barrier: threading.Barrier = field(kw_only=True)
    values: dict[int, Any] = field(kw_only=True)

    def gather(self, value: Any) -> list[Any]:
        self.values[self.index] = value
        self.barrier.wait(timeout=120)
        return [self.values[index] for index in range(self.world)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"], (2e14 + 1e14) / 2.0 / (989e12 + 312e12)),
        (["NVIDIA H100 80GB HBM3", "a GPU of another make"], None),
        (["a GPU of another make", "NVIDIA H100 80GB HBM3"], None),
    ],
)
def test_ranks_with_different_gpus_gather_together(
    names: Sequence[str], expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 2**30)
    barrier, values = threading.Barrier(2), dict[int, Any]()
    model: Any = SimpleNamespace(config=None)

    def hardware(rank: int) -> dict[str, float | int]:
        ranks = Threads(rank, 2, barrier=barrier, values=values)
        since_log = StepMetrics(None, model, torch.device("cuda", rank), ranks)  # type: ignore[arg-type]
        return since_log._hardware([2e14, 1e14][rank], seconds=2.0)

    with ThreadPoolExecutor(2) as pool:
        measured = list(pool.map(hardware, range(2)))
    assert [metric.get("train/mfu") for metric in measured] == [expected, expected]
    assert measured[0]["train/memory_gib"] == 1.0
