"""Replay of old data while continuing on new: a mixture trains, is killed, goes on, and says what each source gave."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.corpora import documents, write_shard, write_tiny_bert
from tests.forks import ENVIRONMENT, trainers
from tests.integration.http_server import serve
from tests.integration.runs import assert_same_run, kill_when, metrics
from tests.training.runs import run_here, run_to_end

MIXTURE = """\
data:
  sources:
    - {{name: new, dataset: {folder}/new, weight: 3}}
    - {{name: replay, dataset: {folder}/old, weight: 1, text_template: "{{title}} {{body}}"}}
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "new").mkdir()
    (folder / "old").mkdir()
    write_shard(folder / "new/shard", documents(300, seed=0), "zst")
    old = [json.dumps({"title": text[:10], "body": text[11:]}) for text in documents(300, seed=1)]
    (folder / "old/shard.jsonl").write_text("\n".join(old) + "\n")
    (folder / "mixture.yaml").write_text(MIXTURE.format(folder=folder))
    model = write_tiny_bert(folder / "model")
    return [
        *(sys.executable, "-m", "stream_pretrain", f"--config={folder / 'mixture.yaml'}"),
        *(f"--model.config={model}", f"--model.tokenizer={model}", "--max-steps=60", "--sequence-length=32"),
        *("--global-batch-size=8", "--micro-batch-size=4", "--save-every=5", "--log-every=1", "--eval-every=30"),
        *("--data.heldout-fraction=0.1", "--eval.documents=20", "--run.wandb=disabled"),
    ]


