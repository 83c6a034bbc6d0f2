"""One rank meets a document with other ids: all end, and the same command resumes with `tokenizers`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stream_pretrain.training.state.checkpoint import verify
from tests.command_lines import with_last
from tests.corpora import documents, write_shard, write_tiny_bert
from tests.forks import CHECKOUT
from tests.integration.jobs import checkpoints, job, recorded
from tests.integration.runs_on_ranks import losses, options, train

BROKEN = f"""
import os
import sys

os.environ["XDG_CACHE_HOME"] = "cache of"
sys.path.insert(0, {str(CHECKOUT)!r})
import pytest

from stream_pretrain.cli import main
from stream_pretrain.data.rows import engine_choice, engine_parity
from tests.broken_engine import breaks_at

engine_choice.probes = lambda _: ["bara"]
engine_parity.SAMPLED = 1 - 1e-9
breaks_at("\\u0c5c", pytest.MonkeyPatch())
sys.exit(main())
"""


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 1])
def test_all_ranks_end_and_the_resume_is_that_of_tokenizers(tmp_path: Path, workers: int) -> None:
    texts, out, program = documents(900), tmp_path / "out", tmp_path / "broken.py"
    for number in range(700, 705):
        texts[number] += " \u0c5c"
    write_shard(tmp_path / "s", texts, "plain")
    program.write_text(BROKEN.replace("cache of", str(tmp_path)))
    model = write_tiny_bert(tmp_path / "model")

    def arguments(to: Path, *more: str) -> list[str]:
        more = ("--max-epochs=1", "--save-every=10", "--run.keep-last=99", f"--workers={workers}", *more)
        return with_last(options(tmp_path / "s.jsonl", model, to, *more))

    train(2, arguments(tmp_path / "plain", "--data.engine=tokenizers"), tmp_path / "plain")
    command = arguments(out, "--data.engine=auto")
    with job(2, command, out.with_suffix(".log"), program=[str(program)]) as running:
        assert running.wait(170) != 0
    (error,) = running.errors()
    assert "s.jsonl, offset " in error
    assert "nanotoken 0.1.0 gives other ids than tokenizers" in error
    assert (recorded(out)["state"], recorded(out)["exit_code"]) == ("failed", 75)
    assert json.loads((out / "engine.json").read_text())["engine"] == "tokenizers"
    assert checkpoints(out)
    verify(out / "checkpoints" / f"step-{checkpoints(out)[-1]:08d}")
    resumed = train(2, command, out, program=[str(program)])
    assert "engine.json says why" in resumed.stderr
    assert losses(out) == losses(tmp_path / "plain")
