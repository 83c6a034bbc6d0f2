"""Signals stop a run at a step boundary; its workers outlive them, but not the run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from stream_pretrain.exit_codes import SIGNALS
from stream_pretrain.training.ranks import signals
from stream_pretrain.training.ranks.signals import Interrupted, stop_on_signals

linux = pytest.mark.skipif(sys.platform != "linux", reason="the end of a parent is only watched on Linux")

STEPS = """
import sys, time
from stream_pretrain.training.ranks import signals
with signals.stop_on_signals() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("asked by", stop.signal, flush=True)
    {at_the_end}
print("saved", flush=True)
"""

# A trainer with one worker that stalls. `multiprocessing` ends daemons, as those of a DataLoader, with SIGTERM.
WORKER = """
import multiprocessing, os, signal, sys, time
from stream_pretrain.training.ranks import signals

def work(ready):
    signals.ignore_in_worker()
    ready.send(os.getpid())
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    here, there = context.Pipe()
    worker = context.Process(target=work, args=(there,), daemon=True)
    worker.start()
    print(here.recv(), flush=True)
    sys.stdin.readline()
    {at_the_end}
"""


@contextmanager
def running(program: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    script = folder / "program.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(script)], env=environment, start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def sigterm_is_pending(process: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    return bool(int(status.split("ShdPnd:")[1].split()[0], 16) & 1 << (signal.SIGTERM - 1))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"])
def test_a_signal_is_read_at_the_step_boundary(tmp_path: Path, name: str) -> None:
    with running(STEPS.format(at_the_end=""), tmp_path) as process:
        assert line(process) == "ready"
        process.send_signal(signal.Signals[name])
        assert line(process) == f"asked by {name}"
        assert line(process) == "saved"
        assert process.wait() == 0


def test_a_second_signal_exits_at_once(tmp_path: Path) -> None:
    stalled = STEPS.format(at_the_end="time.sleep(signals.ECHO_SECONDS + 0.1); print('saving', flush=True); time.sleep(600)")
    with running(stalled, tmp_path) as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGUSR1)
        assert line(process) == "asked by SIGUSR1"
        assert line(process) == "saving"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 75
        assert line(process) == ""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_request_is_answered_at_once_also_where_no_handler_runs(tmp_path: Path, name: str) -> None:
    waiting = """
import ctypes
from stream_pretrain.training.ranks import signals
signals.ECHO_SECONDS = 0
with signals.stop_on_signals() as stop:
    stop.answer(lambda name: print("asked by", name, flush=True), lambda name: print("quitting by", name, flush=True) or 7)
    print("ready", flush=True)
    while True:
        ctypes.CDLL(None).pause()
"""
    with running(waiting, tmp_path) as process:
        assert line(process) == "ready"
        process.send_signal(signal.Signals[name])
        assert line(process) == f"asked by {name}"
        process.send_signal(signal.Signals[name])
        assert line(process) == f"quitting by {name}"
        assert process.wait() == 7


def test_a_process_whose_terminal_hangs_quits_all_the_same(tmp_path: Path) -> None:
    hanging = """
import time
from stream_pretrain.training.ranks import signals
signals.ECHO_SECONDS, signals.QUIT_SECONDS = 0, 0.1
with signals.stop_on_signals() as stop:
    stop.answer(lambda name: (print("answering", flush=True), time.sleep(600)), lambda name: time.sleep(600))
    print("ready", flush=True)
    time.sleep(600)
"""
    with running(hanging, tmp_path) as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGUSR1)
        assert line(process) == "answering"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 75


@pytest.mark.parametrize(("begun", "last_step"), [(0, 7), (1, 7), (2, 7), (3, 8)])
def test_the_step_that_is_said_to_be_the_last_one_is(begun: int, last_step: int) -> None:
    in_front_of = [3, 2, 1]  # of four micro-batches; the last one is not left out
    with stop_on_signals() as stop:
        stop.last_step = 7
        left = [stop.leaves(8, after) for after in in_front_of[:begun]]
        signal.raise_signal(signal.SIGTERM)
        left += [stop.leaves(8, after) for after in in_front_of[begun:]]
    assert stop.last_step == last_step
    assert any(left) == (last_step == 7), "the step is left, or completed"


def test_a_step_of_one_micro_batch_is_completed_once_its_rows_are_there() -> None:
    with stop_on_signals() as stop:
        with stop.interruptible():
            stop.complete(8)
            signal.raise_signal(signal.SIGTERM)
        assert stop.last_step == 8
        with pytest.raises(Interrupted):
            stop.complete(9)
        assert stop.last_step == 8


def test_the_echo_of_a_launcher_is_the_same_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "ECHO_SECONDS", 600)
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        stop.news.wait()  # the thread has read it
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)  # for the thread to read this one apart from the end
    assert (stop.signal, exits) == ("SIGINT", [])


def test_the_end_of_a_terminal_is_no_request_where_nohup_has_it_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_a_signal_nothing_is_requested_and_the_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_on_signals() as stop:
        assert not stop.requested
        assert stop.signal is None
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_stalled_wait_is_interrupted(tmp_path: Path) -> None:
    stalled = """
import queue
from stream_pretrain.training.ranks.signals import Interrupted, stop_on_signals
with stop_on_signals() as stop:
    try:
        with stop.interruptible():
            print("ready", flush=True)
            queue.Queue().get()
    except Interrupted:
        print("interrupted by", stop.signal)
"""
    with running(stalled, tmp_path) as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGTERM)
        assert line(process) == "interrupted by SIGTERM"
        assert process.wait() == 0


def test_a_wait_does_not_begin_after_a_signal_and_only_waits_are_interrupted() -> None:
    reached = []
    with stop_on_signals() as stop:
        with stop.interruptible():
            reached.append("first wait")
        signal.raise_signal(signal.SIGTERM)
        reached.append("step")
        with pytest.raises(Interrupted), stop.interruptible():
            reached.append("second wait")
    assert reached == ["first wait", "step"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@linux
def test_a_worker_outlives_the_signals_of_its_group_until_its_trainer_ends_it(tmp_path: Path, method: str) -> None:
    patient = WORKER.format(
        method=method,
        at_the_end="print(worker.is_alive(), flush=True); worker.terminate(); worker.join(); print(worker.exitcode)",
    )
    with running(patient, tmp_path) as process:
        worker = int(line(process))
        for number in SIGNALS:
            os.kill(worker, number)
        while sigterm_is_pending(worker):  # a second one would be lost in the first
            time.sleep(0.01)
        assert psutil.Process(worker).is_running()
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert line(process) == "True"
        assert line(process) == "143"
        assert process.wait() == 0


@linux
def test_a_trainer_with_a_stalled_worker_can_exit(tmp_path: Path) -> None:
    with running(WORKER.format(method="fork", at_the_end=""), tmp_path) as process:
        worker = int(line(process))
        process.communicate("\n")
        assert process.returncode == 0
        assert not psutil.pid_exists(worker)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@linux
def test_a_worker_dies_with_its_trainer(tmp_path: Path, method: str) -> None:
    with running(WORKER.format(method=method, at_the_end=""), tmp_path) as process:
        worker = psutil.Process(int(line(process)))
        process.kill()
        psutil.wait_procs([worker], timeout=60)
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
