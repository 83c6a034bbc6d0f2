"""The training benchmark runs where nothing is at hand, and ends with the figures it promises. How fast is not asked here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "bench_train"


@pytest.mark.long
@pytest.mark.timeout(600)  # eight processes that each import torch and transformers
def test_the_training_benchmark_ends_with_the_promised_figures(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.keys() == {"useful_ratio", "tokens_per_second", "mfu", "data_wait_fraction"}
    assert figures["useful_ratio"] > 0
    assert figures["tokens_per_second"] > 0
    assert figures["mfu"] is None
    assert 0 <= figures["data_wait_fraction"] <= 1
    assert "\nno GPU: mfu and what matters on GPUs alone (without compile" in done.stdout
    for contender in ("padded", "grouped", "without packing", "without labelled head", "without fused AdamW"):
        assert f"\n{contender} " in done.stdout
