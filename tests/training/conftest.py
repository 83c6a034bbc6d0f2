"""What tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpora import documents, write_shard


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of 40 documents, which no test changes."""
    folder = tmp_path_factory.mktemp("corpus")
    write_shard(folder / "s", documents(40, longest=40), "plain")
    return folder
