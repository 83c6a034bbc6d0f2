"""Runs of the command line that meet faults, and what is held against the run that meets none.

A run takes a second: its processes are forks, in front of whose libc stands `injection.c`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest

from tests.corpora import documents, write_shard, write_tiny_bert
from tests.forks import ENVIRONMENT, TRAINING, Fork, Forks

T = TypeVar("T")
STEPS = 6
IN_A_ROW = 4
"""Faults of one run, each in a later part of it: the same command is started anew after each."""
WHOLE_SECONDS = 300.0
"""No deadline: a run that is still there has hung."""

_TIMINGS = re.compile("second|data_wait|memory|mfu")


@dataclass(frozen=True)
class Fault:
    """What some calls that change files of OUT meet; `injection.c` says what there is."""

    does: str
    calls: tuple[str, ...] = ()
    """None: all."""
    name: str = "*"
    """Pattern of the path below OUT."""
    first: int = 1
    last: int = 1
    error: int = 0
    signal: int = 0
    process: int = 0
    milliseconds: int = 0
    trace: Path | None = None

    def variables(self, out: Path) -> dict[str, str]:
        return {
            "FAULT_BELOW": str(out),
            "FAULT_DOES": self.does,
            "FAULT_CALLS": "".join(f"{call} " for call in self.calls),
            "FAULT_NAME": self.name,
            "FAULT_FIRST": str(self.first),
            "FAULT_LAST": str(self.last),
            "FAULT_ERRNO": str(self.error),
            "FAULT_SIGNAL": str(self.signal),
            "FAULT_PROCESS": str(self.process),
            "FAULT_MILLISECONDS": str(self.milliseconds),
            "FAULT_TRACE": str(self.trace or ""),
        }

    def __str__(self) -> str:
        number = f" {self.first}" if self.first == self.last else f"s from {self.first}"
        return f"{self.does} at {'/'.join(self.calls) or 'call'}{number} of {self.name}"


@dataclass(frozen=True)
class Point:
    """A call that changes a file of OUT: the n-th of its name on that path."""

    call: str
    name: str
    """Pattern of the path below OUT."""
    number: int

    def meets(self, does: str, **more: int) -> Fault:
        return Fault(does, (self.call,), self.name, self.number, self.number, **more)


@dataclass(frozen=True)
class Inputs:
    """What the runs of all tests read."""

    corpus: Path
    model: Path
    end: str = f"--max-steps={STEPS}"
    """The option that ends them."""

    def arguments(self, out: Path) -> list[str]:
        return [
            *(f"--dataset={self.corpus}", f"--model.config={self.model}", f"--model.tokenizer={self.model}"),
            *(f"--output-dir={out}", self.end, "--save-every=2", "--run.keep-last=1", "--log-every=1"),
            *("--sequence-length=32", "--global-batch-size=4", "--micro-batch-size=2", "--lanes=2", "--workers=0"),
            *("--eval-every=3", "--data.heldout-fraction=0.1", "--eval.documents=4", "--run.wandb=disabled"),
            *("--data.window-bytes=1000", "--data.max-bad-fraction=0.5"),
        ]


def write_inputs(folder: Path) -> Inputs:
    """A tiny BERT, and shards of which one has lines that are no documents, in more than one window."""
    inputs = Inputs(folder / "corpus", folder / "model")
    inputs.corpus.mkdir()
    for number, style in enumerate(["plain", "zst-multi", "gz"]):
        texts: list[str | None] = [*documents(40, seed=number, longest=40)]
        texts[1:1] = [None]  # named in quarantine.jsonl whichever shard is read first
        write_shard(inputs.corpus / f"s{number}", texts, style)  # type: ignore[arg-type]
    shard = inputs.corpus / "s0.jsonl"
    lines = shard.read_bytes().splitlines(keepends=True)
    for place, bad in ((38, b"{\n"), (20, b'{"id": 1}\n'), (11, b"[1]\n"), (3, b"no JSON\n")):
        lines.insert(place, bad)
    shard.write_bytes(b"".join(lines))
    write_tiny_bert(inputs.model)
    return inputs


@cache
def library() -> Path:
    """`injection.c`, compiled; the test that asks for it is skipped where there is no compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("needs a C compiler: cc, or what CC names")
    source = Path(__file__).with_name("injection.c")
    library = Path(tempfile.mkdtemp()) / "injection.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@cache
def forks() -> Forks:
    return Forks({**ENVIRONMENT, "LD_PRELOAD": str(library())}, *TRAINING, shared_as="with-faults")


