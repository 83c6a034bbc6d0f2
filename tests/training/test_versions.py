"""A run says by which program it was trained."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from stream_pretrain.training.files import versions
from stream_pretrain.training.files.versions import program, repository


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "x")
    monkeypatch.setattr(versions, "CHECKOUT", tmp_path)
    program.cache_clear()
    yield tmp_path
    program.cache_clear()


def test_versions_and_commit_are_those_of_the_program(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as git has it for a hook that starts the program
    said = program()
    assert said["commit"] == git_head(checkout)
    release, of_package = torch.__version__.partition("+")[0], said["versions"]["torch"].partition("+")[0]
    assert of_package == release, "a CUDA build names its build in one of them only"
    assert {"python", "transformers", "tokenizers", "datasets", "accelerate"} < said["versions"].keys()


def git_head(folder: Path) -> str:
    head = (folder / ".git" / "HEAD").read_text().strip().removeprefix("ref: ")
    return (folder / ".git" / head).read_text().strip()


def test_a_package_in_the_repository_of_somebody_else_has_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "site-packages").mkdir()
    monkeypatch.setattr(versions, "CHECKOUT", checkout / "site-packages")
    program.cache_clear()
    assert program()["commit"] is None


def test_the_remote_of_a_repository_is_told_without_its_key(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(checkout, "remote", "add", "origin", "https://ghp_token@example.org/a.git")
    monkeypatch.chdir(checkout)
    assert repository() == {"git_commit": git_head(checkout), "git_remote_url": "https://example.org/a.git"}