def test_a_mixture_that_is_killed_goes_on_bit_by_bit_and_tells_its_sources_apart(command: list[str], tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    done = trainers().run([*command[1:], f"--output-dir={whole}"], ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "2 sources, 2 shards" in done.stderr
    kill_when([*command, f"--output-dir={out}"], signal.SIGKILL, out, (out / "checkpoints/step-00000010").exists, 0.05)
    done = trainers().run([*command[1:], f"--output-dir={out}", "--workers=2"], ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stderr
    assert_same_run(out, whole)

    last = metrics(whole)[-1]
    assert last["train/new/tokens"] + last["train/replay/tokens"] == last["train/tokens"]
    assert last["train/new/tokens"] / last["train/tokens"] == pytest.approx(0.75, abs=0.03)
    assert last["train/new/documents"] + last["train/replay/documents"] == last["train/documents"]
    assert {"train/new/epoch_least", "train/new/epoch_most", "train/replay/epoch_least"} <= last.keys()
    both = [line for line in metrics(whole) if {"train/new/loss", "train/replay/loss"} <= line.keys()]
    assert len(both) > 30
    for line in both:
        low, high = sorted((line["train/new/loss"], line["train/replay/loss"]))
        assert low - 1e-4 <= line["train/loss"] <= high + 1e-4
    held_out = [json.loads(line)["text"] for line in (whole / "evaluation.jsonl").read_text().splitlines()]
    assert len(held_out) == 20


def held_out(command: list[str], out: Path, sources: list[dict[str, object]], *more: str) -> tuple[list[str], str]:
    """The evaluation set of a mixture, and what the run that collects it says."""
    done = run_here([*command[3:], f"--data.sources={json.dumps(sources)}", f"--output-dir={out}", "--max-steps=1", *more])
    if done.returncode:
        return [], done.stderr
    return [json.loads(line)["text"] for line in (out / "evaluation.jsonl").read_text().splitlines()], done.stderr


def test_a_source_without_a_held_out_document_is_named_and_the_others_are_evaluated(command: list[str], tmp_path: Path) -> None:
    folder = Path(command[3].removeprefix("--config=")).parent
    write_shard(tmp_path / "few", ["doc 002000 bara", "doc 002001 bara"], "plain")
    few = {"name": "few", "dataset": str(tmp_path / "few.jsonl")}
    texts, said = held_out(command, tmp_path / "out", [{"name": "new", "dataset": str(folder / "new")}, few])
    assert len(texts) == 10, said
    assert "collecting the evaluation set… 10 documents" in said
    warned = "source few gives the evaluation set no document: raise its heldout_fraction or --eval.max-read-bytes"
    assert f"warning: {warned}\n" in said
    assert said.count("gives the evaluation set no document") == 1
    texts, said = held_out(command, tmp_path / "none", [few, few | {"name": "same"}])
    assert said.splitlines()[-1] == (
        "error: no document for the evaluation set: raise --data.heldout-fraction or --eval.max-read-bytes, "
        "or give --eval.dataset"
    )


def test_a_source_that_has_a_weight_only_later_is_evaluated_by_its_largest_share(command: list[str], tmp_path: Path) -> None:
    folder = Path(command[3].removeprefix("--config=")).parent
    write_shard(tmp_path / "later", documents(300, seed=2), "plain")
    sources = [
        {"name": "new", "dataset": str(folder / "new"), "weight": 1},
        {"name": "later", "dataset": str(tmp_path / "later.jsonl"), "weight": 0},
        {"name": "never", "dataset": str(tmp_path / "later.jsonl"), "weight": 0},
    ]
    schedule = f"--data.weight-schedule={json.dumps([{'from_step': 40, 'weights': {'new': 3, 'later': 1}}])}"
    texts, said = held_out(command, tmp_path / "both", sources, schedule)
    of_later = [text for text in texts if text.startswith("doc 002")]
    assert (len(texts), len(of_later)) == (20, 4), said  # largest shares of 1 and 1/4
    for source in sources:
        source["heldout_fraction"] = 0.1 if source["name"] == "later" else 0
    texts, said = held_out(command, tmp_path / "alone", sources, schedule)
    assert len(texts) == 20, said
    assert all(text.startswith("doc 002") for text in texts)


def test_an_evaluation_dataset_is_read_by_the_options_of_all_sources(command: list[str], tmp_path: Path) -> None:
    folder = Path(command[3].removeprefix("--config=")).parent
    write_shard(tmp_path / "held", documents(9, seed=2), "plain")
    sources = [
        {"name": "replay", "dataset": str(folder / "old"), "text_template": "{title} {body}"},
        {"name": "new", "dataset": str(folder / "new")},
    ]
    (tmp_path / "blank.jsonl").write_text("\n")
    with serve(tmp_path) as server:
        for key in ("one", "two"):
            texts, said = held_out(command, tmp_path / "out", sources, f"--eval.dataset={server.url('held.jsonl')}?{key}")
            assert texts == documents(9, seed=2), said
            assert "the evaluation set is still" not in said, "a new signature is the same dataset"
        _, said = held_out(command, tmp_path / "none", sources, f"--eval.dataset={server.url('blank.jsonl')}?one")
    assert said.splitlines()[-1] == (
        f"error: no document for the evaluation set in {server.url('blank.jsonl')}: "
        "give another, or raise --eval.max-read-bytes"
    )


FEW_OPEN_FILES = """
import resource, sys
from stream_pretrain.cli import main

resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
sys.exit(main(sys.argv[1:]))
"""


def test_many_sources_and_lanes_have_more_open_files_than_a_process_usually_may(command: list[str], tmp_path: Path) -> None:
    sources = [{"name": f"s{number}", "dataset": f"{tmp_path}/s{number}", "weight": 1} for number in range(8)]
    for number in range(8):
        (tmp_path / f"s{number}").mkdir()
        for shard in range(32):
            write_shard(tmp_path / f"s{number}/{shard:02d}", documents(20, seed=shard), "zst")
    lanes = (
        f"--data.sources={json.dumps(sources)}",
        "--lanes=32",
        "--global-batch-size=256",
        "--max-steps=2",
        "--eval-every=0",
    )
    done = trainers().run(["-c", FEW_OPEN_FILES, *command[4:], *lanes, f"--output-dir={tmp_path}/out"], ENVIRONMENT)
    assert done.returncode == 0, done.stderr


def test_a_source_that_changed_is_refused_by_name(command: list[str], tmp_path: Path) -> None:
    first = [*command[3:], f"--output-dir={tmp_path}", "--max-steps=2"]
    done = run_here(first)
    assert done.returncode == 0, done.stderr
    shard = Path(command[3].removeprefix("--config=")).parent / "old/shard.jsonl"
    shard.write_text(shard.read_text() + '{"title": "more", "body": "text"}\n')
    done = run_here([*first, "--max-steps=4"])
    assert done.returncode == 1
    assert "old is not the corpus this run began with: shard.jsonl changed" in done.stderr


def test_a_source_that_leaves_the_mixture_is_named_once(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    write_shard(tmp_path / "few/shard", documents(30, seed=2), "plain")
    sources = [
        {"name": "new", "dataset": str(Path(command[3].removeprefix("--config=")).parent / "new")},
        {"name": "few", "dataset": str(tmp_path / "few"), "max_epochs": 1},
    ]
    mixed = [*command[3:], f"--data.sources={json.dumps(sources)}", f"--output-dir={tmp_path / 'out'}", "--lanes=2"]
    done = run_to_end(mixed)
    said = "source few leaves the mixture, after max_epochs 1; the others share its weight"
    assert done.count(said) == 1
    assert metrics(tmp_path / "out")[-1]["train/few/documents"] < 30  # but for those that are held out
    assert "the run ends, as" not in done
    on = run_to_end([*mixed, "--max-steps=65"])
    assert said not in on


@pytest.mark.parametrize("log_every", [1, 1000])
def test_a_run_that_ends_since_no_source_with_a_weight_is_left_names_those_without(
    command: list[str], tmp_path: Path, log_every: int
) -> None:
    folder = Path(command[3].removeprefix("--config=")).parent
    write_shard(tmp_path / "few", documents(30, seed=2), "plain")
    sources = [
        {"name": "few", "dataset": str(tmp_path / "few.jsonl"), "max_epochs": 1},
        *({"name": name, "dataset": str(folder / "new"), "weight": 0} for name in ("new", "more")),
    ]
    mixed = [f"--data.sources={json.dumps(sources)}", f"--output-dir={tmp_path / 'out'}", "--lanes=2"]
    done = run_to_end([*command[3:], *mixed, f"--log-every={log_every}"])
    ended = metrics(tmp_path / "out")[-1]["step"]
    assert ended == 9
    assert "share its weight" not in done
    said = (
        f"step {ended}: the run ends, as all sources with a weight are read; not read to the end, without a weight: new, more"
    )
    assert said in done.splitlines()
