"""The gradient of a step is that of its global batch, whatever share of it each rank and micro-batch has."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.corpora import documents, write_shard, write_tiny_bert
from tests.forks import ENVIRONMENT, trainers

# One step in float64 with an optimizer that keeps the gradients of the first rank instead of taking a step.
PROGRAM = """
import os
import sys
from dataclasses import replace
from pathlib import Path
import torch
from safetensors.torch import save_file
from stream_pretrain.training.start import model as start_model
from stream_pretrain.training.start.setup import set_up
from stream_pretrain.config import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.training.steps.loop import training_steps
from stream_pretrain.training.state.parallelism import accelerator_for
from stream_pretrain.training.ranks.signals import StopRequest
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.files.run_directory import RunDirectory
from stream_pretrain.training.ranks.watchdog import Watchdog

torch.set_default_dtype(torch.float64)
torch.nn.functional.cross_entropy, cross_entropy = (
    lambda logits, *rest, **more: cross_entropy(logits.double(), *rest, **more), torch.nn.functional.cross_entropy
)
start_model.PretrainingModel = lambda model, sources: PretrainingModel(model.double(), sources)
corpus, model, out, kept = sys.argv[1:]
config = Config(
    data=DataConfig(dataset=corpus, sequence_length=32, workers=0, lanes=4, window_bytes=4096, packing="none"),
    model=ModelConfig(config=model, tokenizer=model),
    train=TrainConfig(max_steps=1, global_batch_size=4, micro_batch_size=2, precision="fp32", max_grad_norm=1e9),
    run=RunConfig(output_dir=out, wandb="disabled"),
)
accelerator = accelerator_for(config)
ranks = Ranks(accelerator.process_index, accelerator.num_processes)
stop = StopRequest()
directory = RunDirectory(Path(out), [], print)
directory.path.mkdir(exist_ok=True)
setup = set_up(config, [], accelerator, ranks, Progress(None), stop, directory)

class Keep:
    param_groups = [{}]
    def step(self):
        if ranks.is_first:
            found = {name: parameter.grad for name, parameter in setup.parallel.bare.model.named_parameters()}
            save_file({name: gradient.contiguous() for name, gradient in found.items()}, Path(kept) / "gradients.safetensors")
    def zero_grad(self): ...

with StepStream(setup.plan, setup.cursors, rank=ranks.index, world=ranks.world) as stream:
    setup = replace(setup, parallel=replace(setup.parallel, optimizer=Keep()))
    [step] = training_steps(setup, stream, Watchdog(ranks, print))
    labels = int((step.rows_seen.trained.labels >= 0).sum())
Path(kept, f"labels-of-rank-{ranks.index}").write_text(f"{labels} of {step.labels}")
os._exit(0)  # a thread of gloo that lets go of a tensor while the interpreter ends would abort the process
"""


def test_two_ranks_with_one_micro_batch_have_the_gradient_of_one_rank_with_two(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i, longest in enumerate((2, 28, 2, 28)):  # a document a row: some rows have few labels
        write_shard(corpus / f"s{i}", documents(40, seed=i, longest=longest), "plain")
    model = write_tiny_bert(tmp_path / "model", dropout=0.0)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    labels, gradients = {}, {}
    for world, launcher in ((1, []), (2, ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"])):
        kept = tmp_path / f"{world}"
        kept.mkdir()
        arguments = [str(program), str(corpus), str(model), str(tmp_path / f"out{world}"), str(kept)]
        done = trainers().run([*launcher, *arguments], ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        labels[world] = [(kept / f"labels-of-rank-{rank}").read_text() for rank in range(world)]
        gradients[world] = load_file(kept / "gradients.safetensors")
    assert labels[1] == ["22 of 22"]
    assert labels[2] == ["15 of 22", "7 of 22"], "uneven, or an average of averages would pass"
    assert gradients[1].keys() == gradients[2].keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients[1].values())
    for name, gradient in gradients[1].items():
        assert gradient.dtype == torch.float64
        torch.testing.assert_close(gradients[2][name], gradient, rtol=1e-6, atol=1e-7 * largest, msg=name)
