"""Which files of a place are its corpus: over links, beside runs, in splits, and of several kinds."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.corpus.splits import splits_by_name
from stream_pretrain.data.corpus.unchanged_since_start import check_unchanged
from stream_pretrain.data.documents.reader import windows_of
from stream_pretrain.errors import SourceError
from tests.corpora import documents, json_lines
from tests.data.shards import OPTIONS


def names(dataset: object, **options: Any) -> list[str]:
    return [shard.name for shard in resolve(DataConfig(dataset=str(dataset), **options)).shards]


def shard(path: Path, count: int = 1, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json_lines(documents(count, seed=seed)))


def texts(dataset: object, **options: Any) -> list[str]:
    shards = resolve(DataConfig(dataset=str(dataset), **options)).shards
    return [text for shard in shards for window in windows_of(shard, OPTIONS) for text in window.texts]


# Links to folders


def test_a_split_that_is_a_link_to_a_folder_gives_all_its_documents(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard(tmp_path / "store/real/a.jsonl", 40)
    shard(tmp_path / "store/real/deep/b.jsonl", 40, seed=1)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/train").symlink_to("../store/real")
    assert sorted(texts(tmp_path / "linked")) == sorted(documents(40) + documents(40, seed=1))
    assert not caplog.records


def test_a_linked_folder_in_a_split_is_read_beside_its_own_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard(tmp_path / "store/b.jsonl", 80, seed=1)
    shard(tmp_path / "mixed/train/a.jsonl", 20)
    shard(tmp_path / "mixed/test/c.jsonl", 3, seed=2)
    (tmp_path / "mixed/train/more").symlink_to(tmp_path / "store")
    expected = documents(20) + documents(80, seed=1)
    assert texts(tmp_path / "mixed") == expected
    assert texts(tmp_path / "mixed/train") == expected
    assert texts(tmp_path / "mixed/train/**/*.jsonl") == expected
    (tmp_path / "mixed/README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train/**\n---\n"
    )
    assert texts(tmp_path / "mixed") == expected
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/mixed: 1 file is in no split and is not read: test/c.jsonl; choose files with --data.data-files"
    ]


def test_what_two_links_lead_to_is_read_once_and_no_link_leads_around_in_a_circle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard(tmp_path / "c/v2/a.jsonl")
    (tmp_path / "c/current").symlink_to("v2")
    (tmp_path / "c/another").symlink_to("v2")
    (tmp_path / "c/v2/up").symlink_to("..")
    assert names(tmp_path / "c") == ["v2/a.jsonl"]
    assert names(f"{tmp_path}/c/**/*.jsonl") == ["v2/a.jsonl"]
    assert names(f"{tmp_path}/c/**/current/*") == ["current/a.jsonl"]
    (tmp_path / "c/train").mkdir()
    (tmp_path / "c/train/newest").symlink_to("../v2")
    assert names(tmp_path / "c") == ["train/newest/a.jsonl"]
    assert not caplog.records, "v2/a.jsonl is read, though by another name"


def test_a_file_and_links_to_it_are_one_shard(tmp_path: Path) -> None:
    shard(tmp_path / "c/b.jsonl")
    (tmp_path / "c/a-latest.jsonl").symlink_to("b.jsonl")
    (tmp_path / "c/sub").mkdir()
    (tmp_path / "c/sub/same.jsonl").symlink_to("../a-latest.jsonl")
    for pattern in ("", "/**/*.jsonl"):
        assert names(f"{tmp_path}/c{pattern}") == ["b.jsonl"]
    assert names(f"{tmp_path}/c/*-latest.jsonl") == ["a-latest.jsonl"], "by the name that is asked for"
    (tmp_path / "again").symlink_to("c")
    (tmp_path / "list").write_text(f"{tmp_path}/c/a-latest.jsonl\n{tmp_path}/again/b.jsonl\n{tmp_path}/c\n")
    assert names(f"@{tmp_path}/list") == ["b.jsonl"]


def test_a_folder_of_links_alone_has_their_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As the cache of the Hub has its snapshots."""
    for number, split in enumerate(["train", "test"]):
        shard(tmp_path / f"blobs/{number}", seed=number)
        (tmp_path / f"snapshots/1/{split}").mkdir(parents=True)
        (tmp_path / f"snapshots/1/{split}/a.jsonl").symlink_to(f"../../../blobs/{number}")
    (tmp_path / "snapshots/1/train/copy.jsonl").symlink_to("../../../blobs/0")
    assert names(tmp_path / "snapshots/1") == ["train/a.jsonl"]
    assert names(tmp_path / "snapshots/1", split="test") == ["test/a.jsonl"]
    assert not caplog.records


