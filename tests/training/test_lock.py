"""The lock of OUT: one process writes it, and a lost one is waited for."""

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from stream_pretrain.errors import CheckpointError
from stream_pretrain.training.files import lock
from stream_pretrain.training.files.run_directory import RunDirectory
from stream_pretrain.training.ranks.signals import Interrupted, stop_on_signals
from stream_pretrain.training.start.resume import decide_start
from tests.forks import ENVIRONMENT, trainers
from tests.training.checkpoints import unexpected
from tests.training.run_folders import place
from tests.training.starts import COMMAND, config, start


def owner(out: Path, host: str, age: float, pid: int = 12, reach: str = "another kernel/1") -> None:
    out.mkdir(exist_ok=True)
    record = {"host": host, "pid": pid, "time": time.time() - age, "reach": reach, "token": "another"}
    (out / "lock").write_text(json.dumps(record))


def test_a_second_run_on_the_same_folder_is_refused_naming_the_first(tmp_path: Path) -> None:
    in_use = rf"out is in use by process {os.getpid()} on \S+: wait"
    with RunDirectory.own(tmp_path / "deep" / "out", [], unexpected), pytest.raises(CheckpointError, match=in_use):
        start(tmp_path / "deep" / "out")
    assert start(tmp_path / "deep" / "out").checkpoint is None


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from stream_pretrain.training.files.run_directory import RunDirectory
with RunDirectory.own(Path(sys.argv[1]), [], print):
    print("owned", flush=True)
    time.sleep(600)
