"""What lies beside the shards of a corpus and is not read is told by name, cheaply."""

from __future__ import annotations

import json
import os
from pathlib import Path

import fsspec
import pytest

from stream_pretrain import cli
from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.inspection import unread_files as module
from stream_pretrain.inspection.unread_files import Unread, unread_files

LINE = '{"text": "ab"}\n'


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(LINE)


def unread(dataset: object, **options: str) -> Unread:
    data = DataConfig(dataset=str(dataset), **options)  # type: ignore[arg-type]
    return unread_files(data, resolve(data).shards)


def test_a_folder_tells_its_card_hidden_files_and_those_of_a_run(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "sub/b.jsonl", "README.md", "notes", ".hidden.jsonl", ".git/c.jsonl", "out/run.json", "out/lock")
    write(tmp_path, "out/metrics.jsonl", "sub/table.xlsx", "sub/old.csv.bak.gz")
    assert unread(tmp_path) == Unread(
        7,
        {"hidden": 2, ".md": 1, "without an ending": 1, "folder of a run": 1, ".gz": 1, ".xlsx": 1},
        [".git/", ".hidden.jsonl", "README.md"],
        True,
    )


def test_other_splits_and_formats_are_told_first(tmp_path: Path) -> None:
    write(tmp_path, "train/a.jsonl", "train/b.jsonl", "train/c.txt", "test/d.jsonl.gz", "README.md")
    found = unread(tmp_path)
    assert found.kinds == {".jsonl.gz": 1, ".md": 1, ".txt": 1}
    assert found.first == ["test/d.jsonl.gz", "train/c.txt", "README.md"]


def test_a_pattern_is_looked_at_as_deep_as_it_reaches(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "b.txt", "x/c.jsonl", "x/y/d.jsonl", "x/e.parquet", "x/y/z.md")
    assert unread(f"{tmp_path}/*.jsonl") == Unread(2, {"folder": 1, ".txt": 1}, ["b.txt", "x/"], True)
    assert unread(f"{tmp_path}/*/*.jsonl").first == ["a.jsonl", "b.txt", "x/e.parquet"]
    assert unread(f"{tmp_path}/**/*.jsonl").first == ["b.txt", "x/e.parquet", "x/y/z.md"]
    assert unread(tmp_path, data_files="x/*.jsonl").first == ["e.parquet", "y/"]
    assert unread(tmp_path, data_dir="x").first == ["y/z.md"]


def test_a_named_file_has_nothing_beside_it_and_links_are_no_other_files(tmp_path: Path) -> None:
    write(tmp_path, "real/a.jsonl", "real/b.md")
    (tmp_path / "corpus").symlink_to("real")
    (tmp_path / "real/again.jsonl").symlink_to("a.jsonl")
    (tmp_path / "real/circle").symlink_to("../real")
    assert unread(tmp_path / "real/a.jsonl").count == 0
    assert unread(tmp_path / "corpus").first == ["b.md"]


def test_a_file_in_several_places_of_a_list_counts_once_and_those_of_one_name_each(tmp_path: Path) -> None:
    write(tmp_path, "x/a.jsonl", "x/b.md", "y/c.jsonl", "y/b.md", "y/d.txt")
    (tmp_path / "list").write_text(f"{tmp_path}/x/*.jsonl\n{tmp_path}/x\n{tmp_path}/y/*.jsonl\n")
    assert unread(f"@{tmp_path}/list") == Unread(3, {".md": 2, ".txt": 1}, ["d.txt", "b.md", "b.md"], True)


def test_a_large_folder_is_looked_at_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.jsonl", *(f"{number}.md" for number in range(6)))
    monkeypatch.setattr(module, "MOST_FILES", 4)
    found = unread(tmp_path)
    assert (found.count, found.is_all) == (4, False)
    monkeypatch.setattr(module, "MOST_FILES", 7)
    assert unread(tmp_path).is_all


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads any folder")
def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    write(tmp_path, "x/a.jsonl", "y/b.jsonl")
    (tmp_path / "y").chmod(0)
    assert unread(f"{tmp_path}/*/*.jsonl").kinds == {"folder that cannot be read": 1}
    (tmp_path / "y").chmod(0o755)


def test_a_store_is_listed_as_a_folder_is() -> None:
    store = fsspec.filesystem("memory")
    for name in ("a.jsonl", "b.md", "x/c.jsonl", ".hidden"):
        store.pipe_file(f"/beside/{name}", LINE.encode())
    assert unread("memory://beside").first == [".hidden", "b.md"]
    assert unread("memory://beside/*.jsonl") == Unread(3, {"hidden": 1, ".md": 1, "folder": 1}, [".hidden", "b.md", "x/"], True)
    assert unread("memory://beside/a.jsonl").count == 0


def test_inspect_prints_it_with_the_shards_of_no_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "a.jsonl", "b.jsonl", "README.md", "c.md", "d.bin", "e.bin")
    (tmp_path / "b.jsonl").write_text("")
    assert cli.main(["inspect", f"--dataset={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "  empty shards  0 bytes: b.jsonl\n" in said
    assert "  not read      2 .md, 2 .bin: README.md, c.md, d.bin and 1 more\n" in said
    assert cli.main(["inspect", f"--dataset={tmp_path}", "--json"]) == 0
    [source] = json.loads(capsys.readouterr().out)["sources"]
    assert source["empty_shards"] == {"count": 1, "first": ["b.jsonl"]}
    first = ["README.md", "c.md", "d.bin"]
    assert source["not_read"] == {"count": 4, "kinds": {".md": 2, ".bin": 2}, "first": first, "is_all": True}


def test_inspect_counts_the_folders_beside_a_pattern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "a.jsonl", "b.txt", "sub/b.jsonl", "other/b.jsonl")
    assert cli.main(["inspect", f"--dataset={tmp_path}/*.jsonl"]) == 0
    assert "  not read      2 folders, 1 .txt: b.txt, other/, sub/\n" in capsys.readouterr().out


def test_a_link_to_itself_is_a_file_that_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "sub/b.jsonl")
    (tmp_path / "loop").symlink_to("loop")
    assert unread(tmp_path) == Unread(1, {"without an ending": 1}, ["loop"], True)


def test_brackets_in_the_name_of_a_folder_are_no_pattern(tmp_path: Path) -> None:
    write(tmp_path, "of[1]/a.jsonl", "of[1]/b.md", "of1/c.md", "d.md")
    assert unread(tmp_path / "of[1]") == Unread(1, {".md": 1}, ["b.md"], True)


def test_of_many_folders_only_the_first_are_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_FOLDERS", 2)
    write(tmp_path, "0.jsonl", "a/1.jsonl", "a/2.md", "b/3.jsonl")
    assert unread(tmp_path) == Unread(2, {".md": 1, "folder": 1}, ["a/2.md", "b/"], True)
