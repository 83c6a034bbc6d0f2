"""What a run makes of a damaged shard that `datasets` reads, and what it says it has waited for."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest

from tests.corpora import documents, write_shard
from tests.forks import ENVIRONMENT, trainers
from tests.integration.http_server import serve
from tests.integration.jobs import lines, recorded


def train(dataset: Path | str, model: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = [
        *("-m", "stream_pretrain", f"--dataset={dataset}", f"--model.config={model}"),
        *(f"--model.tokenizer={model}", f"--output-dir={out}", "--sequence-length=32", "--global-batch-size=8"),
        *("--workers=1", "--log-every=1", "--train.warmup-steps=1", "--run.wandb=disabled", *options),
    ]
    return trainers().run(program, ENVIRONMENT)


@pytest.mark.long
def test_a_damaged_shard_that_datasets_reads_is_skipped_where_asked_for_and_ends_the_run_elsewhere(
    model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, name in enumerate(("a", "b", "c")):  # so small that they are parsed in one piece, the damaged one not at all
        content = gzip.compress("".join(f"{line}\n" for line in ["text", *documents(1500, seed=2 * number)]).encode())
        (folder / f"{name}.csv.gz").write_bytes(content[:-3000] if name == "b" else content)
    options = ("--lanes=1", "--max-epochs=1", "--sequence-length=64", "--global-batch-size=64", "--data.heldout-fraction=0")
    refused = train(folder, model, tmp_path / "refused", *options)
    assert refused.returncode == 1
    assert "b.csv.gz: the gzip member that begins at compressed byte 0" in refused.stderr.splitlines()[-1]
    skipped = train(folder, model, tmp_path / "skipped", *options, "--data.on-bad-shard=skip")
    assert skipped.returncode == 0, skipped.stderr
    [record] = lines(tmp_path / "skipped/quarantine.jsonl")
    assert record["shard"] == "b.csv.gz"
    assert record["why"].startswith(f"rest of the stripe skipped: {folder}/b.csv.gz: the gzip member that begins at compressed")
    assert lines(tmp_path / "skipped/metrics.jsonl")[-1]["train/documents"] == 3000
    assert recorded(tmp_path / "skipped")["state"] == "finished"


def share_of_network(out: Path) -> float:
    """Of all the time that steps waited for data."""
    waited = {
        cause: sum(line[f"train/data_wait_{cause}"] for line in lines(out / "metrics.jsonl"))
        for cause in ("network", "reading", "tokenizing")
    }
    return waited["network"] / sum(waited.values())


def test_a_slow_server_is_what_a_run_says_it_has_waited_for(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    shards = [write_shard(folder / f"s{number}", documents(60, seed=number, longest=60), "plain") for number in range(2)]
    # The first shard is waited for before the first step.
    options = ("--lanes=1", "--max-steps=30", "--eval-every=0", "--log-every=30")
    local = train(folder, model, tmp_path / "local", *options)
    assert local.returncode == 0, local.stderr
    with serve(folder) as server:
        (tmp_path / "urls.txt").write_text("".join(f"{server.url(shard.name)}\n" for shard in shards))
        for shard in shards:
            server.inject(shard.name, {"do": "none"}, {"do": "trickle", "bytes": 10})  # the first request asks for the size
        remote = train(f"@{tmp_path / 'urls.txt'}", model, tmp_path / "remote", *options)
    assert remote.returncode == 0, remote.stderr
    assert share_of_network(tmp_path / "remote") > 0.5 > share_of_network(tmp_path / "local")
