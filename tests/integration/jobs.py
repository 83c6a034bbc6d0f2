"""Jobs of several real processes: torchrun and its ranks, none of which outlives a test."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.command_lines import with_last
from tests.forks import ENVIRONMENT, Fork, trainers, without_times

MARK = "STREAM_PRETRAIN_TEST_JOB"
"""The variable by which the processes of a job are known; those that are forks have its stderr."""

START_SECONDS = 240.0
"""What torch alone may take to import on a busy machine; not part of any deadline that is tested."""


class Job:
    """A started launcher; what it and its ranks write to stderr is in a file."""

    def __init__(self, process: subprocess.Popen[bytes] | Fork, output: Path, mark: str) -> None:
        self.process, self.output, self.mark = process, output, mark

    @property
    def stderr(self) -> str:
        return without_times(self.output.read_text(errors="replace"))

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition of the running job."""
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            assert self.process.poll() is None, self.stderr
            assert time.monotonic() < deadline, self.stderr
            time.sleep(0.05)

    def ranks(self) -> list[psutil.Process]:
        """The processes of the ranks, in their order: children of the launcher, or forks, which are named as ranks."""
        found = {}
        for process in self.processes():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                named, _, rank = process.name().partition(" ")
                if named == "rank" and os.getsid(process.pid) == process.pid:  # a data worker is in the session of its rank
                    found[int(rank)] = process
                elif process.ppid() == self.process.pid and "RANK" in process.environ():
                    found[int(process.environ()["RANK"])] = process
        return [found[rank] for rank in sorted(found)]

    def wait(self, seconds: float) -> int:
        """The exit code; every process of the job has ended then."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {seconds} s\n{self.stderr}") from None
        deadline = time.monotonic() + 60
        while left := self.processes():
            assert time.monotonic() < deadline, [process.cmdline() for process in left]
            time.sleep(0.05)
        return code

    def processes(self) -> list[psutil.Process]:
        """What lives of the job, also where its launcher is gone: ranks have sessions of their own."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # ended meanwhile, or not ours
                marked = process.environ().get(MARK) == self.mark or _stderr_of(process) == self.output
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def errors(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]


def _stderr_of(process: psutil.Process) -> Path | None:
    with suppress(OSError):
        return Path(f"/proc/{process.pid}/fd/2").readlink()
    return None


@contextmanager
def job(
    world: int,
    arguments: Sequence[str],
    output: Path,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = ("-m", "stream_pretrain"),
    *,
    forked: bool = True,
) -> Iterator[Job]:
    """Start `world` ranks of the command line; whatever is left of them at the end of the block is killed."""
    forwarded = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}", "--standalone", forwarded]
    with started([*torchrun, *program, *arguments], output, environment, forked=forked) as running:
        yield running


@contextmanager
def apart(world: int, arguments: Sequence[str], output: Path, program: str) -> Iterator[list[Job]]:
    """Start ranks that take themselves to be on machines of their own, each from a launcher of its own: of nobody here."""
    folder = output.with_suffix(".program")
    folder.mkdir()
    (folder / "program.py").write_text(f"import os\nfrom stream_pretrain.training.ranks import peers\n{ELSEWHERE}\n{program}")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    variables = {"WORLD_SIZE": str(world), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                started(
                    [sys.executable, str(folder / "program.py"), *arguments],
                    output.with_suffix(f".{rank}"),
                    variables | {"RANK": str(rank)},
                    forked=True,
                )
            )
            for rank in range(world)
        ]


ELSEWHERE = "peers._machine = lambda: f\"machine{os.environ['RANK']} pid:[1]\""


@contextmanager
def started(
    command: Sequence[str], output: Path, environment: Mapping[str, str] | None = None, *, forked: bool = False
) -> Iterator[Job]:
    """Start a command; forked: which is Python's, and need not begin with a new interpreter."""
    mark = secrets.token_hex(8)
    variables = {**ENVIRONMENT, **(environment or {}), MARK: mark}
    with output.open("wb") as stderr:
        process: subprocess.Popen[bytes] | Fork
        if forked:
            process = trainers().start(command[1:], variables, stderr)
        else:
            process = subprocess.Popen(
                with_last(command),
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        running = Job(process, output, mark)
        try:
            yield running
        finally:
            while left := running.processes():
                for one in left:
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
                time.sleep(0.02)
            process.wait()


def send(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        process.send_signal(number)


def recorded(out: Path) -> dict[str, Any]:
    """What run.json says."""
    content: dict[str, Any] = json.loads((out / "run.json").read_text())
    return content


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def checkpoints(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*"))


def tiny_options(corpus: Path | str, model: Path, out: Path | None, *more: str) -> list[str]:
    """out: None where it is given later."""
    options = [
        *(f"--dataset={corpus}", f"--model.config={model}", f"--model.tokenizer={model}"),
        *([] if out is None else [f"--output-dir={out}"]),
        *("--sequence-length=32", "--global-batch-size=4", "--lanes=4", "--micro-batch-size=2", "--workers=1"),
        *("--max-steps=100000", "--save-every=100000", "--log-every=1", "--run.wandb=disabled"),
        *("--data.window-bytes=9000", "--train.schedule=constant", "--train.warmup-steps=0", *more),
    ]
    return with_last(options)


def assert_goes_on(arguments: Sequence[str], out: Path, step: int) -> None:
    """The same command goes on after a step, and each step is in the metrics once."""
    with job(2, [*arguments, f"--max-steps={step + 2}"], out.with_suffix(".next")) as running:
        assert running.wait(START_SECONDS) == 0, running.stderr
    assert [line["step"] for line in lines(out / "metrics.jsonl") if "train/loss" in line] == list(range(1, step + 3))
