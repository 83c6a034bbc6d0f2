"""Retries and resumes together: a server that fails, a reader killed at its requests, another number of processes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpora import documents, write_shard, write_tiny_bert
from tests.integration.http_server import Server, serve
from tests.integration.jobs import checkpoints, started
from tests.integration.runs_on_ranks import launch, losses, metrics, options, same_rows, train

SHARDS = 20
DOCUMENTS = 15
STYLES = ("plain", "zst", "zst-multi", "gz", "parquet")
FAULTS = [
    {"do": "none"},
    {"do": "reset", "after": 300},
    {"do": "short", "after": 200},
    {"do": "short", "after": 100, "length": False},
    {"do": "status", "code": 503},
    {"do": "status", "code": 429, "headers": {"Retry-After": "0"}},
]


# A run that asks again soon: the faults are many.
IMPATIENT = """
import sys
from stream_pretrain.cli import main
from stream_pretrain.data.transport import retrying

retrying._BACKOFF_BASE = 0.05
sys.exit(main())
"""


@pytest.fixture
def corpus(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "served"
    folder.mkdir()
    return [write_shard(folder / f"s{i:02}", documents(DOCUMENTS, seed=i), STYLES[i % 5]) for i in range(SHARDS)]


@pytest.fixture
def server(corpus: list[Path]) -> Iterator[Server]:
    with serve(corpus[0].parent) as server:
        yield server


def test_every_document_is_read_once_whatever_request_fails_and_wherever_the_readers_are_killed(
    server: Server, corpus: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "urls.txt").write_text("".join(f"{server.url(path.name)}\n" for path in corpus))
    model = write_tiny_bert(tmp_path / "model", dropout=0.0)
    out, clean = tmp_path / "out", tmp_path / "clean"
    program = [str(tmp_path / "impatient.py")]
    Path(program[0]).write_text(IMPATIENT)
    command = [f"@{tmp_path}/urls.txt", model]
    train(1, options(*command, clean, "--max-epochs=1"), clean)

    draw = random.Random(11)
    for path in corpus:
        server.inject(path.name, *draw.choices(FAULTS, k=6))
    reached = 0
    for world, workers in ((1, 2), (2, 1)):
        requests, step = len(server.log()) + draw.randrange(8, 25), reached + draw.randrange(5, 30)
        with started(
            launch(world, options(*command, out, "--max-epochs=1", "--save-every=1", f"--workers={workers}"), program),
            out.with_suffix(f".{world}"),
            forked=True,
        ) as running:
            running.until(lambda step=step: checkpoints(out)[-1:] >= [step])
            running.until(lambda requests=requests: len(server.log()) >= requests)
            # The end of the block is the kill.
        reached = checkpoints(out)[-1]
    last = train(1, options(*command, out, "--max-epochs=1", "--workers=3"), out, program)

    assert "retrying in" in last.stderr + out.with_suffix(".1").read_text() + out.with_suffix(".2").read_text()
    assert same_rows(metrics(out)) == same_rows(metrics(clean))
    assert losses(out) == pytest.approx(losses(clean), rel=1e-4)
    for folder in (out, clean):
        stream = json.loads(max((folder / "checkpoints").glob("step-*")).joinpath("stream.json").read_text())
        at = stream["fields"].index("documents")
        assert sum(lane["sources"][0][at] for lane in stream["lanes"]) == SHARDS * DOCUMENTS
