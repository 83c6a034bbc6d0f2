"""Processes that begin with torch and all the rest imported: forks of a server that has done nothing but import.

A new interpreter takes several seconds of a core for its imports, a fork takes none. It is a process of its own in every other
respect, but that some things are the server's: variables that libraries read when they are imported, and the order of sets of
strings. It ends without taking its modules apart. What depends on these begins with a new interpreter.

    trainers().run(["-m", "stream_pretrain", "--help"], os.environ)  # as subprocess.run([sys.executable, "-m", ...]) would
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import gc
import importlib
import json
import os
import re
import runpy
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from tests.command_lines import with_last

SHARED = Path(os.environ.get("XDG_CACHE_HOME", ""))
"""The folder that the workers of pytest have in common: see conftest.py."""
CHECKOUT = Path(__file__).resolve().parents[1]
ADDRESS = "STREAM_PRETRAIN_TEST_FORKS"
"""The variable by which a fork finds its server: the ranks of a torchrun are forks of it as well."""
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")},
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
"""That of a run on this machine alone."""


TRAINING = ("stream_pretrain.commands.train", "torch.distributed.run", "datasets")


@cache
def trainers() -> Forks:
    """Forks that have imported what a run of the command line does, which asks nothing of a Hub."""
    return Forks(ENVIRONMENT, *TRAINING, shared_as="trainers")


class Fork:
    """A started fork, as `subprocess.Popen` has it."""

    def __init__(self, connection: socket.socket) -> None:
        """connection: tells the process id, and the exit code when there is one."""
        self.pid = int(connection.recv(32))
        self.returncode: int | None = None
        self._connection = connection

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            ready = select.poll()  # takes descriptors of any number
            ready.register(self._connection, select.POLLIN)
            if not ready.poll(None if timeout is None else 1000 * timeout):
                raise subprocess.TimeoutExpired("a fork", timeout or 0)
            self.returncode = int(self._connection.recv(32))
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """A server of forks, which ends with the last process that uses it."""

    def __init__(self, environment: Mapping[str, str], *modules: str, shared_as: str | None = None) -> None:
        """environment, modules: the variables that count while these modules are imported.

        shared_as: its name among the workers of pytest, of which the first that needs it starts it.
        """
        name = shared_as or secrets.token_hex(8)
        self.address = f"{SHARED.name}-{name}"
        self._server: subprocess.Popen[bytes] | None = None
        in_use = SHARED / name  # a pipe, which all that use the server hold open
        with open(SHARED / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not in_use.exists():
                os.mkfifo(in_use)
            try:
                use = os.open(in_use, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:  # no server reads it
                    raise
                reading = os.open(in_use, os.O_RDONLY | os.O_NONBLOCK)
                use = os.open(in_use, os.O_WRONLY)
                self._server = subprocess.Popen(
                    [sys.executable, "-m", "tests.forks", self.address, *modules],
                    env=environment, cwd=CHECKOUT, stdin=reading, stdout=subprocess.PIPE,
                )  # fmt: skip
                os.close(reading)
                assert self._server.stdout is not None
                with self._server.stdout as stdout:
                    assert stdout.read() == b"listening"
        self._use = os.fdopen(use, "wb")
        atexit.register(self.close)

    def close(self) -> None:
        self._use.close()
        if self._server is not None:
            self._server.wait()

    def start(
        self,
        program: Sequence[str],
        environment: Mapping[str, str],
        stderr: IO[Any],
        stdout: IO[Any] | None = None,
        cwd: Path | None = None,
    ) -> Fork:
        """Start what Python would for these arguments."""
        return _start(self.address, program, environment, stderr, stdout, cwd)

    def run(
        self, program: Sequence[str], environment: Mapping[str, str], cwd: Path | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            fork = self.start(program, environment, stderr, stdout, cwd)
            try:
                code = fork.wait(timeout)
            finally:
                fork.kill()
                fork.wait()
            stdout.seek(0)
            stderr.seek(0)
            return subprocess.CompletedProcess(program, code, stdout.read(), without_times(stderr.read()))


def without_times(log: str) -> str:
    """What a run has written to a file or a pipe, without the time in front of each line."""
    return re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", "", log, flags=re.MULTILINE)


def _start(
    address: str,
    program: Sequence[str],
    environment: Mapping[str, str],
    stderr: IO[Any],
    stdout: IO[Any] | None,
    cwd: Path | None,
) -> Fork:
    asked = {"program": with_last(program), "environment": {**environment, ADDRESS: address}, "cwd": str(cwd or Path.cwd())}
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(f"\0{address}")
    with open(os.devnull, "r+") as nothing:
        files = [nothing, stdout or nothing, stderr]
        socket.send_fds(connection, [json.dumps(asked).encode()], [file.fileno() for file in files])
        return Fork(connection)


# --- In the server and its forks


def serve(address: str) -> dict[str, Any] | None:
    """Fork for every request. Returns in a fork what it is to run; in the server nothing, when nobody is left to ask."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(f"\0{address}")
        listening.listen(16)
        os.write(1, b"listening")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that the processes that wait for a fork are not waited for
        while True:
            ready, _, _ = select.select([listening, sys.stdin], [], [])
            if sys.stdin in ready:
                return None
            connection, _ = listening.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    fork = os.fork()
    if fork == 0:
        asked: dict[str, Any] = json.loads(message)
        os.setsid()
        if "RANK" in asked["environment"]:  # seen from the outside, a fork has the variables of its server
            Path("/proc/self/comm").write_text(f"rank {asked['environment']['RANK']}")
        for target, file in enumerate(files):
            os.dup2(file, target)
            os.close(file)
        connection.send(b"%d" % os.getpid())
        connection.close()
        return asked
    for file in files:
        os.close(file)
    code = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
    with suppress(BrokenPipeError):  # whoever asked is gone
        connection.send(b"%d" % code)
    os._exit(0)


def run(program: Sequence[str], environment: Mapping[str, str], cwd: str) -> None:
    """What Python does for these arguments."""
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # found anew, as TMPDIR may be another
    os.chdir(cwd)
    match list(program):
        case ["-m", "torch.distributed.run", *arguments]:
            let_torchrun_fork()
            importlib.import_module("torch.distributed.run").main(arguments)
        case ["-m", module, *arguments]:
            sys.argv = [module, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *arguments]:
            sys.argv = ["-c", *arguments]
            exec(code, {"__name__": "__main__"})
        case [path, *_]:
            sys.argv = list(program)
            sys.path.insert(0, str(Path(path).parent))
            runpy.run_path(path, run_name="__main__")


def let_torchrun_fork() -> None:
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    def start_rank(_: SubprocessHandler, command: Sequence[str], environment: Mapping[str, str]) -> Fork:
        python, unbuffered, *program = command
        assert (python, unbuffered) == (sys.executable, "-u")
        return _start(os.environ[ADDRESS], program, environment, sys.stderr, sys.stdout, None)

    SubprocessHandler._popen = start_rank  # type: ignore[assignment, method-assign]


def main() -> None:
    address, *modules = sys.argv[1:]
    for module in modules:
        importlib.import_module(module)
    gc.freeze()
    asked = serve(address)
    if asked is None:
        return
    code = 0
    try:
        run(**asked)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    # The end of an interpreter, but that taking apart what the server has imported would take half a second.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
