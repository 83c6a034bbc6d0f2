"""The same command finds its run after an upgrade."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from stream_pretrain import config
from stream_pretrain.arguments import parse
from stream_pretrain.config import Config, DataConfig, SourceConfig, run_directory, without_places


def named(*arguments: str) -> str:
    return run_directory(parse([*arguments, "--max-steps=3"])).as_posix()


@dataclass(frozen=True)
class LaterData(DataConfig):
    """With the options of a later version."""

    dummy: bool = False
    other: int | None = 7


@dataclass(frozen=True)
class LaterDefault(DataConfig):
    sequence_length: int = 1024


@dataclass(frozen=True)
class LaterSource(SourceConfig):
    dummy: str | None = None


def test_a_new_option_with_its_default_changes_no_name() -> None:
    today = parse(["--dataset=org/c", "--model=bert", "--max-steps=3"])
    later = dataclasses.replace(today, data=LaterData(dataset="org/c"))
    assert run_directory(later) == run_directory(today) == Path("runs/c-bert-f7927083")
    assert run_directory(dataclasses.replace(later, data=LaterData(dataset="org/c", dummy=True))) != run_directory(today)


def test_a_new_key_of_a_source_changes_no_name() -> None:
    sources = [{"name": "a", "dataset": "x"}, {"name": "b", "dataset": "y", "weight": 2.0}]
    mixture = [f"--data.sources={json.dumps(sources)}", "--model=bert"]
    before = named(*mixture)
    later = DataConfig(sources=(LaterSource("a", "x"), LaterSource("b", "y", 2.0)))
    assert run_directory(Config(data=later, model=config.ModelConfig(path="bert"))).as_posix() == before
    assert named(f"--data.sources={json.dumps(sources[::-1])}", "--model=bert") != before


def test_an_option_that_is_given_names_the_run_alike_whatever_the_default_is_today() -> None:
    command = ["--dataset=org/c", "--model=bert", "--max-steps=3"]
    for given in ({}, {"sequence_length": 1024}, {"sequence_length": 512}):
        today = parse([*command, *(f"--data.{name}={value}" for name, value in given.items())])
        later = LaterDefault(dataset="org/c", **given)
        assert run_directory(dataclasses.replace(today, data=later)) == run_directory(today)


@pytest.mark.parametrize(
    ("arguments", "name_of_then"),
    [
        (["--dataset=org/c", "--model=bert"], "runs/c-bert-ebbc2193"),
        (["--dataset=c", "--model=org/bert"], "runs/c-bert-f3b6dc02"),
        (
            ['--data.sources=[{"name": "a", "dataset": "x"}, {"name": "b", "dataset": "y", "weight": 2}]', "--model=bert"],
            "runs/a+b-bert-71bf7b46",
        ),
    ],
)
def test_the_folder_that_an_earlier_version_began_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], name_of_then: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = named(*arguments)
    assert name != name_of_then
    Path(name_of_then).mkdir(parents=True)
    assert named(*arguments) == name_of_then
    assert named(*arguments, "--workers=3") == name_of_then
    assert named(*arguments, "--seed=1") not in (name, name_of_then)
    Path(name).mkdir()
    assert named(*arguments) == name


def test_a_run_with_an_option_of_today_was_not_begun_by_an_earlier_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/c-bert-ebbc2193").mkdir(parents=True)
    today = parse(["--dataset=org/c", "--model=bert", "--max-steps=3"])
    assert run_directory(today).name == "c-bert-ebbc2193"
    later = dataclasses.replace(today, data=LaterData(dataset="org/c", dummy=True))
    assert run_directory(later).name != "c-bert-ebbc2193"
    assert run_directory(dataclasses.replace(later, data=LaterData(dataset="org/c"))).name == "c-bert-ebbc2193"


@pytest.mark.parametrize(
    ("dataset", "name", "name_of_then"),
    [
        ("data/*.jsonl.gz", "data-bert-4caf4a89", ".jsonl.gz-bert-4caf4a89"),
        ("data/wiki/**/part-*.zst", "wiki-bert-7aaad3f8", "part-.zst-bert-7aaad3f8"),
        ("s3://bucket/wiki/2026-??/*", "wiki-bert-a58b2957", "bert-a58b2957"),
        ("*.jsonl.gz", "jsonl.gz-bert-d23583d7", ".jsonl.gz-bert-d23583d7"),
        ("../*.jsonl", "jsonl-bert-a75fe626", ".jsonl-bert-a75fe626"),
        ("data/.cache", "cache-bert-1fd20ba9", ".cache-bert-1fd20ba9"),
        ("..", "bert-502a4db7", "..-bert-502a4db7"),
    ],
)
def test_a_pattern_or_hidden_folder_names_no_hidden_run_but_that_of_an_earlier_version_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, name: str, name_of_then: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = (f"--dataset={dataset}", "--model=bert")
    assert named(*arguments) == f"runs/{name}"
    Path("runs", name_of_then).mkdir(parents=True)
    assert named(*arguments) == f"runs/{name_of_then}"
    Path("runs", name).mkdir(exist_ok=True)
    assert named(*arguments) == f"runs/{name}"


def test_the_output_folder_is_named_by_what_must_not_change() -> None:
    folder = named("--dataset=org/corpus", "--model=org/bert")
    assert re.fullmatch(r"runs/corpus-bert-[0-9a-f]{8}", folder)
    assert named("--dataset=org/corpus", "--model=org/bert", "--workers=3") == folder
    assert named("--dataset=org/corpus", "--model=org/bert", "--seed=3") != folder


def test_the_output_folder_has_the_whole_name_of_a_dataset_on_the_hub() -> None:
    name = "corpus-" + "x" * 84  # with the owner the 96 characters that it may have
    assert named(f"--dataset=orgs/{name}", "--model=bert").startswith(f"runs/{name}-bert-")


def test_the_output_folder_has_no_signature_and_stays_where_a_new_one_is_given() -> None:
    first, second = (named(f"--dataset=https://me:secret@host/a.jsonl?X-Sig={letter * 500}", "--model=bert") for letter in "ab")
    assert re.fullmatch(r"runs/a.jsonl-bert-[0-9a-f]{8}", first)
    assert first == second


def test_the_output_folder_of_a_mixture_goes_by_its_sources_not_their_keys() -> None:
    def sources(key: str, count: int = 20) -> str:
        options = json.dumps({"token": key})
        records = [
            {"name": f"source-{n}", "dataset": f"https://host/{n}.jsonl?{key}", "storage_options": options}
            for n in range(count)
        ]
        return f"--data.sources={json.dumps(records)}"

    folder = named(sources("one"), "--model=bert")
    assert re.fullmatch(r"runs/[a-z0-9+-]{100}-bert-[0-9a-f]{8}", folder)
    assert named(sources("two"), "--model=bert") == folder
    assert named(sources("one", 19), "--model=bert") != folder


def test_a_key_that_a_mixture_does_not_use_is_none_that_has_changed() -> None:
    was = {"data.sources": [{"name": "a", "dataset": "x", "weight": 1.0}]}
    now = {"data.sources": [{"name": "a", "dataset": "y", "weight": 1.0, "text_documents": None}]}
    assert without_places(was) == without_places(now)
    now["data.sources"][0]["text_documents"] = "file"
    assert without_places(was) != without_places(now)
