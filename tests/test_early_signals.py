"""A signal that arrives before the command has begun ends the program in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stream_pretrain.exit_codes import SIGNALS

ROOT = Path(__file__).resolve().parents[1]
IN_PLACE_OF_A_PACKAGE = """
import os, signal, time
os.kill(os.getpid(), signal.{name})
time.sleep(60)
"""
ENTRY = "import sys; from stream_pretrain.__main__ import main; sys.exit(main())"  # as pip makes it of [project.scripts]


def stopped_while_importing(folder: Path, name: str, *how: str, **variables: str) -> tuple[int, str]:
    (folder / "yaml.py").write_text(IN_PLACE_OF_A_PACKAGE.format(name=name))
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **variables}
    command = [sys.executable, *(how or ("-m", "stream_pretrain")), "--dataset=x", "--model=y", "--max-steps=5"]
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("name", [number.name for number in SIGNALS])
def test_a_signal_while_the_program_is_imported_is_answered_in_one_line(tmp_path: Path, name: str) -> None:
    code, said = stopped_while_importing(tmp_path, name)
    assert said == f"stopped by {name} before anything was done; the same command starts it again\n"
    assert code == (130 if name == "SIGINT" else 75)


def test_the_installed_program_answers_as_early(tmp_path: Path) -> None:
    code, said = stopped_while_importing(tmp_path, "SIGINT", "-c", ENTRY)
    assert said == "stopped by SIGINT before anything was done; the same command starts it again\n"
    assert code == 130


@pytest.mark.parametrize(
    ("rank", "ranks", "lines", "code"),
    [
        ("0", "1", 1, 0),  # which torchrun takes for no failure
        ("0", "2", 1, 75),  # the other rank waits for this one
        ("1", "2", 0, 75),
    ],
)
def test_a_rank_that_is_stopped_while_it_is_imported_ends_all(
    tmp_path: Path, rank: str, ranks: str, lines: int, code: int
) -> None:
    launched = {"RANK": rank, "WORLD_SIZE": ranks, "TORCHELASTIC_RUN_ID": "a"}
    ended, said = stopped_while_importing(tmp_path, "SIGTERM", **launched)
    assert (ended, said.count("\n")) == (code, lines)


def test_under_nohup_the_end_of_a_terminal_stays_ignored_while_the_program_is_imported(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\nos._exit(9)")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ended = subprocess.run([sys.executable, "-m", "stream_pretrain"], check=False, env=environment, timeout=60)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ended.returncode == 9
