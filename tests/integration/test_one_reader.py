"""The first rank reads a checkpoint for all: the others have what is in it, and need not even see it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.corpora import documents, write_shard, write_tiny_bert
from tests.integration.jobs import START_SECONDS, started, tiny_options
from tests.training.checkpoints import signed
from tests.training.runs import run_here

BLIND = """
import os, sys
from safetensors.torch import save_file
from stream_pretrain import cli
from stream_pretrain.commands import train
from stream_pretrain.training.state.model_state import optimizer_tensors

rank, folder, set_up = int(os.environ["RANK"]), os.getcwd(), train.set_up

def told(*arguments):
    setup = set_up(*arguments)
    state = optimizer_tensors(setup.parallel.optimizer, setup.parallel.bare.model.named_parameters())
    weights, said = setup.parallel.export().weights, repr((setup.totals, setup.cursors))
    save_file({**weights, **state}, f"{folder}/had.{rank}", {"said": said})
    return setup

train.set_up = told
if rank > 0:
    os.chdir("/")  # where the OUT that is named is not
sys.exit(cli.main())
"""


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those of a run that has a checkpoint of step 3, in a folder that is named relative to this one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    write_shard(tmp_path / "corpus" / "s", documents(120), "plain")
    (tmp_path / "blind.py").write_text(BLIND)
    model = write_tiny_bert(tmp_path / "model")
    done = run_here(tiny_options(tmp_path / "corpus", model, Path("out"), "--max-steps=3"))
    assert done.returncode == 0, done.stderr
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "blind.py"]
    return [*torchrun, *tiny_options(tmp_path / "corpus", model, Path("out"), "--max-steps=4")]


def test_a_rank_that_does_not_see_the_checkpoint_has_what_is_in_it(arguments: list[str], tmp_path: Path) -> None:
    with started(arguments, tmp_path / "log", forked=True) as running:
        assert running.wait(START_SECONDS) == 0, running.stderr
    saved = tmp_path / "out" / "checkpoints" / "step-00000003"
    expected = {**load_file(saved / "model.safetensors"), **load_file(saved / "optimizer.safetensors")}
    assert len(expected) > 100
    for rank in (0, 1):
        had = load_file(tmp_path / f"had.{rank}")
        assert had.keys() == expected.keys()
        assert all(torch.equal(had[name], tensor) for name, tensor in expected.items())
    heads = [(tmp_path / f"had.{rank}").read_bytes()[:200_000] for rank in (0, 1)]
    assert heads[0] == heads[1], "totals and cursors"
    assert b"Totals(step=3" in heads[0]


@pytest.mark.parametrize("file", ["model", "optimizer"])
def test_what_the_first_rank_refuses_ends_all_of_them_with_its_line(file: str, arguments: list[str], tmp_path: Path) -> None:
    saved = tmp_path / "out" / "checkpoints" / "step-00000003"
    tensors = load_file(saved / f"{file}.safetensors")
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, saved / f"{file}.safetensors")
    signed(saved)
    with started(arguments, tmp_path / "log", forked=True) as running:
        assert running.wait(START_SECONDS) != 0
    assert running.errors() == [
        f"error: out/checkpoints/step-00000003/{file}.safetensors has no {lost}: it belongs to another model"
    ]
