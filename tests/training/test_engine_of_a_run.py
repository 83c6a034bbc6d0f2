"""A run that tokenizes with a fast engine: it may change, and one that gives other ids ends the run before they are used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from stream_pretrain.data.rows import engine_parity
from tests.broken_engine import breaks_at
from tests.corpora import documents, write_shard, write_tiny_bert
from tests.integration.jobs import tiny_options
from tests.training.runs import run_here, run_to_end


@pytest.fixture(autouse=True)
def nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def arguments(folder: Path, out: str, texts: Sequence[str]) -> list[str]:
    corpus, model = write_shard(folder / "s", texts, "plain"), write_tiny_bert(folder / "model")
    sizes = ("--sequence-length=64", "--global-batch-size=8", "--micro-batch-size=8", "--lanes=1", "--data.window-bytes=8000")
    return tiny_options(corpus, model, folder / out, *sizes, "--save-every=1", "--max-steps=none")


def losses(out: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def engine_at(out: Path, step: int) -> str:
    return json.loads((out / "checkpoints" / f"step-{step:08d}" / "trainer.json").read_text())["engine"]["name"]


def test_a_run_begins_with_one_engine_and_goes_on_with_another(tmp_path: Path) -> None:
    pytest.importorskip("nanotoken")
    texts = documents(200)
    for out, engines in (("mixed", ("tokenizers", "auto", "tokenizers")), ("plain", ("tokenizers",) * 3)):
        for number, engine in enumerate(engines, start=1):
            finished = run_to_end([*arguments(tmp_path, out, texts), f"--data.engine={engine}", f"--max-steps={number * 3}"])
            if (out, number) == ("mixed", 2):
                assert "tokenizing with nanotoken " in finished
                assert "and resumes with nanotoken " in finished
                assert engine_at(tmp_path / out, 6) == "nanotoken"
    assert losses(tmp_path / "mixed") == losses(tmp_path / "plain")


def test_other_ids_in_a_window_end_the_run_which_goes_on_with_tokenizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = documents(80)
    texts[60] += " \u0c5c"
    run_to_end([*arguments(tmp_path, "plain", texts), "--max-epochs=1", "--data.engine=tokenizers"])

    breaks_at("\u0c5c", monkeypatch)
    monkeypatch.setattr(engine_parity, "SAMPLED", 1 - 1e-9)
    monkeypatch.setattr("stream_pretrain.data.rows.engine_choice.probes", lambda _: ["bara"])
    command, out = [*arguments(tmp_path, "out", texts), "--max-epochs=1", "--data.engine=nanotoken"], tmp_path / "out"
    ended = run_here(command)
    offset = sum(map(len, (tmp_path / "s.jsonl").read_bytes().splitlines(keepends=True)[:60]))
    why = f"s.jsonl, offset {offset}: nanotoken 0.1.0 gives other ids than tokenizers "
    assert ended.returncode == 75
    assert f"error: {why}" in ended.stderr
    assert "for '\\u0c5c' (U+0C5C); the same command resumes with tokenizers" in ended.stderr
    before = len(losses(out))
    assert 0 < before < len(losses(tmp_path / "plain"))
    assert engine_at(out, before) == "nanotoken"
    kept = json.loads((out / "engine.json").read_text())
    assert kept["engine"] == "tokenizers"
    assert kept["why"].startswith(f"EngineError: {why}")

    resumed = run_to_end(command)
    assert f"tokenizing with tokenizers {kept['why'].split('tokenizers ')[1].split()[0]}: " in resumed
    assert f"{out}/engine.json says why" in resumed
    assert losses(out) == losses(tmp_path / "plain")


def test_other_ids_in_the_first_documents_end_the_run_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks_at("doc 000007", monkeypatch)
    monkeypatch.setattr(engine_parity, "SAMPLED", 1e-9)
    command = [*arguments(tmp_path, "out", documents(80)), "--max-steps=2", "--data.engine=nanotoken"]
    ended = run_here(command)
    assert ended.returncode == 75
    assert "nanotoken 0.1.0 gives other ids than tokenizers" in ended.stderr
    assert "for 'doc 000007'" in ended.stderr
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
    (tmp_path / "out" / "engine.json").write_text("{")
    refused = run_here(command)
    assert refused.returncode == 1
    assert "engine.json is not JSON: delete it, and the run chooses its engine again" in refused.stderr