def test_a_run_that_reads_a_file_by_two_names_is_told_so_at_its_resume(tmp_path: Path) -> None:
    shard(tmp_path / "a.jsonl")
    (tmp_path / "latest.jsonl").symlink_to("a.jsonl")
    now = resolve(DataConfig(dataset=str(tmp_path)))
    twice = replace(now, shards=(*now.shards, replace(now.shards[0], url=f"{tmp_path}/latest.jsonl", name="latest.jsonl")))
    with pytest.raises(SourceError, match=r"began with: latest\.jsonl is a link to a file that is read by another name;"):
        check_unchanged(twice, now)
    (tmp_path / "latest.jsonl").unlink()
    (tmp_path / "latest.jsonl").symlink_to("b.jsonl")
    with pytest.raises(SourceError, match=r"began with: latest\.jsonl is a link to what is not there;"):
        check_unchanged(twice, now)


# Splits by name


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["train/a.jsonl", "b/dev/test-1.jsonl"], {"train": ["train/a.jsonl"], "validation": ["b/dev/test-1.jsonl"]}),
        (["a-train.jsonl", "train.jsonl", "trainer.jsonl"], {"train": ["a-train.jsonl", "train.jsonl"]}),
        (["x/my training set/a.txt", "eval-1/b.txt"], {"train": ["x/my training set/a.txt"], "test": ["eval-1/b.txt"]}),
        (
            ["data/test-00000-of-00001.jsonl", "data/fr-00000-of-00001.jsonl", "train/a.jsonl"],
            {"test": ["data/test-00000-of-00001.jsonl"], "fr": ["data/fr-00000-of-00001.jsonl"]},
        ),
        (["contest.jsonl", "evaluate/a.jsonl"], {}),
    ],
)
def test_names_tell_splits_as_datasets_tells_them(tmp_path: Path, files: list[str], expected: dict[str, list[str]]) -> None:
    assert splits_by_name(files) == expected
    for name in files:
        shard(tmp_path / name)
    datasets = pytest.importorskip("datasets")
    patterns = datasets.data_files.get_data_patterns(str(tmp_path))
    found = datasets.data_files.DataFilesDict.from_patterns(patterns, base_path=str(tmp_path))
    of_datasets = {split: sorted({Path(file).relative_to(tmp_path).as_posix() for file in of}) for split, of in found.items()}
    assert (expected or {"train": sorted(files)}) == {split: of for split, of in of_datasets.items() if of}


def test_a_name_that_puts_all_others_in_no_split_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(5):
        shard(tmp_path / f"c4-af.tfrecord-0000{number}-of-00005.json")
    shard(tmp_path / "c4-af-validation.tfrecord-00000-of-00001.json")
    with pytest.raises(SourceError) as raised:
        names(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path}: there is no split 'train', only validation (c4-af-validation.tfrecord-00000-of-00001.json); "
        "c4-af.tfrecord-00000-of-00005.json, c4-af.tfrecord-00001-of-00005.json, c4-af.tfrecord-00002-of-00005.json "
        "and 2 more in none: name the files to read with --data.data-files"
    )
    assert len(names(tmp_path, data_files="c4-af.tfrecord*")) == 5
    assert not caplog.records
    assert names(tmp_path, split="validation") == ["c4-af-validation.tfrecord-00000-of-00001.json"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 5 files are in no split and are not read: c4-af.tfrecord-00000-of-00005.json, "
        "c4-af.tfrecord-00001-of-00005.json, c4-af.tfrecord-00002-of-00005.json and 2 more; "
        "choose files with --data.data-files"
    ]


