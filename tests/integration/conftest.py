"""What tests of whole runs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpora import documents, write_shard
from tests.integration.hub_server import AskedHub, asked


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


@pytest.fixture(scope="session")
def training_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AskedHub]:
    """A Hub, and forks that train and know it; each module writes repositories of its own into it."""
    with asked(tmp_path_factory.mktemp("hub"), "stream_pretrain.commands.train", "datasets") as hub:
        yield hub
