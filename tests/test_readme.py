"""What the documentation says can be typed, and what it points to is there."""

from __future__ import annotations

import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stream_pretrain import commands
from stream_pretrain.arguments import Invocation, invocation, parse
from stream_pretrain.config import NAMES, SHORT, SYNONYMS, WITHOUT, validate
from stream_pretrain.config.option_values import fixed_options
from stream_pretrain.config.run_name import run_directory
from stream_pretrain.help import declaration_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
COMMANDS = {module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__)}
OPTIONS = {f"--{name}" for name in NAMES}
FLAGS = {"--help", "--version", "--debug", "--config", "--json", "--dry-run"}


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def shell_lines(text: str) -> Iterator[list[str]]:
    """The words of every line of the ```bash blocks; continued lines are one."""
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def started(words: list[str]) -> Invocation:
    """What a `stream-pretrain` command is given, which exists and takes it."""
    command, options = ("train", words[1:]) if words[1].startswith("-") else (words[1], words[2:])
    assert command in COMMANDS
    declared = declaration_of(command)
    given = invocation(options, {}, operands=bool(declared.operands))
    assert {name.partition(".")[0] for name in given.typed} <= set(declared.groups), words
    assert bool(given.operands) == bool(declared.operands)
    validate(given.config, declared.needed)
    return given


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the pages name files from there."""
    monkeypatch.chdir(ROOT)


def test_every_command_of_a_page_could_start() -> None:
    commands = [words for page in PAGES for words in shell_lines(page.read_text("utf-8")) if words[0] == "stream-pretrain"]
    given = [started(words) for words in commands if not {"--help", "--version"} & set(words)]
    assert len(given) >= 7


def test_no_two_commands_of_the_pages_start_different_runs_in_one_folder() -> None:
    lines = [words for page in PAGES for words in shell_lines(page.read_text("utf-8"))]
    trains = [words for words in lines if words[0] == "stream-pretrain" and words[1] in ("--dataset", "--config")]
    runs: dict[Path, dict[str, Any]] = {}
    for words in trains:
        config = started(words).config
        assert runs.setdefault(run_directory(config), fixed_options(config)) == fixed_options(config), words
    assert len(runs) >= 6


def test_the_tour_shows_what_the_commands_of_its_script_have_printed() -> None:
    script = (ROOT / "scripts/tour").read_text("utf-8").replace("\\\n", "")
    run = re.search(r"^run=\((.*)\)$", script, re.MULTILINE)
    assert run is not None
    commands = re.findall(r"^show (stream-pretrain .*)$", script, re.MULTILINE)
    shown = re.findall(r"^\$ (stream-pretrain .*)$", (ROOT / "docs/tour.md").read_text("utf-8"), re.MULTILINE)
    assert shown == [" ".join(command.replace('"${run[@]}"', run[1]).split()) for command in commands]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_option_named_in_the_text_exists_and_takes_the_value_it_is_given(page: Path) -> None:
    for span in code_spans(page.read_text("utf-8")):
        words = shlex.split(span)
        if words[0] == "stream-pretrain":
            words = [word for word in words[1:] if word not in COMMANDS]
        if not words or not words[0].startswith("--"):
            continue
        if len(words) == 1 and "=" not in words[0]:
            assert words[0] in OPTIONS | FLAGS | {f"--{name}" for name in (*SYNONYMS, *WITHOUT)}, span
        elif words[0] != "--help":
            parse(words)


def test_the_table_of_short_names_is_that_of_the_program() -> None:
    [table] = re.findall(
        r"^\| group \| short names \|\n(.*?)\n\n", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    found = {}
    for group, names_of_group in re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE):
        for short, name in re.findall(r"`--([\w-]+)`(?: \(`--([\w.-]+)`\))?", names_of_group):
            found[short] = name or f"{group}.{short}"
    assert found == SHORT


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for link in filter(None, links):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"(?<![\w/.-])((?:scripts|configs|docs|tests)/[\w./-]*\w)", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("file", CONFIGS, ids=names(CONFIGS))
def test_a_configuration_says_what_it_is_for_and_could_start(file: Path) -> None:
    assert file.read_text("utf-8").startswith("# ")
    validate(parse(["--config", str(file)]))


@pytest.mark.long
def test_the_commands_of_the_demo_run_as_they_are_pasted_and_pasted_again(tmp_path: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    [block] = [block for block in blocks if "--config configs/demo.yaml" in block]
    for folder in ("scripts", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "bin").mkdir()
    for name, program in {"python": "", "stream-pretrain": "-m stream_pretrain"}.items():
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    for said in ("step 100: saved", "finished"):
        done = subprocess.run(
            ["bash", "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stderr
