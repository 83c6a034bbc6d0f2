"""The benchmarks run where nothing is at hand, and end with the figures they promise. How fast is not asked here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.forks import ENVIRONMENT, trainers

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"

pytestmark = pytest.mark.long


def printed_by(script: str, tmp_path: Path, *options: str) -> list[str]:
    """The lines of a benchmark that runs where nothing is at hand."""
    environment = {**ENVIRONMENT, "HF_HOME": str(tmp_path)}
    done = trainers().run([str(SCRIPTS / script), "--quick", *options], environment, tmp_path, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def figures_of(script: str, tmp_path: Path, *options: str) -> dict[str, Any]:
    """The last of them."""
    figures: dict[str, Any] = json.loads(printed_by(script, tmp_path, *options)[-1])
    return figures


def test_the_resume_benchmark_ends_with_the_seconds_of_every_kind_of_shard(tmp_path: Path) -> None:
    figures = figures_of("bench_resume", tmp_path, "--sequence-length=128")
    ratios, seconds = (
        {"plain_ratio", "zstd_multi_ratio"},
        {"cold_seconds", "zstd_single_seconds", "gz_seconds", "datasets_seconds"},
    )
    assert figures.keys() == ratios | seconds
    assert all(math.isfinite(value) and value > 0 for value in figures.values()), figures


def test_the_stream_is_measured_with_tokenizers_and_with_a_fast_engine(tmp_path: Path) -> None:
    figures = figures_of("bench_stream", tmp_path)
    with_tokenizers = figures.pop("with_tokenizers")
    ratios = {"ratio_to_recipe", "ratio_to_encode_batch_fast", "ratio_to_parts"}
    assert figures.keys() == {"engine", "tokens_per_second", "fill"} | ratios
    assert with_tokenizers.keys() == {"tokens_per_second", "fill"} | ratios
    assert figures.pop("engine") in ("nanotoken", "tokenizers")
    assert all(value > 0 for value in (*figures.values(), *with_tokenizers.values()))
    assert figures["fill"] > 0.9


def test_peers_are_measured_with_what_is_here_and_those_that_are_not_are_named(tmp_path: Path) -> None:
    printed = printed_by("bench_peers", tmp_path, "--only-here", "--tokenizer=bpe")
    ours = {"recipe", "recipe, shuffled", "recipe, 2 workers", "this stream, tokenizers"}
    ((name, figures),) = json.loads(printed[-1]).items()
    assert name == "made, bpe"
    assert figures.keys() - {"this stream, fastokens"} == ours
    assert all(rate > 0 for rate in figures.values())
    assert ours <= {line.split(" | ")[0].removeprefix("| ") for line in printed}
    assert "| MosaicML streaming | not measured: not asked for |" in printed
    assert "| LitData, tokens | not measured: not asked for |" in printed


def test_the_feed_benchmark_ends_with_how_long_a_consumer_waits(tmp_path: Path) -> None:
    figures = figures_of("bench_feed", tmp_path)
    assert figures.keys() == {"wait_at_90_ms", "consumers_of_a_core"}
    assert figures["wait_at_90_ms"] >= 0


def test_the_memory_benchmark_ends_with_the_memory_of_a_worker(tmp_path: Path) -> None:
    figures = figures_of("bench_memory", tmp_path)
    assert figures.keys() == {"lanes", "begins_with_mb", "most_mb", "most_own_mb", "growth_mb", "bound_mb"}
    assert 0 < figures["most_own_mb"] < figures["most_mb"]
    assert 0 < figures["begins_with_mb"] < figures["most_mb"]


def test_an_epoch_takes_the_fewest_steps_and_steps_of_two_ranks_are_measured_where_lanes_end(tmp_path: Path) -> None:
    figures = figures_of("bench_epochs", tmp_path)
    assert figures["steps"] == figures["fewest"]
    assert "a file of 71 kB" in figures["steps"]
    for measured in ("step_ms", "step_processor_ms"):
        assert figures[measured].keys() == {"no lane ends", "before the first end", "behind those of a rank"}
        assert all(value > 0 for value in figures[measured].values())


def test_the_speed_up_of_workers_is_measured_where_there_are_several(tmp_path: Path) -> None:
    assert figures_of("bench_stream", tmp_path, "--workers=1,2")["speed_up_of_workers"] > 0


@pytest.mark.timeout(600)
def test_the_checkpoint_benchmark_shows_each_save_and_ends_with_the_promised_figures(tmp_path: Path) -> None:
    lines = printed_by("bench_checkpoint", tmp_path)
    figures = json.loads(lines[-1])
    assert figures.keys() == {"blocking_ratio", "step_time_ratio_during_write"}
    assert figures["blocking_ratio"] > 0
    for contender in ("save_state", "async_save", "stream_pretrain"):
        assert sum(line.startswith(contender) for line in lines) == 2, "a save, and the medians"


@pytest.mark.timeout(600)
def test_the_training_benchmark_shows_each_recipe_and_ends_with_the_promised_figures(tmp_path: Path) -> None:
    lines = printed_by("bench_train", tmp_path)
    figures = json.loads(lines[-1])
    assert figures.keys() == {"useful_ratio", "tokens_per_second", "mfu", "data_wait_fraction"}
    assert figures["useful_ratio"] > 0
    assert figures["tokens_per_second"] > 0
    assert figures["mfu"] is None
    assert 0 <= figures["data_wait_fraction"] <= 1
    assert any(line.startswith("no GPU: mfu and what matters on GPUs alone (without compile") for line in lines)
    for contender in ("padded", "grouped", "without packing", "without labelled head", "without fused AdamW"):
        assert any(line.startswith(f"{contender} ") for line in lines), contender
