"""The corpus of the streams."""

from __future__ import annotations

import pytest

from tests.corpora import documents, json_lines


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(3):
        (folder / f"{number}.jsonl").write_bytes(json_lines(documents(60, seed=number)))
    return str(folder)
