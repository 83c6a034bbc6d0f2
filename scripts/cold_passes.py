"""Contenders that read the same files once, in turns, each time in a process that has done nothing but import."""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import psutil
from contenders import Batches, Contender, Given
from forked import given_by


@dataclass(frozen=True)
class Pass:
    """One reading of the files by one contender."""

    tokens: int
    """Of documents, without special tokens and padding."""
    positions: int
    """Of the batches."""
    start_seconds: float
    """Processor time before the first batch is requested: tokenizer, listing and plan."""
    processor_seconds: float
    """From then on: user and system time, of the process and of all that it started."""
    busiest_seconds: float
    """Processor time of the process that worked most: what the pass takes where each has a core of its own."""
    wall_seconds: float

    @property
    def rate(self) -> float:
        """Tokens a processor second."""
        return self.tokens / self.processor_seconds

    @property
    def fill(self) -> float:
        """Share of the positions that have a token of a document."""
        return self.tokens / self.positions


Round = Mapping[str, Pass]


def in_turns(contenders: Mapping[str, Contender], given: Given, rounds: int, seconds: float) -> list[Round]:
    """So many rounds in which each contender reads once, fewer where another would go beyond the time; printed as they end."""
    began, done = time.perf_counter(), list[Round]()
    while len(done) < rounds:
        round_ = {name: cold_pass(contender, given) for name, contender in contenders.items()}
        done.append(round_)
        rates = "  ".join(f"{name} {pass_.rate / 1e6:.2f}" for name, pass_ in round_.items())
        print(f"round {len(done)}: {rates} Mtok a CPU second (load {os.getloadavg()[0]:.1f})", flush=True)
        passed = time.perf_counter() - began
        if passed * (len(done) + 1) / len(done) > seconds and len(done) < rounds:
            print(f"{len(done)} of {rounds} rounds, after {passed:.0f} s")
            break
    return done


def cold_pass(contender: Contender, given: Given) -> Pass:
    """One reading in a process of its own. Raises: SystemExit if it fails."""
    [pass_] = given_by(partial(_measured, contender, given))
    return Pass(**pass_)


def spread(rounds: Sequence[Round], value: Callable[[Round], float]) -> tuple[float, float, float]:
    """Median, least and most of a value of each round."""
    values = [value(round_) for round_ in rounds]
    return statistics.median(values), min(values), max(values)


def ratio(rounds: Sequence[Round], name: str, to: str) -> str:
    """Median of the ratios of two contenders within a round, with the spread."""
    median, least, most = spread(rounds, lambda round_: round_[name].rate / round_[to].rate)
    return f"{median:.2f} ({least:.2f}-{most:.2f})"


def _measured(contender: Contender, given: Given) -> list[dict[str, float]]:
    began = _processor_seconds(resource.RUSAGE_SELF)
    batches: Batches = contender(given)
    start = _processor_seconds(resource.RUSAGE_SELF) - began
    own, of_children = _processor_seconds(resource.RUSAGE_SELF), _processor_seconds(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    tokens = positions = 0
    children: dict[int, float] = {}
    for batch_tokens, batch_positions in batches:
        tokens += batch_tokens
        positions += batch_positions
        for child in multiprocessing.active_children():
            children[child.pid or 0] = sum(psutil.Process(child.pid).cpu_times()[:2])
    wall = time.perf_counter() - began
    own = _processor_seconds(resource.RUSAGE_SELF) - own
    of_children = _processor_seconds(resource.RUSAGE_CHILDREN) - of_children
    return [asdict(Pass(tokens, positions, start, own + of_children, max([own, *children.values()]), wall))]


def _processor_seconds(whose: int) -> float:
    usage = resource.getrusage(whose)
    return usage.ru_utime + usage.ru_stime
