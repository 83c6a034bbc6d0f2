"""The share of documents that had to be skipped: of the documents of the windows they come from, at every step."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.corpora import documents, json_lines, write_tiny_bert
from tests.training.runs import run_here

BAD = b"{not JSON\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("model"))


def train(corpus: Path, model: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """A run over all of a corpus, which says its metrics at every step."""
    return run_here(
        [
            *(f"--dataset={corpus}", f"--model.config={model}", f"--model.tokenizer={model}", f"--output-dir={corpus}-out"),
            *("--max-epochs=1", "--sequence-length=64", "--global-batch-size=8", "--log-every=1", "--run.wandb=disabled"),
            *more,
        ]
    )


def metrics(corpus: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(f"{corpus}-out", "metrics.jsonl").read_text().splitlines()]


def write_with_bad_lines(path: Path, every: int) -> Path:
    """3,400 short documents, and a line that is no JSON behind every so many of them."""
    path.mkdir()
    lines = json_lines(documents(3400, longest=2)).splitlines(keepends=True)
    bad = [line + BAD * ((i + 1) % every == 0) for i, line in enumerate(lines)]
    (path / "s.jsonl").write_bytes(b"".join(bad))
    return path


def test_a_share_below_the_limit_ends_no_run_wherever_its_windows_are_opened(model: Path, tmp_path: Path) -> None:
    corpus = write_with_bad_lines(tmp_path / "corpus", every=140)  # 0.7 %
    done = train(corpus, model)
    assert done.returncode == 0, done.stderr
    assert [line["train/skipped_documents"] for line in metrics(corpus)][-1] == 24
    assert metrics(corpus)[-1]["train/documents"] == 3400


def test_a_share_above_the_limit_ends_the_run_with_the_documents_of_the_windows_that_were_opened(
    model: Path, tmp_path: Path
) -> None:
    corpus = write_with_bad_lines(tmp_path / "corpus", every=70)  # 1.4 %
    done = train(corpus, model)
    assert done.returncode == 1
    assert "of the first 3448 documents had to be skipped, more than --data.max-bad-fraction 0.01:" in done.stderr
