"""Versions and commit of this program, and versions of the libraries that decide what is learnt."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from stream_pretrain.urls import without_secrets

CHECKOUT = Path(__file__).resolve().parents[3]
PACKAGES = ("stream_pretrain", "torch", "transformers", "tokenizers", "datasets", "accelerate")


@cache  # they do not change while the program runs
def program() -> dict[str, Any]:
    """`versions` by package, and the `commit`; None outside of a checkout."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):  # a checkout that was never installed
            versions[package] = importlib.metadata.version(package)
    return {"versions": versions, "commit": _git(CHECKOUT, "rev-parse", "HEAD") if (CHECKOUT / ".git").exists() else None}


def repository() -> dict[str, str]:
    """Commit and remote of the current repository, by the names that the client of Weights & Biases uses."""
    commit, remote = _git(Path.cwd(), "rev-parse", "HEAD"), _git(Path.cwd(), "config", "remote.origin.url")
    found = {"git_commit": commit, "git_remote_url": remote and without_secrets(remote)}
    return {name: value for name, value in found.items() if value is not None}


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command; None outside of a repository or without git."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # of another repository
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip() or None
    return None