"""
    out, said = tmp_path / "out", tmp_path / "said"
    with said.open("w") as file:
        process = trainers().start(["-c", program, str(out)], ENVIRONMENT, file, file)
    while said.read_text() != "owned\n":
        assert process.poll() is None, said.read_text()
        time.sleep(0.02)
    with pytest.raises(CheckpointError, match=f"in use by process {process.pid} on"):
        start(out)
    process.kill()
    process.wait()
    assert place(start(out)) == (None, None)


def test_a_silent_owner_on_another_machine_is_waited_for_and_then_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    owner(tmp_path, "elsewhere", age=58)
    with RunDirectory.own(tmp_path, [], lines.append):
        assert lines == [f"{tmp_path} was in use by process 12 on elsewhere: waiting 2 s for its next heartbeat"]
    owner(tmp_path, "elsewhere", age=61)
    with RunDirectory.own(tmp_path, [], unexpected):
        pass


def test_an_owner_on_another_machine_that_beats_is_respected(tmp_path: Path) -> None:
    owner(tmp_path, "elsewhere", age=5)

    def beat_after_the_first_look(line: str) -> None:
        owner(tmp_path, "elsewhere", age=0)

    with (
        pytest.raises(CheckpointError, match="in use by process 12 on elsewhere"),
        RunDirectory.own(tmp_path, [], beat_after_the_first_look),
    ):
        pass


@pytest.mark.parametrize("elsewhere", ["another kernel/{device}", "{kernel}/7"])
def test_an_owner_in_another_container_with_the_same_host_name_and_pid_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: str
) -> None:
    """On another machine, or with a mount of its own: locks reach neither. The pid is often 1, and the name given to both."""
    kernel, device = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), tmp_path.stat().st_dev
    twin = partial(owner, tmp_path, socket.gethostname(), pid=os.getpid(), reach=elsewhere.format(kernel=kernel, device=device))
    twin(age=5)
    with (
        pytest.raises(CheckpointError, match=f"in use by process {os.getpid()} on {socket.gethostname()}"),
        RunDirectory.own(tmp_path, [], lambda line: twin(age=0)),
    ):
        pass
    monkeypatch.setattr(lock, "DEAD_AFTER_SECONDS", 0.0)
    with RunDirectory.own(tmp_path, [], unexpected) as out:
        out.raise_if_lost()
        twin(age=0)
        with pytest.raises(CheckpointError, match=f"was taken over by process {os.getpid()} on {socket.gethostname()}"):
            out.raise_if_lost()


def test_a_killed_owner_in_another_container_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    kernel, device = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), tmp_path.stat().st_dev
    owner(tmp_path, "elsewhere", age=5, reach=f"{kernel}/{device}")
    with RunDirectory.own(tmp_path, [], unexpected):
        pass


def test_an_owner_of_an_earlier_version_is_waited_for(tmp_path: Path) -> None:
    lines: list[str] = []
    (tmp_path / "lock").write_text(json.dumps({"host": socket.gethostname(), "pid": 12, "time": time.time() - 59}))
    with RunDirectory.own(tmp_path, [], lines.append):
        pass
    assert lines == [f"{tmp_path} was in use by process 12 on {socket.gethostname()}: waiting 1 s for its next heartbeat"]


def test_an_owner_on_another_machine_that_leaves_is_not_waited_for(tmp_path: Path) -> None:
    owner(tmp_path, "elsewhere", age=0)
    with RunDirectory.own(tmp_path, [], lambda line: (tmp_path / "lock").write_text("")):
        pass


def test_the_lock_that_a_file_server_keeps_for_a_lost_machine_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner(tmp_path, "elsewhere", age=70)
    lines: list[str] = []
    with (tmp_path / "lock").open() as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)

        def server_gives_it_up(line: str) -> None:
            lines.append(line)
            fcntl.flock(kept, fcntl.LOCK_UN)

        with RunDirectory.own(tmp_path, [], server_gives_it_up):
            pass
        assert lines == [
            f"{tmp_path} is locked by process 12 on elsewhere, whose last heartbeat was 70 s ago: waiting 120 s for the lock"
        ]
        owner(tmp_path, "elsewhere", age=70)
        fcntl.flock(kept, fcntl.LOCK_EX)
        monkeypatch.setattr(lock, "LEASE_SECONDS", 1.0)
        with (
            pytest.raises(CheckpointError, match="in use by process 12 on elsewhere"),
            RunDirectory.own(tmp_path, [], lines.append),
        ):
            pass


def test_without_locks_in_the_file_system_the_beat_decides_on_one_machine_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.1)
    with (
        RunDirectory.own(tmp_path, [], unexpected),
        pytest.raises(CheckpointError, match=f"in use by process {os.getpid()} on"),
        RunDirectory.own(tmp_path, [], [].append),
    ):
        pass


def test_the_owner_beats_and_takes_itself_out_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beaten = threading.Event()
    beat = lock.HeldLock.beat
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.01)
    with RunDirectory.own(tmp_path, [], unexpected):
        first = json.loads((tmp_path / "lock").read_text())
        monkeypatch.setattr(lock.HeldLock, "beat", lambda held: (beat(held), beaten.set()))
        assert beaten.wait(60)
        assert json.loads((tmp_path / "lock").read_text())["time"] > first["time"]
        assert first["pid"] == os.getpid()
    assert (tmp_path / "lock").read_text() == ""


def test_a_beat_that_fails_is_reported_and_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported = threading.Event()
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        reported.set()

    def fail(held: lock.HeldLock) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.01)
    with RunDirectory.own(tmp_path, [], report):
        monkeypatch.setattr(lock.HeldLock, "beat", fail)
        assert reported.wait(60)
    assert lines[0] == f"the heartbeat in {tmp_path / 'lock'} cannot be written: [Errno 5] Input/output error"


@pytest.mark.parametrize("asked", ["fstat", "lstat"])
@pytest.mark.parametrize(("number", "lost"), [(errno.ESTALE, True), (errno.EIO, False)])
def test_a_lock_of_which_a_file_server_knows_nothing_any_more_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, number: int, lost: bool
) -> None:
    def fail(*_: object, **__: object) -> os.stat_result:
        raise OSError(number, os.strerror(number))

    with RunDirectory.own(tmp_path, [], unexpected) as out:
        with monkeypatch.context() as patched:
            patched.setattr(lock.os, "fstat", fail) if asked == "fstat" else patched.setattr(Path, "lstat", fail)
            assert out.is_lost is lost
        assert not out.is_lost


def test_a_lock_that_is_no_file_is_one_line_and_nothing_is_waited_for_or_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for number, make in enumerate((lambda lock: lock.symlink_to(victim), os.mkfifo, Path.mkdir)):
        out = tmp_path / str(number)
        out.mkdir()
        make(out / "lock")
        with pytest.raises(CheckpointError, match=r"/lock is not a regular file: remove it, or give another"):
            start(out)
    with socket.socket(socket.AF_UNIX) as bound:
        (tmp_path / "s").mkdir()
        bound.bind(str(tmp_path / "s" / "lock"))
        with pytest.raises(CheckpointError, match=r"/lock is not a regular file"):
            start(tmp_path / "s")
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling" / "lock").symlink_to(tmp_path / "made")
    with pytest.raises(CheckpointError, match=r"/lock is not a regular file"):
        start(tmp_path / "dangling")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "wandb-id", "evaluation.jsonl"])
def test_a_pipe_in_the_place_of_a_file_is_one_line(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"/{name} is not a file: remove it, or give another --output-dir"):
        start(tmp_path)


def remove(out: Path) -> None:
    shutil.rmtree(out)


def remove_lock(out: Path) -> None:
    (out / "lock").unlink()


def move(out: Path) -> None:
    out.rename(out.with_name("elsewhere"))


def replace_folder(out: Path) -> None:
    move(out)
    out.mkdir()
    (out / "lock").touch()


@pytest.mark.parametrize("lose", [remove, remove_lock, move, replace_folder])
def test_a_folder_that_is_lost_is_written_no_more_and_every_wait_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lose: Callable[[Path], None]
) -> None:
    path = tmp_path / "out"
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.01)
    with stop_on_signals() as stop, RunDirectory.own(path, [], unexpected) as out:
        decide_start(config(), out, unexpected, COMMAND)
        out.raise_if_lost()
        lose(path)
        with pytest.raises(CheckpointError, match=r"out or its lock was removed or replaced during the run"):
            out.raise_if_lost()
        with suppress(Interrupted), stop.interruptible():
            time.sleep(60)
        assert stop.signal == "SIGTERM"
        left = sorted(tmp_path.rglob("*"))
        state = (path / "run.json").read_bytes() if lose is remove_lock else None
        out.record("failed", error="CheckpointError: lost")
        out.record_saved(7)
        assert sorted(tmp_path.rglob("*")) == left
        assert state is None or (path / "run.json").read_bytes() == state


def test_a_folder_that_another_machine_takes_over_is_written_no_more_and_its_lock_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when this process was stopped for a minute, or both began at the same moment, where locks reach one machine alone."""
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.01)
    with stop_on_signals() as stop, RunDirectory.own(tmp_path, [], unexpected) as out:
        decide_start(config(), out, unexpected, COMMAND)
        beaten = threading.Event()
        monkeypatch.setattr(lock.HeldLock, "beat", lambda _: beaten.set())
        assert beaten.wait(60)
        owner(tmp_path, "elsewhere", age=0)
        said = f"{tmp_path} was taken over by process 12 on elsewhere: this run writes nothing more to it"
        with pytest.raises(CheckpointError, match=re.escape(said)):
            out.raise_if_lost()
        with suppress(Interrupted), stop.interruptible():
            time.sleep(60)
        assert stop.signal == "SIGTERM"
        state = (tmp_path / "run.json").read_bytes()
        out.record("failed", error="CheckpointError: lost")
        assert (tmp_path / "run.json").read_bytes() == state
    assert json.loads((tmp_path / "lock").read_text())["host"] == "elsewhere"


def test_a_disk_that_has_no_room_for_the_lock_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda descriptor, content, offset: 7)
    with pytest.raises(CheckpointError, match=r"--output-dir \S+ cannot be written \(No space left on device\)"):
        start(tmp_path)


def test_a_lock_that_is_removed_while_it_is_waited_for_is_not_taken(tmp_path: Path) -> None:
    owner(tmp_path, "elsewhere", age=0)
    with (
        pytest.raises(CheckpointError, match=r"/lock was removed while this process waited for it"),
        RunDirectory.own(tmp_path, [], lambda line: (tmp_path / "lock").unlink()),
    ):
        pass
