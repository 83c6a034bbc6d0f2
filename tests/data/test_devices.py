"""The rows of a step on the device that trains on them: those of the lanes, however far the host is ahead of the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stream_pretrain import TokenStream
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import first_cursors
from stream_pretrain.data.rows.batches import memory_for, micro_batches
from tests.corpora import documents, write_shard
from tests.data.plans import TOKENIZER, plan_for

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA knows")),
]
BEHIND = 20_000_000
"""Cycles for which a GPU waits in each step, about 10 ms: the host is ahead by many steps, and its memory is used again."""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for number, count in enumerate((150, 300, 60)):
        write_shard(tmp_path / f"s{number}", documents(count, seed=number), "zst-multi")
    return tmp_path


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")


def steps_on(device: torch.device, plan: StreamPlan, workers: int) -> list[list[Tensor]]:
    """The tensors of all batches of each step, on the device until the last step was read."""
    steps = []
    cursors = first_cursors(plan.layout.lanes, len(plan.sources))
    with StepStream(plan, cursors, workers=workers, memory=memory_for(device)) as stream:
        for number, step in enumerate(stream):
            if not len(step.trained):
                break
            if device.type == "cuda":
                torch.cuda._sleep(BEHIND)
                if number == 1:  # memory is taken in the first step
                    torch.cuda.set_sync_debug_mode("error")
            batches = micro_batches(step.trained, 3, 3, plan.encoder.pad, device)
            steps.append([tensor for batch in batches for tensor in vars(batch).values()])
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    return [[tensor.cpu() for tensor in step] for step in steps]


@pytest.mark.usefixtures("waiting_is_an_error")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # said by the first call
@pytest.mark.parametrize("device", DEVICES)
def test_every_step_of_two_epochs_reaches_the_device_as_the_lanes_gave_it(corpus: Path, device: str) -> None:
    plan = plan_for(corpus, max_epochs=2, max_steps=None, lanes=8)  # lanes end one by one: their last steps are dealt again
    expected = steps_on(torch.device("cpu"), plan, workers=0)
    found = steps_on(torch.device(device), plan, workers=2)
    assert len(found) == len(expected) > 100
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(tensor, wanted) for tensor, wanted in zip(one, other, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_a_token_stream_gives_its_batches_on_the_device(corpus: Path, device: str) -> None:
    found, expected = (
        list(
            TokenStream(
                f"{corpus}/*",
                TOKENIZER,
                packing="none",
                sequence_length=64,
                global_batch_size=8,
                micro_batch_size=4,
                max_steps=20,
                workers=workers,
                device=on,
            )
        )
        for on, workers in ((device, 2), ("cpu", 0))
    )
    assert len(found) == len(expected) == 40
    for batch, other in zip(found, expected, strict=True):
        assert batch.keys() == other.keys()
        for name, tensor in batch.items():
            assert tensor.device.type == device
            assert torch.equal(tensor.cpu(), other[name])
