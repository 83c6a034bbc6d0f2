"""What tests of training share."""

from __future__ import annotations

import os
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.corpora import documents, write_shard


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of 40 documents, which no test changes."""
    folder = tmp_path_factory.mktemp("corpus")
    write_shard(folder / "s", documents(40, longest=40), "plain")
    return folder


@pytest.fixture
def screen() -> Iterator[Any]:
    """A terminal of 80 columns and 24 lines."""
    from tests.training.screens import Screen  # which skips the test where there is no pyte

    master, slave = os.openpty()
    termios.tcsetwinsize(master, (24, 80))
    with open(slave, "w") as stream:
        yield Screen(master, stream)
    os.close(master)
