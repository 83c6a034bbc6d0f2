"""What is said of a corpus by the documents that could not be used, or have no text, and when that ends a run."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from stream_pretrain.training.state.totals import Totals, sources_without_text
from tests.corpora import documents, json_lines
from tests.integration.jobs import lines, tiny_options
from tests.training.runs import run_here

BAD = b"{not JSON\n"


def train(corpus: Path, model: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """A run over all of a corpus, which says its metrics at every step."""
    sizes = ("--sequence-length=64", "--global-batch-size=8", "--micro-batch-size=32")
    auto = ("--lanes=auto", "--data.window-bytes=auto")
    return run_here(tiny_options(corpus, model, Path(f"{corpus}-out"), "--max-epochs=1", *sizes, *auto, *more))


def metrics(corpus: Path) -> list[dict[str, float]]:
    return lines(Path(f"{corpus}-out", "metrics.jsonl"))


def write_with_bad_lines(path: Path, every: int) -> Path:
    """3,400 short documents, and a line that is no JSON behind every so many of them."""
    path.mkdir()
    lines = json_lines(documents(3400, longest=2)).splitlines(keepends=True)
    bad = [line + BAD * ((i + 1) % every == 0) for i, line in enumerate(lines)]
    (path / "s.jsonl").write_bytes(b"".join(bad))
    return path


def test_a_share_below_the_limit_ends_no_run_wherever_its_windows_are_opened(model: Path, tmp_path: Path) -> None:
    corpus = write_with_bad_lines(tmp_path / "corpus", every=140)  # 0.7 %
    done = train(corpus, model, "--global-batch-size=32")
    assert done.returncode == 0, done.stderr
    assert [line["train/skipped_documents"] for line in metrics(corpus)][-1] == 24
    assert metrics(corpus)[-1]["train/documents"] == 3400


def test_a_share_above_the_limit_ends_the_run_with_the_documents_of_the_windows_that_were_opened(
    model: Path, tmp_path: Path
) -> None:
    corpus = write_with_bad_lines(tmp_path / "corpus", every=70)  # 1.4 %
    done = train(corpus, model)
    assert done.returncode == 1
    assert "of the first 3143 documents were skipped, more than --data.max-bad-fraction 0.01:" in done.stderr


def quarantine(corpus: Path) -> list[dict[str, Any]]:
    return lines(Path(f"{corpus}-out", "quarantine.jsonl"))


def test_documents_without_text_end_no_run_and_are_named_a_window_at_a_time(model: Path, tmp_path: Path) -> None:
    without = itertools.cycle([{"text": ""}, {"text": None}, {"url": "x"}, {"text": []}, {"text": "\u200b"}])
    texts = [{"text": text} for text in documents(1500, longest=2)]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    lines = [json.dumps(next(without) if i % 8 == 0 else text) + "\n" for i, text in enumerate(texts)]
    (corpus / "s.jsonl").write_text("".join(lines))
    done = train(corpus, model, "--data.max-bad-fraction=0", "--global-batch-size=32")
    assert done.returncode == 0, done.stderr
    last, records = metrics(corpus)[-1], quarantine(corpus)
    counts = [last[f"train/{name}documents"] for name in ("", "skipped_", "empty_", "filtered_")]
    assert counts == [1312, 0, 188, 0]
    kinds = Counter[str]()
    for record in records:
        kinds[record["why"]] += record["documents"]
    assert kinds == {"text is blank": 75, "text is null": 38, "no field text; fields seen: url": 38, "no tokens": 37}
    assert len(records) < 70
    assert "have no text" not in done.stderr


def test_most_documents_without_text_are_said_once(model: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    lines = [json.dumps({"text": text if i % 3 == 0 else None}) + "\n" for i, text in enumerate(documents(1500, longest=2))]
    (corpus / "s.jsonl").write_text("".join(lines))
    done = train(corpus, model, "--global-batch-size=32")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stderr.splitlines() if "no text" in line]
    assert line == (
        "warning: 1,000 of the first 1,500 documents have no text: is it in 'text'? OUT/quarantine.jsonl says what they have; "
        "--data.min-characters 1 filters them out"
    )


def test_a_corpus_without_text_says_what_it_has(model: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "s.jsonl").write_text('{"text": null, "body": "a"}\n' * 30 + "no JSON\n" * 2)
    done = train(corpus, model)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: {corpus}: no document to train on, but 30 without text and 2 skipped: not JSON / text is null"
    )
    assert [(record["why"], record["documents"]) for record in quarantine(corpus)] == [
        ("text is null", 30),
        ("not JSON", 1),
        ("not JSON", 1),
    ]


def test_a_field_that_a_source_of_a_mixture_does_not_have_is_said_of_that_source() -> None:
    totals = Totals(source_read=[5000, 1200, 900], source_empty=[600, 700, 900])
    plans = [SimpleNamespace(name=name, read=SimpleNamespace(fields=[name])) for name in ("a", "b", "c")]
    assert sources_without_text(totals, plans, at_end=False) == {  # type: ignore[arg-type]
        "b": "700 of the first 1,200 documents of source b have no text: is it in 'b'? OUT/quarantine.jsonl says what they "
        "have; --data.min-characters 1 filters them out"
    }
    assert list(sources_without_text(totals, plans, at_end=True)) == ["b", "c"]  # type: ignore[arg-type]
