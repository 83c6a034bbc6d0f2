"""`stream-pretrain --dataset org/name` from a loopback Hub, with nothing cached and nothing of a shard left on disk."""

from __future__ import annotations

import json
import random
import re
import string
from pathlib import Path

import pytest
from transformers import BertConfig, BertForPreTraining

from tests.corpora import documents, write_shard, write_tiny_bert, write_tiny_bert_with_weights
from tests.integration.hub_server import AskedHub


@pytest.fixture(scope="session")  # written once, though tests of the module may be dealt out again
def server(training_hub: AskedHub) -> AskedHub:
    root = training_hub.root
    folder = root / "datasets" / "org" / "corpus" / "main"
    folder.mkdir(parents=True)
    rng = random.Random(0)
    for i in range(3):  # words that do not compress, so that a shard is several megabytes
        noise = [f"{text} {''.join(rng.choices(string.ascii_letters, k=20_000))}" for text in documents(300, seed=i)]
        write_shard(folder / f"train-{i}", noise, "zst")
    write_tiny_bert(root / "models" / "org" / "tiny" / "main")
    return training_hub


@pytest.fixture
def hub(server: AskedHub) -> AskedHub:
    server.clear_home()
    return server


def program(out: Path, *options: str, max_steps: int = 3) -> list[str]:
    return [
        *("-m", "stream_pretrain", "--dataset=org/corpus", "--model.config=org/tiny"),
        *("--model.tokenizer=org/tiny", f"--output-dir={out}", f"--max-steps={max_steps}", "--sequence-length=32"),
        *("--global-batch-size=8", "--workers=1", "--log-every=1", "--run.wandb=disabled", *options),
    ]


def train(hub: AskedHub, out: Path, *options: str, max_steps: int = 3, **variables: str) -> str:
    """What a run says that comes to its end."""
    done = hub.forks.run(program(out, *options, max_steps=max_steps), hub.environment(hub.home, **variables))
    assert done.returncode == 0, done.stderr
    return done.stderr


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_hub_dataset_trains_at_once_and_no_shard_lands_on_the_disk(hub: AskedHub, tmp_path: Path) -> None:
    shards = sum(path.stat().st_size for path in (hub.root / "datasets").rglob("*.zst"))
    assert shards > 10_000_000
    before = len(hub.requests())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    train(hub, tmp_path / "out", "--lanes=2", max_steps=20, TMPDIR=str(scratch))
    assert size_of(scratch) < 500_000, "nothing of the corpus is left in the temporary folder"
    steps = [json.loads(line)["step"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 21))
    assert size_of(hub.home) < 500_000, "the tokenizer and the card, not the corpus"
    corpus = json.loads((tmp_path / "out/checkpoints/step-00000020/corpus.json").read_text())
    (source,) = corpus["sources"]
    assert len(source["revision"]) == 40
    assert all(f"@{source['revision']}/" in shard["url"] for shard in source["shards"])
    listings = [r for r in hub.requests()[before:] if "/tree/" in r["path"] and "/datasets/" in r["path"]]
    assert len(listings) == len({r["path"] for r in listings}), "each folder is listed once"
    reads = [(r["path"], r["range"]) for r in hub.requests()[before:] if "/lfs/" in r["path"]]
    assert sorted(reads) == sorted(set(reads)), "no part of a shard is asked for twice, neither to start nor to train"


def test_the_first_step_of_a_large_dataset_costs_a_few_mebibytes(hub: AskedHub, tmp_path: Path) -> None:
    folder = hub.root / "datasets/org/large/main"
    folder.mkdir(parents=True)
    for number in range(4):
        texts = [f"{text} {random.Random(text).randbytes(30_000).hex()}" for text in documents(500, seed=number)]
        write_shard(folder / f"train-{number}", texts, "zst")
    assert size_of(folder) > 60_000_000
    before = len(hub.requests())
    train(hub, tmp_path / "out", "--dataset=org/large", "--lanes=1", max_steps=1)
    fetched = [request["bytes"] for request in hub.requests()[before:] if "/org/large/" in request["path"]]
    assert sum(fetched) < 9_000_000, "one block of one shard, and the listings"


