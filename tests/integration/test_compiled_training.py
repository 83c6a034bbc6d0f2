"""--model.compile in a real process, with the backend that users get: it needs a C++ compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM

from tests.corpora import documents, write_shard, write_tiny_bert
from tests.forks import ENVIRONMENT
from tests.integration.runs import command, last_checkpoint, metrics

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++"),
]


def test_a_compiled_run_learns_what_an_ordinary_one_does_goes_on_and_loads_without_a_trace(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard", documents(300), "plain")
    model = write_tiny_bert(tmp_path / "model", dropout=0.0)  # compiled dropout draws other numbers
    code = tmp_path / "code"

    def run(out: str, compiled: str, steps: int) -> list[dict[str, float]]:
        options = [f"--max-steps={steps}", "--train.schedule=constant", "--eval-every=0", f"--model.compile={compiled}"]
        done = subprocess.run(
            command(tmp_path / "shard*", model, tmp_path / out, *options),
            env=ENVIRONMENT | {"TORCHINDUCTOR_CACHE_DIR": str(code)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return metrics(tmp_path / out)

    expected = run("ordinary", "false", steps=8)
    assert not list(code.rglob("*.cpp"))
    assert run("compiled", "true", steps=4)[-1]["step"] == 4
    assert list(code.rglob("*.cpp"))
    found = run("compiled", "true", steps=8)

    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for line, like in zip(found, expected, strict=True):
        assert line == pytest.approx(like, rel=1e-4)
    _, info = AutoModelForMaskedLM.from_pretrained(last_checkpoint(tmp_path / "compiled"), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
