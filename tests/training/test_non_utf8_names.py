"""File systems take names that are not UTF-8: shards may have them, and records show them escaped."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import orjson
import pytest

from stream_pretrain.arguments import parse
from stream_pretrain.config import Config, DataConfig, ModelConfig, run_directory, validate
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.corpus.shard import Corpus
from stream_pretrain.data.corpus.unchanged_since_start import check_unchanged, resolve_pinned
from stream_pretrain.errors import ConfigError, SourceError
from stream_pretrain.non_utf8_names import escaped, in_shell
from stream_pretrain.redaction import printable
from stream_pretrain.typed_json import from_json
from tests.corpora import documents, json_lines
from tests.integration.jobs import tiny_options
from tests.training.runs import run_to_end


def named(folder: Path, name: bytes) -> Path:
    """A path in a folder by its bytes."""
    path = folder / os.fsdecode(name)
    try:
        path.touch()
    except OSError:
        pytest.skip("the file system takes only names that are UTF-8")
    path.unlink()
    return path


def test_a_shard_whose_name_is_not_utf_8_is_trained_on_and_the_run_goes_on(model: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    lines = json_lines(documents(40, longest=20)).splitlines(keepends=True)
    named(tmp_path / "corpus", b"caf\xe9.jsonl").write_bytes(b"".join([*lines[:7], b"{no json\n", *lines[8:]]))
    out = tmp_path / "out"
    more = ("--max-epochs=1", "--sequence-length=64", "--global-batch-size=2", "--lanes=1", "--save-every=4")
    command = tiny_options(tmp_path / "corpus", model, out, *more)
    run_to_end([*command, "--max-steps=4", "--run.wandb=disabled"])
    second = run_to_end([*command, "--run.wandb=disabled"])
    assert "resuming after step 4" in second
    [skipped] = map(orjson.loads, (out / "quarantine.jsonl").read_bytes().splitlines())
    assert (skipped["shard"], skipped["why"]) == (r"caf\xe9.jsonl", "not JSON")
    assert orjson.loads((out / "metrics.jsonl").read_bytes().splitlines()[-1])["train/documents"] == 39
    whole = [path for path in out.rglob("*.json*") if path.suffix == ".json"]
    assert len(whole) > 10
    for path in whole:
        orjson.loads(path.read_bytes())  # which takes no half characters, as most parsers


@pytest.mark.parametrize("option", ["--output-dir", "--model", "--model.tokenizer", "--init-from", "--resume"])
def test_a_folder_of_a_run_or_a_model_that_is_not_utf_8_is_refused(option: str) -> None:
    given = {"--dataset": "c", "--model": "bert", "--max-steps": "1", option: os.fsdecode(b"out\xff")}
    with pytest.raises(ConfigError, match=r"out\\xff is not UTF-8, which libraries do not open: rename it"):
        validate(parse([f"{name}={value}" for name, value in given.items()]))


def test_a_pinned_shard_is_found_again_by_the_name_it_is_shown_by(tmp_path: Path) -> None:
    named(tmp_path, b"caf\xe9.jsonl.gz").write_bytes(b"1")
    named(tmp_path, b"b.jsonl").write_bytes(b"2")
    data = DataConfig(dataset=str(tmp_path))
    pinned = from_json(Corpus, orjson.loads(orjson.dumps(resolve(data).to_json())), "")
    assert [shard.name for shard in pinned.shards] == ["b.jsonl", r"caf\xe9.jsonl.gz"]
    assert [os.path.exists(shard.url) for shard in pinned.shards] == [True, False]
    found = resolve_pinned(pinned, data)
    assert [Path(shard.url).read_bytes() for shard in found.shards] == [b"2", b"1"]
    check_unchanged(pinned, found)
    (tmp_path / r"caf\xe9.jsonl.gz").write_bytes(b"3")
    with pytest.raises(SourceError, match=r"two files have the same escaped name, caf\\xe9.jsonl.gz: rename one"):
        resolve(data)


def test_a_dataset_that_is_not_utf_8_gives_its_run_a_name_that_is(tmp_path: Path) -> None:
    folder = run_directory(Config(DataConfig(dataset=str(named(tmp_path, b"caf\xe9s.jsonl"))), ModelConfig(path="bert")))
    assert str(folder).startswith("runs/caf-xe9s.jsonl-bert-") or str(folder).startswith("runs/caf-s.jsonl-bert-")


def test_what_is_shown_of_a_name_is_its_bytes() -> None:
    name = os.fsdecode(b"a\xe9\x1b'\\")
    assert escaped(name) == "a\\xe9\x1b'\\"
    assert printable(name) == r"a\xe9\x1b'\ "[:-1]
    assert in_shell(["train", "a b"]) == "train 'a b'"
    shown = subprocess.run(["bash", "-c", f"printf %s {in_shell([name])}"], capture_output=True, check=True).stdout
    assert shown == os.fsencode(name)