def test_files_of_other_configurations_are_said_to_be_in_no_split_by_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard(tmp_path / "one.jsonl")
    shard(tmp_path / "two.jsonl")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files: one.jsonl\n  default: true\n"
        "- config_name: de\n  data_files: two.jsonl\n---\n"
    )
    assert names(tmp_path) == ["one.jsonl"]
    assert not caplog.records


# Runs


def a_run(folder: Path) -> None:
    """What a run leaves in its folder."""
    for name in ("run.json", "lock", "evaluation.json", "model/config.json", "checkpoints/step-00000005/trainer.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    for name in ("metrics.jsonl", "quarantine.jsonl", "bad_steps.jsonl", "evaluation.jsonl"):
        shard(folder / name)


@pytest.mark.parametrize("out", ["out", "runs/deep/out", "train/out", "."])
@pytest.mark.parametrize("layout", ["a.jsonl", "train/a.jsonl"])
def test_what_a_run_leaves_is_no_corpus_wherever_it_lies(
    tmp_path: Path, layout: str, out: str, caplog: pytest.LogCaptureFixture
) -> None:
    shard(tmp_path / layout)
    a_run(tmp_path / out)
    for dataset in (tmp_path, f"{tmp_path}/**/*.json*", f"{tmp_path}/{layout}"):
        assert [Path(name).name for name in names(dataset)] == ["a.jsonl"]
    assert [Path(name).name for name in names(tmp_path, data_files="**/*.json*")] == ["a.jsonl"]
    assert not caplog.records


def test_a_pattern_that_only_names_what_a_run_has_left_is_refused(tmp_path: Path) -> None:
    a_run(tmp_path / "runs/a")
    with pytest.raises(SourceError, match=r"evaluation\.jsonl: nothing but what a run has left matches"):
        names(f"{tmp_path}/runs/*/evaluation.jsonl")
    assert names(tmp_path / "runs/a/evaluation.jsonl") == ["evaluation.jsonl"], "a file that is named is meant"


def test_a_folder_needs_a_lock_as_well_to_be_that_of_a_run(tmp_path: Path) -> None:
    a_run(tmp_path / "out")
    (tmp_path / "out/lock").unlink()
    assert len(names(f"{tmp_path}/**/*.jsonl")) == 4


def test_what_a_run_has_left_in_a_bucket_is_no_corpus() -> None:
    store = fsspec.filesystem("memory")
    for name in ("a.jsonl", "out/run.json", "out/lock", "out/metrics.jsonl", "out/model/tokenizer.json"):
        store.pipe(f"/with-a-run/{name}", b"{}\n")
    assert names("memory://with-a-run") == ["a.jsonl"]


# Kinds


def test_a_mixture_of_kinds_is_said_with_the_fewer_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jsonl", "b.json.gz", "c.ndjson", "requirements.txt", "vocab.txt", "sub/d.parquet"):
        shard(tmp_path / name)
    assert len(names(tmp_path)) == 6
    assert len(names(f"{tmp_path}/*")) == 5
    assert names(f"{tmp_path}/*.txt") == ["requirements.txt", "vocab.txt"]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (
            logging.WARNING,
            f"{tmp_path}: reads files of several formats (3 JSON lines, 2 text, 1 Parquet), "
            "among them requirements.txt, sub/d.parquet, vocab.txt: choose with --data.data-files or a glob",
        ),
        (
            logging.WARNING,
            f"{tmp_path}/*: reads files of several formats (3 JSON lines, 2 text), "
            "among them requirements.txt, vocab.txt: choose with --data.data-files or a glob",
        ),
    ]


def test_files_that_a_list_names_may_be_of_several_kinds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jsonl", "b.txt"):
        shard(tmp_path / name)
    (tmp_path / "list").write_text(f"{tmp_path}/a.jsonl\n{tmp_path}/b.txt\n")
    assert names(f"@{tmp_path}/list") == ["a.jsonl", "b.txt"]
    assert not caplog.records
