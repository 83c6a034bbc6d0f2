"""What a user is told at the start about the machine."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stream_pretrain.errors import ConfigError
from stream_pretrain.training.files.run_directory import RunDirectory
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import stop_on_signals
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.start import setup
from stream_pretrain.training.start.setup import set_up
from stream_pretrain.training.state.parallelism import accelerator_for
from tests.corpora import documents, write_shard
from tests.integration.jobs import tiny_options
from tests.training.runs import prepared, run_here, tiny_run


@pytest.mark.parametrize(("visible", "told"), [(0, False), (1, False), (8, True)])
def test_one_line_says_how_to_use_all_gpus_where_some_are_idle(
    visible: int, told: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "s", documents(50), "plain")
    config = tiny_run(tmp_path, model, tmp_path / "out", max_steps=1)
    said = io.StringIO()
    with stop_on_signals() as stop, RunDirectory.own(tmp_path / "out", [], lambda _: None) as out:
        accelerator = accelerator_for(config)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
        set_up(config, [], accelerator, Ranks(0, 1), Progress(said), stop, out)
    line = (
        "warning: 8 GPUs are visible, 1 used; to use all: torchrun --nproc-per-node 8 -m stream_pretrain and the same options"
    )
    assert (line in said.getvalue().splitlines()) is told
    assert ("GPUs are visible" in said.getvalue()) is told


@pytest.mark.parametrize(("ranks", "workers", "told"), [(4, 0, False), (3, 1, False), (2, 2, True)])
def test_more_data_workers_than_cores_are_named(
    ranks: int, workers: int, told: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "s", documents(50), "plain")
    config = tiny_run(tmp_path, model, tmp_path / "out", max_steps=1)
    config = replace(config, data=replace(config.data, workers=workers))
    said = io.StringIO()
    with stop_on_signals() as stop, RunDirectory.own(tmp_path / "out", [], lambda _: None) as out:
        accelerator = accelerator_for(config)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(3))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        set_up(config, [], accelerator, Ranks(0, 1), Progress(said), stop, out)
    line = "warning: 4 data workers on a machine with 3 cores: fewer --workers may be faster"
    assert (line in said.getvalue().splitlines()) is told
    assert ("data workers on a machine" in said.getvalue()) is told


@pytest.mark.parametrize(("objective", "needed"), [("mlm", 4), ("clm", 3)])
def test_rows_too_short_for_a_label_are_refused(objective: str, needed: int, model: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(50), "plain")
    config = tiny_run(tmp_path, model, tmp_path / "out", max_steps=1)
    for length in (2, needed - 1):
        short = replace(
            config, data=replace(config.data, sequence_length=length), objective=replace(config.objective, name=objective)
        )
        with (
            pytest.raises(ConfigError, match=rf"--sequence-length {length} is too short .*; give at least {needed}$"),
            prepared(short),
        ):
            pass


def test_debug_shows_what_caused_an_error(model: Path, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s", documents(200), "gz")
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2 :] = b"\xff" * (len(damaged) - len(damaged) // 2)
    shard.write_bytes(damaged)
    done = run_here([*tiny_options(shard, model, tmp_path / "out", "--max-steps=1000"), "--debug"])
    assert done.returncode == 1
    assert "\nzlib.error: Error -3 while decompressing data" in done.stderr
    assert "The above exception was the direct cause of the following exception:" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_a_lack_of_memory_before_the_first_step_is_no_matter_of_the_micro_batch(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(setup, "ready_to_train", no_room)
    shard = write_shard(tmp_path / "s", documents(200), "plain")
    done = run_here(tiny_options(shard, model, tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: out of memory before the first step: see what else uses this machine and its devices, or give a smaller model"
    )