def test_what_a_hub_model_comes_with_is_exported(hub: AskedHub, tmp_path: Path) -> None:
    folder = write_tiny_bert(hub.root / "models" / "org" / "whole" / "main")
    BertForPreTraining(BertConfig.from_pretrained(folder)).save_pretrained(folder)
    files = {
        "LICENSE": "do as you like",
        "generation_config.json": '{"eos_token_id": [1, 2]}',
        "chat_template.jinja": "{{ 1 }}",
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(bytes(100_000))
    (folder / "pytorch_model.bin").write_bytes(bytes(100_000))
    run = [f"--output-dir={tmp_path / 'out'}", "--max-steps=1", "--sequence-length=32", "--global-batch-size=8", "--workers=0"]
    arguments = ["-m", "stream_pretrain", "--dataset=org/corpus", "--model=org/whole", "--run.wandb=disabled", *run]
    done = hub.forks.run(arguments, hub.environment(hub.home))
    assert done.returncode == 0, done.stderr
    assert "not trained, exported unchanged: bert.pooler.dense.bias" in done.stderr
    assert "Fetching" not in done.stderr
    assert {name: (tmp_path / "out" / "model" / name).read_text() for name in files} == files
    assert not [
        request for request in hub.requests() if request["path"].endswith((".onnx", ".bin")) and request["method"] == "GET"
    ]


def test_nothing_is_said_of_a_model_without_a_licence_and_a_card_without_metadata(hub: AskedHub, tmp_path: Path) -> None:
    folder = hub.root / "datasets" / "org" / "undescribed" / "main"
    folder.mkdir(parents=True)
    write_shard(folder / "train", documents(50), "zst")
    (folder / "README.md").write_text("# A corpus\n")
    write_tiny_bert_with_weights(hub.root / "models" / "org" / "undescribed" / "main")
    run = [f"--output-dir={tmp_path / 'out'}", "--max-steps=1", "--sequence-length=32", "--global-batch-size=8", "--workers=0"]
    arguments = ["-m", "stream_pretrain", "--dataset=org/undescribed", "--model=org/undescribed", "--run.wandb=disabled", *run]
    done = hub.forks.run(arguments, hub.environment(hub.home))
    assert done.returncode == 0, done.stderr
    assert "No files matched" not in done.stderr
    assert "Repo card" not in done.stderr


def test_a_run_goes_on_through_faults_of_the_hub(hub: AskedHub, tmp_path: Path) -> None:
    train(hub, tmp_path / "whole", max_steps=6)
    hub.fail(r"GET .*zst", "reset", times=2)
    hub.fail(r"GET .*zst", 503, times=2)
    hub.fail(r"GET .*zst", "short", times=1)
    train(hub, tmp_path / "faulty", max_steps=6)
    losses = [
        [json.loads(line)["train/loss"] for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]
        for out in ("whole", "faulty")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_a_run_goes_on_at_its_commit_when_the_branch_has_moved(hub: AskedHub, tmp_path: Path) -> None:
    folder = hub.root / "datasets" / "org" / "moving"
    for commit, count in (("main", 2), ("later", 3)):
        (folder / commit).mkdir(parents=True)
        for i in range(count):
            write_shard(folder / commit / f"train-{i}", documents(200, seed=i), "zst")
    options = ("--dataset=org/moving", "--lanes=2", "--save-every=3")
    train(hub, tmp_path / "whole", *options, max_steps=6)
    train(hub, tmp_path / "out", *options)
    (folder / "refs.json").write_text('{"main": "later"}')
    train(hub, tmp_path / "out", *options, max_steps=6)
    state, as_if_never_stopped = (
        json.loads((tmp_path / out / "checkpoints/step-00000006/stream.json").read_text()) for out in ("out", "whole")
    )
    assert state == as_if_never_stopped
    assert "3 shards" in train(hub, tmp_path / "fresh", *options)


def test_a_run_goes_on_with_the_same_files_where_its_commit_is_gone_as_after_a_squashed_history(
    hub: AskedHub, tmp_path: Path
) -> None:
    folder = hub.root / "datasets" / "org" / "squashed"
    (folder / "main").mkdir(parents=True)

    def squash(before: str, after: str) -> None:
        (folder / before).rename(folder / after)
        (folder / "refs.json").write_text(json.dumps({"main": after}))

    for i in range(2):
        write_shard(folder / "main" / f"train-{i}", documents(200, seed=i), "zst")
    squash("main", "first")
    (folder / "main").mkdir()
    options = ("--dataset=org/squashed", "--lanes=2", "--save-every=3")
    train(hub, tmp_path / "out", *options)
    squash("first", "second")
    said = train(hub, tmp_path / "out", *options, max_steps=6)
    assert re.search(r"org/squashed: commit \w{40}, with which the run began, is gone; comparing the files of \w{40}\n", said)
    assert "resuming after step 3" in said
    squash("second", "third")
    write_shard(folder / "third" / "train-1", documents(200, seed=7), "zst")
    done = hub.forks.run(program(tmp_path / "out", *options, max_steps=7), hub.environment(hub.home))
    assert done.returncode == 1
    assert "is not the corpus this run began with: train-1.jsonl.zst changed (it had " in done.stderr


def test_the_ranks_of_a_machine_ask_for_each_thing_once(hub: AskedHub, tmp_path: Path) -> None:
    write_tiny_bert_with_weights(hub.root / "models" / "org" / "shared" / "main")
    before = len(hub.requests())
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    options = program(tmp_path / "out", "--micro-batch-size=4", max_steps=2)
    from_weights = [*(one for one in options if not one.startswith("--model.")), "--model=org/shared"]
    done = hub.forks.run([*torchrun, *from_weights], hub.environment(hub.home))
    assert done.returncode == 0, done.stderr
    asked = [(request["method"], request["path"]) for request in hub.requests()[before:]]
    listings = [path for _, path in asked if "/tree/" in path and "/datasets/" in path]
    assert listings
    assert len(listings) == len(set(listings))
    fetched = [path for method, path in asked if method == "GET" and path.startswith("/org/shared/resolve/")]
    assert {path.rpartition("/")[2] for path in fetched} >= {"config.json", "tokenizer.json", "model.safetensors"}
    assert len(fetched) == len(set(fetched)), sorted(fetched)


def write_tables(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i in range(4):
        (folder / f"train-{i}.csv").write_text("".join(f"{line}\n" for line in ["text", *documents(200, seed=i)]))


def test_what_datasets_reads_is_listed_once_whatever_the_number_of_workers(hub: AskedHub, tmp_path: Path) -> None:
    write_tables(hub.root / "datasets/org/tables/main")
    before = len(hub.requests())
    train(hub, tmp_path / "out", "--dataset=org/tables", "--lanes=4", "--workers=2")
    asked = [r["path"] for r in hub.requests()[before:] if "/api/datasets/" in r["path"]]
    reads = {r["path"].rpartition("/")[2] for r in hub.requests()[before:] if r["path"].endswith(".csv") and r["range"]}
    assert reads == {"train-0.csv", "train-1.csv", "train-2.csv", "train-3.csv"}
    listings = [path for path in asked if "/tree/" in path]
    assert listings
    assert len(listings) == len(set(listings)), "not once in each worker"


@pytest.mark.parametrize("place", ["options", "environment"])
def test_a_private_dataset_that_datasets_reads_opens_to_a_token_which_is_told_to_nobody_else(
    hub: AskedHub, tmp_path: Path, place: str
) -> None:
    write_tables(hub.root / f"datasets/org/private-{place}/main")
    (hub.root / f"datasets/org/private-{place}/.token").write_text("hf_canary")
    options = [f"--dataset=org/private-{place}", "--lanes=2", "--data.retry-deadline=5", "--debug"]
    variables = {"HF_TOKEN": "hf_canary", "AWS_SECRET_ACCESS_KEY": "aws_canary", "WANDB_API_KEY": "wandb_canary"}
    if place == "options":
        options.append('--data.storage-options={"token": "hf_canary"}')
        del variables["HF_TOKEN"]
    done = hub.forks.run(program(tmp_path / "out", *options), hub.environment(hub.home, **variables))
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 3
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert "config.yaml" in {path.name for path in written}
    assert [path for path in written if b"_canary" in path.read_bytes()] == []
    assert "_canary" not in done.stderr
    assert "_canary" not in json.dumps(hub.requests())


def test_a_dataset_that_the_hub_does_not_have_is_one_line_before_the_model_is_asked_for(hub: AskedHub, tmp_path: Path) -> None:
    for option in ("--dataset=org/nowhere", "--dataset=hf://datasets/org/nowhere/*.zst"):
        before = len(hub.requests())
        done = hub.forks.run(program(tmp_path / "out", option), hub.environment(hub.home))
        assert done.returncode == 1
        *_, said = done.stderr.splitlines()
        assert said.startswith("error: ")
        assert "org/nowhere" in said
        assert "neither a file or folder here nor a dataset on the Hub that can be read" in said
        assert "Traceback" not in done.stderr
        assert [request["path"] for request in hub.requests()[before:]] == ["/api/datasets/org/nowhere"]
        assert not (tmp_path / "out").exists()
