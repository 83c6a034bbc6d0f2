"""What `gpu_check` proves and measures: a part gives its figures as it finds them, and raises where one is wrong."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import runpy
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from timed_training import Setting, config_of, prepared_run, steps_of, timed, write_corpus, write_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from stream_pretrain.config import EvalConfig
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.rows.batches import Batch
from stream_pretrain.model.packed_attention import packed_attention
from stream_pretrain.training.start.setup import Setup
from stream_pretrain.training.state.background_writer import BackgroundWriter
from stream_pretrain.training.steps.saving import begin_save
from stream_pretrain.verification.comparing import compared
from stream_pretrain.verification.kill_moments import KillMoment
from stream_pretrain.verification.proof import ROUNDING
from stream_pretrain.verification.recorded_steps import RecordedStep
from stream_pretrain.verification.starts import WatchedStart, run_start

Figures = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
LARGEST_ERROR = 0.02
"""Of bfloat16 beside float32, as a share: the type has 8 bits of precision."""
KERNELS, LETTERS = 10, 50
"""How many are shown, and how much of their names."""
SYNCHRONISED = "called a synchronizing CUDA operation"


def base(folder: str, architecture: str, sequence_length: int, batch: int) -> Setting:
    """BERT-base or ModernBERT-base on a GPU, whose tokenizer is that of BERT-base."""
    layers, vocabulary = (12, 30_522) if architecture == "bert" else (22, 50_368)
    return Setting(
        folder=folder, cuda=True, megabytes=20, vocabulary=vocabulary, layers=layers, hidden=768,
        sequence_length=sequence_length, batch=batch, warmup=8, steps=30, workers=4, architecture=architecture,
    )  # fmt: skip


def tiny(setting: Setting) -> Setting:
    """The same on a CPU in seconds: the same code, figures that say nothing."""
    return replace(
        setting, cuda=False, megabytes=0.3, vocabulary=1000, layers=2, hidden=32, batch=4, warmup=1, steps=2,
        sequence_length=min(setting.sequence_length, 256), workers=1,
    )  # fmt: skip


def prepare(setting: Setting) -> Iterator[Figures]:
    """The corpus and the tokenizer of all parts."""
    write_corpus(setting)
    yield {"corpus_megabytes": setting.megabytes}


# --- Proofs ---------------------------------------------------------------------------------------------------------


class _Outcomes:
    """Counts what becomes of tests."""

    def __init__(self) -> None:
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1


def tests(setting: Setting) -> Iterator[Figures]:
    """The tests that only a GPU can run; on a CPU they skip."""
    outcomes = _Outcomes()
    # In this process, and whatever a version of torch warns of: it is what is computed that counts here.
    options = ["--numprocesses=0", "-W", "default", "-p", "no:cacheprovider", "-k", "cuda"]
    files = [str(ROOT / "tests" / name) for name in ("model/test_cuda.py", "data/test_devices.py")]
    code = pytest.main([*options, *files], plugins=[outcomes])
    yield dict(outcomes.counts)
    if code != pytest.ExitCode.OK:
        sys.exit(f"pytest ended with {int(code)}, {outcomes.counts['failed']} tests failed")
    if setting.cuda and (outcomes.counts["skipped"] or not outcomes.counts["passed"]):
        sys.exit(f"{outcomes.counts['passed']} tests passed, {outcomes.counts['skipped']} did not run")


@dataclass(frozen=True)
class Attended:
    """An attention layer, and the documents in its rows."""

    name: str
    lengths: Sequence[int]
    """Of documents that fill rows of `row` positions."""
    row: int = 512
    heads: int = 12
    key_heads: int = 12
    size: int = 64
    causal: bool = False
    window: int | None = None
    """As transformers gives it: one more than a token sees on either side."""


SHORT = (1, 7, 128, 300, 76, 512, 511, 1, 200, 312)
LONG = (8192, 1, 127, 128, 129, 4000, 3807)
LAYERS = (
    Attended("BERT-base", SHORT),
    Attended("ModernBERT-base, window", SHORT, window=65),
    Attended("ModernBERT-base, rows of 8192", LONG, row=8192),
    Attended("ModernBERT-base, rows of 8192, window", LONG, row=8192, window=65),
    Attended("causal", SHORT, causal=True),
    Attended("causal, GQA", SHORT, heads=8, key_heads=2, size=128, causal=True),
    Attended("causal, GQA, window", SHORT, heads=8, key_heads=2, size=128, causal=True, window=100),
)


def attention(setting: Setting) -> Iterator[Figures]:
    """Packed attention in bfloat16, and its gradient, beside the formula in float32 on each document alone."""
    worst = 0.0
    for layer in LAYERS:
        if not setting.cuda:
            lengths = [length for length in layer.lengths if length < 200]
            layer = replace(layer, row=sum(lengths), lengths=lengths, heads=2 * layer.heads // layer.key_heads, key_heads=2)
        errors = attention_errors(layer, "cuda" if setting.cuda else "cpu")
        yield {layer.name: {name: float(f"{error:.2g}") for name, error in errors.items()}}
        worst = max(worst, *errors.values())
    yield {"largest_error": float(f"{worst:.2g}")}
    if not worst < LARGEST_ERROR:
        sys.exit(f"packed attention is off by {worst:.2g}, more than {LARGEST_ERROR}")


def attention_errors(layer: Attended, device: str) -> dict[str, float]:
    """Largest error of a document in the output and the three gradients, as a share of what is usual in it; NaN is infinite."""
    generator = torch.Generator(device).manual_seed(0)
    rows = sum(layer.lengths) // layer.row
    assert rows * layer.row == sum(layer.lengths)
    shapes = [(rows, heads, layer.row, layer.size) for heads in (layer.heads, layer.key_heads, layer.key_heads)]
    states = [torch.randn(shape, device=device, generator=generator).to(torch.bfloat16) for shape in shapes]
    weights = torch.randn(rows, layer.row, layer.heads, layer.size, device=device, generator=generator)
    boundaries = [0, *itertools.accumulate(layer.lengths)]

    inputs = [state.clone().requires_grad_() for state in states]
    output, _ = packed_attention(
        nn.Identity(),
        *inputs,
        None,
        is_causal=layer.causal,
        sliding_window=layer.window,
        cu_seq_lens_q=torch.tensor([*boundaries, boundaries[-1], boundaries[-1]], dtype=torch.int32, device=device),
    )
    (output.float() * weights).sum().backward()
    found = [_by_token(output.detach().transpose(1, 2)), *(_by_token(state.grad) for state in inputs)]

    expected: list[list[Tensor]] = [[], [], [], []]
    flat, flat_weights = [_by_token(state) for state in states], weights.flatten(0, 1)
    for start, stop in pairwise(boundaries):
        alone = [state[start:stop].float().requires_grad_() for state in flat]
        of_document = _attention_of_one_document(*alone, layer)
        (of_document * flat_weights[start:stop]).sum().backward()
        for parts, part in zip(expected, (of_document.detach(), *(state.grad for state in alone)), strict=True):
            parts.append(part)
    errors = {}
    for name, tensor, parts in zip(("output", "query", "key", "value"), found, expected, strict=True):
        usual = float(torch.cat(parts).square().mean().sqrt())
        shares = [
            float((tensor[start:stop].float() - part).square().mean().sqrt()) / max(usual, float(part.square().mean().sqrt()))
            for (start, stop), part in zip(pairwise(boundaries), parts, strict=True)
        ]
        errors[name] = max(float("inf") if share != share else share for share in shares)
    return errors


def _by_token(states: Tensor) -> Tensor:
    """[B, H, L, D] to [B * L, H, D]."""
    return states.transpose(1, 2).flatten(0, 1)


def _attention_of_one_document(query: Tensor, key: Tensor, value: Tensor, layer: Attended) -> Tensor:
    """The formula; [T, H, D] each, float32."""
    key, value = (states.repeat_interleave(layer.heads // layer.key_heads, dim=1) for states in (key, value))
    index = torch.arange(len(query), device=query.device)
    distance = index[:, None] - index
    seen = distance >= 0 if layer.causal else torch.ones_like(distance, dtype=torch.bool)
    if layer.window is not None:
        seen = seen & (distance.abs() < layer.window)
    scores = torch.einsum("qhd,khd->hqk", query, key) / layer.size**0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(dim=-1), value)


def waits(setting: Setting) -> Iterator[Figures]:
    """How often the host waits for the device in a step of several micro-batches: once, eager and compiled."""
    wrong = []
    for mode, architecture in itertools.product(
        ("eager", "compiled"), ("bert", "modernbert")
    ):  # what is compiled takes longest
        few_layers = replace(setting, architecture=architecture, layers=min(3, setting.layers), batch=8, micro_batch=4)
        write_model(few_layers)
        with prepared_run(config_of(few_layers, compile_it=setting.cuda and mode == "compiled")) as (setup, stream):
            if mode == "compiled" and not setting.cuda:  # its graphs alone: the C++ for them takes minutes to compile
                setup.parallel.bare.compile(backend="aot_eager", dynamic=False)
            steps = steps_of(setup, stream)
            for _ in range(setting.warmup):  # kernels are compiled, memory is taken
                next(steps)
            counts = Counter(_synchronisations(partial(next, steps), setting.cuda) for _ in range(setting.steps))
        torch.compiler.reset()
        yield {f"{architecture}, {mode}": {str(count): steps for count, steps in counts.items()}}
        wrong += [f"{architecture}, {mode}: {dict(counts)}"] if setting.cuda and set(counts) != {1} else []
    if wrong:
        sys.exit(f"the host does not wait for the device once a step: {'; '.join(wrong)}")


def _synchronisations(call: Callable[[], object], cuda: bool) -> int | None:
    """How often a call waits for the GPU; None where there is none."""
    if not cuda:
        call()
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum(SYNCHRONISED in str(warning.message) for warning in caught)


def resume(setting: Setting) -> Iterator[Figures]:
    """A run that is killed and started again beside one that is not, each start a process: all rows, and the losses."""
    micro_batch = 8 if setting.cuda else 2
    few_layers = replace(setting, layers=min(3, setting.layers), batch=2 * micro_batch, micro_batch=micro_batch)
    write_model(few_layers)
    config = config_of(few_layers, compile_it=False)
    config = replace(
        config,
        data=replace(config.data, heldout_fraction=0.02, lanes=8),
        train=replace(config.train, max_steps=12),
        eval=EvalConfig(every=4, documents=20),
    )
    of_starts: dict[str, list[dict[int, RecordedStep]]] = {"undisturbed": [], "killed": []}
    # At step 9, the checkpoint of step 4 is written, perhaps that of step 8.
    with tempfile.TemporaryDirectory() as folder:
        for name, moment in (("undisturbed", None), ("killed", KillMoment("step", 9)), ("killed", None)):
            run = replace(config, run=replace(config.run, output_dir=f"{folder}/{name}", save_every=4))
            start = Path(folder, f"start-{len(of_starts[name])}-{name}")
            ended = run_start(WatchedStart(run, moment), start, _in_fork_of_this, deadline=0)  # that of the part counts
            if ended.fault is not None:
                sys.exit(f"{name}: {ended.fault}\n{(start / 'log.txt').read_text()}")
            of_starts[name].append(ended.steps)
            yield {f"{name}, first step after": round(ended.seconds_to_first_step or 0.0, 1)}
    tolerance = ROUNDING["bf16"] if setting.cuda else 0.0
    comparison = compared(of_starts["killed"], of_starts["undisturbed"][0], [], tolerance)
    yield {
        "steps": [len(steps) for steps in of_starts["killed"]],
        "rows_equal": comparison.rows_equal,
        "losses_differ_by": comparison.losses_differ_by,
    }
    if not comparison.rows_equal or not comparison.losses_equal:
        sys.exit(f"the run that was killed is another one: {comparison.to_json()}")


def _in_fork_of_this(command: Sequence[str], variables: Mapping[str, str], log: Path, _: float) -> int | None:
    """A `Launch` that imports nothing again."""
    start = multiprocessing.get_context("fork").Process(target=_run_python, args=(command, variables, log))
    start.start()
    start.join()
    return start.exitcode


def _run_python(command: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
    _, option, module, *arguments = command
    assert option == "-m"
    os.environ.update(variables)
    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


# --- Measurements ---------------------------------------------------------------------------------------------------


def train(setting: Setting) -> Iterator[Figures]:
    """Useful tokens a second, eager and then compiled, and the largest micro-batch (eager: compiled code takes less memory).

    That comes last: a GPU without memory may not answer as torch expects.
    """
    write_model(setting)
    yield {"architecture": setting.architecture, "rows": setting.batch, "sequence_length": setting.sequence_length}
    modes = ("eager", "compiled") if setting.cuda else ("eager",)  # on a CPU, what `waits` compiles is enough
    for mode in modes:
        with prepared_run(config_of(setting, compile_it=mode == "compiled")) as (setup, stream):
            yield {mode: _speed(setting, setup, stream)}
            if mode == modes[-1]:
                yield {f"{mode}, ms, calls": _kernels(setup, stream, setting.cuda)}
        _free_memory(setting.cuda)
    with prepared_run(config_of(setting, compile_it=False)) as (setup, stream):
        slots = next(stream).trained.slots
        yield {"largest_micro_batch": largest(partial(_fits, setup, setting, slots), setting.cuda)}


def _free_memory(cuda: bool) -> None:
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()


def _speed(setting: Setting, setup: Setup, stream: StepStream) -> Figures:
    if setting.cuda:
        torch.cuda.reset_peak_memory_stats()
    measured = timed(setting, setup, steps_of(setup, stream))
    assert measured.waiting_seconds is not None
    return {
        "tokens_per_second": round(measured.tokens / measured.wall_seconds),
        "mfu": measured.mfu,
        "data_wait_fraction": round(measured.waiting_seconds / measured.wall_seconds, 4),
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if setting.cuda else None,
        "slowest_step_over_median": measured.slowest_over_median,
        "tokens_a_segment": measured.tokens_a_segment,
    }


def _kernels(setup: Setup, stream: StepStream, cuda: bool) -> dict[str, tuple[float, int]]:
    """Milliseconds and calls in a step of the kernels that take longest, by the beginnings of their names."""
    steps = steps_of(setup, stream)
    next(steps)
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiled:
        next(steps)
        if cuda:
            torch.cuda.synchronize()
    found: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiled.key_averages():
        found[event.key[:LETTERS]] += event.self_device_time_total if cuda else event.self_cpu_time_total
        calls[event.key[:LETTERS]] += event.count
    return {"all": (round(sum(found.values()) / 1e3, 2), sum(calls.values()))} | {
        name: (round(microseconds / 1e3, 2), calls[name]) for name, microseconds in found.most_common(KERNELS)
    }


def largest(fits: Callable[[int], bool], limited: bool = True) -> int | None:
    """The last of 1, 2, 3, 4, 6, 8, 12, 16, ... rows that fits, of the first three where nothing is limited.

    None where not even one does.
    """
    powers = range(20 if limited else 1)
    sizes = [1, *itertools.chain.from_iterable((2 << power, 3 << power) for power in powers)]
    return max(itertools.takewhile(fits, sizes), default=None)


def _fits(setup: Setup, setting: Setting, slots: int, rows: int) -> bool:
    """Whether a step with one micro-batch of so many rows finds memory on the device."""
    try:
        _step(setup, _batch(setup.parallel.device, setting.sequence_length, slots, rows))
        found_memory = True
    except torch.OutOfMemoryError:
        found_memory = False
    setup.parallel.optimizer.zero_grad()
    _free_memory(setting.cuda)
    return found_memory


def _batch(device: torch.device, length: int, slots: int, rows: int) -> Batch:
    """Rows of one document each."""
    with device:
        positions = torch.arange(rows * slots) % (rows * length)
        return Batch(
            input_ids=torch.ones(rows, length, dtype=torch.int64),
            position_ids=torch.arange(length).repeat(rows, 1),
            cu_seq_lens=torch.arange(0, rows * length + 1, length, dtype=torch.int32),
            label_positions=positions,
            labels=torch.ones_like(positions),
            label_sources=torch.zeros_like(positions),
        )


def _step(setup: Setup, batch: Batch) -> None:
    loss, _, _ = setup.parallel.model(**vars(batch))
    setup.parallel.accelerator.backward(loss / len(batch.labels))
    setup.parallel.optimizer.step()


def save(setting: Setting) -> Iterator[Figures]:
    """How long a save blocks the training, and until it is on the disk; a first one allocates the memory for all."""
    write_model(setting)
    with prepared_run(config_of(setting, compile_it=False)) as (setup, stream):
        steps, blocking, writing = steps_of(setup, stream), [], []
        out = setup.out.path
        with BackgroundWriter(out, lambda *_: None, print, keep_last=1, keep_every=0) as writer:
            for _ in range(5 if setting.cuda else 2):
                next(steps)
                if setting.cuda:
                    torch.cuda.synchronize()  # the last update is not the save's
                began = time.perf_counter()
                begin_save(setup, writer)
                blocking.append(time.perf_counter() - began)
                writer.wait()
                writing.append(time.perf_counter() - began)
                yield {"saves": len(blocking)}
        stored = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    yield {
        "blocking_seconds": round(statistics.median(blocking[1:]), 4),
        "seconds_until_written": round(statistics.median(writing[1:]), 3),
        "gigabytes": round(stored / 1e9, 3),
    }
