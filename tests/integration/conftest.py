"""What tests of whole runs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpora import documents, write_shard


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of 200 documents, which no test changes."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(4):
        write_shard(folder / f"s{i}", documents(200, seed=i), "zst-multi")
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
