"""A terminal that goes away stops nothing."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pytest

from stream_pretrain import cli
from stream_pretrain.errors import CheckpointError
from stream_pretrain.redaction import Secrets
from stream_pretrain.terminal import clear_stderr, show_traceback, unfailing_stderr
from stream_pretrain.training.report.progress import Progress
from tests.corpora import documents, write_shard, write_tiny_bert
from tests.forks import ENVIRONMENT, trainers, without_times
from tests.integration.jobs import lines, recorded, tiny_options

CLOSED = """
import os, sys
os.close(2)
sys.stderr = None  # as an interpreter has it that begins without the descriptor
from stream_pretrain.cli import main
code = main(sys.argv[1:])
sys.stderr = sys.stdout  # for the fork, which is no interpreter at its end
sys.exit(code)
"""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpus")
    write_shard(folder / "s", documents(200), "plain")
    model = write_tiny_bert(tmp_path_factory.mktemp("model"))
    options = tiny_options(folder, model, tmp_path_factory.mktemp("out"), "--max-steps=6", "--save-every=2")
    return [option for option in options if not option.startswith("--output-dir")]


@pytest.mark.parametrize("terminal", ["a pipe that is not read any more", "a full disk", "a closed window", "none"])
def test_a_run_goes_on_to_its_end(arguments: list[str], tmp_path: Path, terminal: str) -> None:
    program = ["-c", CLOSED] if terminal == "none" else ["-m", "stream_pretrain"]
    program += [*arguments, f"--output-dir={tmp_path}"]
    if terminal in ("a full disk", "none"):
        with open("/dev/full" if terminal == "a full disk" else os.devnull, "w") as stderr:
            fork = trainers().start(program, ENVIRONMENT, stderr)
    else:
        reading, writing = os.pipe() if terminal == "a pipe that is not read any more" else os.openpty()
        with open(writing, "wb", buffering=0) as stderr:
            fork = trainers().start(program, ENVIRONMENT, stderr)
        assert os.read(reading, 1) != b""
        os.close(reading)
    assert fork.wait(120) == 0
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert recorded(tmp_path)["state"] == "finished"
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_an_error_that_nobody_reads_has_its_exit_code(tmp_path: Path) -> None:
    with open("/dev/full", "w") as stderr:
        assert trainers().start(["-m", "stream_pretrain", "--no-such-option=1", "--debug"], ENVIRONMENT, stderr).wait(60) == 2


def test_no_file_gets_what_libraries_write_to_a_closed_descriptor(tmp_path: Path) -> None:
    code = CLOSED.replace(
        "code = main(sys.argv[1:])",
        """
code = 0
from stream_pretrain.terminal import unfailing_stderr
os.close(0)
with unfailing_stderr():
    with open("file", "w") as file:
        os.write(2, b"of a library")
        print("of ours", file=sys.stderr)
        assert file.fileno() > 2
    assert os.path.getsize("file") == 0
    print(os.readlink("/proc/self/fd/0"), os.readlink("/proc/self/fd/2"))
""",
    )
    done = trainers().run(["-c", code], ENVIRONMENT, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "/dev/null /dev/null\n"), done.stderr


def test_what_is_written_arrives_in_order_and_the_stream_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        monkeypatch.setattr(sys, "stderr", log)
        log.write("before\n")
        with unfailing_stderr():
            sys.stderr.write("größer…\n")
            os.write(sys.stderr.fileno(), b"below\n")
            logging.StreamHandler().emit(logging.makeLogRecord({"msg": "a warning"}))
            assert not sys.stderr.isatty()
        assert sys.stderr is log
        log.write("after\n")
    text = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert text == ["before", "größer…", "below", "a warning", "after"]


def test_a_stream_in_memory_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with unfailing_stderr():
        assert sys.stderr is stream


# --- What is written there ---


@contextmanager
def terminal() -> Iterator[io.StringIO]:
    """What stands on a terminal where `sekret-word` is a secret."""
    with redirect_stderr(io.StringIO()) as below, clear_stderr(Secrets(["sekret-word"])):
        yield below


def test_a_log_file_of_a_library_that_cannot_be_written_is_not_told_in_tracebacks() -> None:
    class FullDisk(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with terminal() as said:
        logging.StreamHandler(FullDisk()).handle(logging.makeLogRecord({"msg": "restore done"}))
    assert said.getvalue() == ""


def test_no_secret_and_no_escape_gets_to_the_terminal_by_whatever_way() -> None:
    with terminal() as said:
        logging.getLogger("stream_pretrain.data.transport").warning("%s: HTTP 503", "a\nerror: forged\x1b[2J")
        logging.StreamHandler().emit(logging.makeLogRecord({"msg": "retrying /x?key=sekret-word after \x1b[31mx"}))
        sys.stderr.write("\tsekret-word\r\x9b1m\udce9é\n")
        Progress(sys.stderr).warning("shard a\nerror: forged.jsonl of sekret-word")
    lines = said.getvalue().split("\n")
    assert lines[0] == "a\\nerror: forged\\x1b[2J: HTTP 503"
    assert lines[1] == "retrying /x?… after \\x1b[31mx"
    assert lines[-3:] == ["\t…\r\\x9b1m\\xe9é", "warning: shard a\\nerror: forged.jsonl of …", ""]
    assert "sekret" not in said.getvalue()


def test_in_a_file_the_time_stands_in_front_of_every_line_of_a_run(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as log, redirect_stderr(log), clear_stderr(Secrets([])) as stderr:
        sys.stderr.write("error: unknown option\n")
        stderr.begin_log()
        for part in ("error:", " ", "no memory\n  halve it", "\n"):
            sys.stderr.write(part)
        sys.stderr.write("\nhalf of")
        sys.stderr.write("")
        sys.stderr.write(" a line\n\n")
        log.seek(0)
        said = log.read()
    times = re.findall(r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ ", said, flags=re.MULTILINE)
    assert len(times) == 3
    assert without_times(said) == "error: unknown option\nerror: no memory\n  halve it\n\nhalf of a line\n\n"


def test_in_memory_no_time_is_written() -> None:
    with redirect_stderr(io.StringIO()) as below, clear_stderr(Secrets([])) as stderr:
        stderr.begin_log()
        sys.stderr.write("a line\n")
    assert below.getvalue() == "a line\n"


def test_a_traceback_forges_no_line_and_tells_no_secret() -> None:
    with terminal() as said:
        try:
            raise ValueError("sekret-word\nerror: forged\rerror: too")
        except ValueError as error:
            show_traceback(error)
    assert said.getvalue().startswith("Traceback (most recent call last)")
    assert said.getvalue().endswith("ValueError: …\n  error: forged\\rerror: too\n")


def test_a_fault_of_the_program_is_shown_with_its_traceback_and_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> int:
        raise KeyError("http://me:sekret@host/x?signature=sekret")

    monkeypatch.setattr("stream_pretrain.commands.train.run", fails)
    assert cli.main(["--dataset=http://me:sekret@host/x.jsonl", "--model=bert", "--max-steps=3"]) == 1
    assert capsys.readouterr().err.endswith("\nKeyError: 'http://…@host/x?…'\n")


def test_an_error_of_several_lines_keeps_them_and_forges_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> int:
        raise CheckpointError("changed:", "  --seed: was 0\nerror: forged, is 1")

    monkeypatch.setattr("stream_pretrain.commands.train.run", fails)
    assert cli.main(["--dataset=x", "--model=bert", "--max-steps=3"]) == 1
    assert capsys.readouterr().err.endswith("\nerror: changed:\n  --seed: was 0\\nerror: forged, is 1\n")
