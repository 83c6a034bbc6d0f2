"""The benchmarks run where nothing is at hand, and end with the figures they promise. How fast is not asked here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
PROMISED = {
    "bench_stream": {"tokens_per_second", "ratio_to_limit", "ratio_to_datasets", "peak_rss_mb"},
    "bench_resume": {
        "cold_seconds",
        "plain_ratio",
        "zstd_multi_ratio",
        "zstd_single_seconds",
        "gz_seconds",
        "datasets_seconds",
    },
}


@pytest.mark.parametrize("script", PROMISED)
def test_a_benchmark_ends_with_the_promised_figures(script: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / script, "--quick", "--sequence-length=128"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.keys() == PROMISED[script]
    for name, value in figures.items():
        assert math.isfinite(value), name
        assert value > 0, name