def run(
    inputs: Inputs, out: Path, fault: Fault | None = None, *more: str, program: Sequence[str] = ("-m", "stream_pretrain")
) -> subprocess.CompletedProcess[str]:
    """The command, to its end or to that of its process."""
    variables = {} if fault is None else fault.variables(out)
    return forks().run([*program, *inputs.arguments(out), *more], {**ENVIRONMENT, **variables}, timeout=WHOLE_SECONDS)


def assert_goes_on(
    inputs: Inputs, out: Path, expected: Mapping[str, object], history: Sequence[object], stops: bool = False
) -> None:
    """The same command without a fault ends well, and leaves what the run that met none has left."""
    done = run(inputs, out)
    assert done.returncode == 0, "\n".join([*map(str, history), done.stderr])
    if "already finished" in done.stderr:  # it touches nothing: what could not be pruned before stays
        there = {path.relative_to(out).as_posix() for path in out.rglob("*")}
        expected = {name: content for name, content in expected.items() if name in there or not name.startswith("cursors/")}
        stops = True
    assert_same(out, expected, history, stops)


def run_ranks(inputs: Inputs, out: Path, fault: Fault | None = None, victim: int = 0) -> tuple[list[int], str]:
    """The command on two ranks that talk over gloo, to the end of both: exit codes, and what is said.

    fault: what the first rank meets, which alone changes files; victim: the rank that gets the signal, if it is one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {**ENVIRONMENT, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with ExitStack() as stack:
        said = stack.enter_context(tempfile.TemporaryFile("w+"))
        ranks: dict[int, Fork] = {}
        for rank in (1, 0):
            variables = {**job, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            if rank == 0 and fault is not None:
                variables |= replace(fault, process=ranks[1].pid if victim else 0).variables(out)
            ranks[rank] = forks().start(["-m", "stream_pretrain", *inputs.arguments(out)], variables, said)
            stack.callback(ranks[rank].wait)
            stack.callback(ranks[rank].kill)
        codes = [ranks[rank].wait(WHOLE_SECONDS) for rank in (0, 1)]
        said.seek(0)
        return codes, said.read()


def kept(out: Path) -> dict[str, object]:
    """All that is in OUT, by its path, but for what depends on the time, and for how the run came to its end."""
    found: dict[str, object] = {}
    for path in out.rglob("*"):
        name = path.relative_to(out).as_posix()
        if path.is_dir():
            found[name] = "a folder"
        elif name == "metrics.jsonl":
            records = map(json.loads, path.read_text().splitlines())
            found[name] = [{key: value for key, value in record.items() if not _TIMINGS.search(key)} for record in records]
        elif name == "run.json":
            found[name] = {key: json.loads(path.read_text()).get(key) for key in ("state", "step", "max_steps", "parent")}
        else:
            found[name] = path.read_bytes()
    return found


def assert_same(out: Path, expected: Mapping[str, object], history: Sequence[object], stops: bool = False) -> None:
    """OUT holds what the run that met no fault has left, bit by bit; stops: and what is left of other checkpoints."""
    more = ("cursors/", "checkpoints/step-") if stops else ()
    found = {name: content for name, content in kept(out).items() if name in expected or not name.startswith(more)}
    different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    assert not different, "\n".join(
        [
            *("after", *map(str, history), "differ:"),
            *(f"  {name}: {_short(found.get(name))} instead of {_short(expected.get(name))}" for name in different),
        ]
    )


def _short(content: object) -> str:
    text = "nothing" if content is None else repr(content)
    return text if len(text) < 600 else f"{text[:600]}…"


def points(inputs: Inputs, out: Path) -> list[Point]:
    """All calls by which the command, run to its end, changes files of OUT, in their order."""
    trace = out.with_suffix(".trace")
    done = run(inputs, out, Fault("nothing", trace=trace))
    assert done.returncode == 0, done.stderr
    return list(_points(trace.read_text().splitlines()))


def _points(lines: Sequence[str]) -> Iterator[Point]:
    seen: Counter[tuple[str, str]] = Counter()
    for line in lines:
        call, _, name = re.sub(r"/\.tmp\w{6}$", "/.tmp*", line).partition(" ")  # safetensors draws its temporary names
        seen[call, name] += 1
        yield Point(call, name, seen[call, name])


def rows_of(faults: Sequence[T]) -> list[Sequence[T]]:
    """The faults of each run, in the order in which it meets them; given in that order."""
    rows = -(-len(faults) // IN_A_ROW)
    return [faults[row::rows] for row in range(rows)]
