"""What ids, paths, globs and URLs stand for. The Hub itself is in tests/integration/test_hub.py."""

from __future__ import annotations

import errno
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus import resolve as resolving
from stream_pretrain.data.corpus.missing_dataset import refuse_absent
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.corpus.shard import Corpus, Shard
from stream_pretrain.errors import SourceError
from tests.data.named_corpora import names, write


def test_a_file_is_a_corpus_of_one_shard(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"hello")
    corpus = resolve(DataConfig(dataset=str(tmp_path / "a.jsonl.zst")))
    assert corpus == Corpus(
        dataset=f"{tmp_path}/a.jsonl.zst",
        revision=None,
        shards=(
            Shard(
                url=f"{tmp_path}/a.jsonl.zst",
                name="a.jsonl.zst",
                size=5,
                # sha256 of the first and the last 64 KiB, which overlap in so small a file
                identity="ends:5:0a86050fb37a4def36885da9557f5b22a9e191767a80e7a4a2415410a4462b68",
                format="jsonl",
                compression="zstd",
            ),
        ),
    )


def test_a_relative_path_becomes_an_absolute_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "corpus/a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert resolve(DataConfig(dataset="corpus")).shards[0].url == f"{tmp_path}/corpus/a.jsonl"
    assert resolve(DataConfig(dataset="corpus/*.jsonl")).shards[0].url == f"{tmp_path}/corpus/a.jsonl"
    assert resolve(DataConfig(dataset=f"file://{tmp_path}/corpus/a.jsonl")).shards[0].url == f"{tmp_path}/corpus/a.jsonl"


def test_a_folder_is_read_with_its_subfolders_and_without_what_is_no_shard(tmp_path: Path) -> None:
    write(
        tmp_path,
        "b.jsonl.gz",
        "a.jsonl",
        "sub/deeper/c.txt.xz",
        "name with spaces & ümlaut [1].jsonl",
        "README.md",
        "README.txt",
        "LICENSE",
        "LICENSE.txt",
        "dataset_info.json",
        "e.jsonl.zst.tmp",
        "notes.docx",
        "e.zst",
        ".hidden.jsonl",
        ".git/f.jsonl",
    )
    assert names(tmp_path) == ["a.jsonl", "b.jsonl.gz", "name with spaces & ümlaut [1].jsonl", "sub/deeper/c.txt.xz"]


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/a.jsonl", "elsewhere/blob")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus/b.jsonl").symlink_to(tmp_path / "elsewhere/blob")
    assert names(tmp_path / "corpus") == ["b.jsonl", "linked/a.jsonl"]


@pytest.mark.parametrize("pattern", ["", "/**/*.jsonl"])
def test_links_that_lead_around_in_a_circle_double_no_shard(tmp_path: Path, pattern: str) -> None:
    write(tmp_path, "a.jsonl", "sub/b.jsonl")
    (tmp_path / "itself").symlink_to(".")
    (tmp_path / "sub/up").symlink_to(tmp_path)
    assert names(f"{tmp_path}{pattern}") == ["a.jsonl", "sub/b.jsonl"]


def test_a_pattern_takes_the_names_of_a_folder_and_of_links_to_it(tmp_path: Path) -> None:
    write(tmp_path, "in/v2/a.jsonl")
    (tmp_path / "in/current").symlink_to("v2")
    assert names(f"{tmp_path}/**/v2/*") == ["in/v2/a.jsonl"]
    assert names(f"{tmp_path}/**/current/*") == ["in/current/a.jsonl"]


@pytest.mark.parametrize("pattern", ["./**/*.jsonl", "sub//**/*.jsonl", "**/b**.jsonl", "s*/**"])
def test_a_pattern_is_read_as_a_shell_reads_it(tmp_path: Path, pattern: str) -> None:
    write(tmp_path, "sub/b.jsonl")
    assert names(tmp_path, data_files=pattern) == ["sub/b.jsonl"]


@pytest.mark.parametrize("pattern", ["", "/*.jsonl", "/**/*.jsonl"])
def test_a_link_that_leads_nowhere_is_named_and_not_left_out(tmp_path: Path, pattern: str) -> None:
    write(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to("gone")
    with pytest.raises(SourceError, match=r"/b\.jsonl: is a link to gone, which is not there: restore or remove it"):
        names(f"{tmp_path}{pattern}")


@pytest.mark.parametrize("pattern", ["", "/**/*.jsonl"])
def test_a_folder_that_cannot_be_read_is_named_and_not_left_out(
    tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.jsonl", "secret/b.jsonl", "open/c.jsonl", "lost+found/d.jsonl", ".trash/e.jsonl")
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if Path(path).name in ("secret", "lost+found", ".trash"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root, who may run this, can read all folders
    with pytest.raises(SourceError, match=r"/secret: cannot be read: Permission denied"):
        names(f"{tmp_path}{pattern}")
    assert names(f"{tmp_path}/o*/**/*.jsonl") == ["open/c.jsonl"], "a pattern that leads elsewhere needs no other folder"
    (tmp_path / "secret").rename(tmp_path / ".secret")
    assert names(f"{tmp_path}{pattern}") == ["a.jsonl", "open/c.jsonl"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", ("jsonl", "none", None)),
        ("a.json.gz", ("jsonl", "gzip", None)),
        ("a.ndjson.bz2", ("jsonl", "bz2", None)),
        ("a.JSONL.zst", ("jsonl", "zstd", None)),
        ("a.txt.xz", ("text", "xz", None)),
        ("a.text.lz4", ("text", "lz4", None)),
        ("a.parquet", ("parquet", "none", None)),
        ("a.csv", ("examples", "none", "csv")),
        ("a.tsv.gz", ("examples", "gzip", "csv")),
        ("a.arrow", ("examples", "none", "arrow")),
        ("a.tar", ("examples", "none", "webdataset")),
    ],
)
def test_the_ending_says_format_and_compression(tmp_path: Path, name: str, expected: tuple[str, str, str | None]) -> None:
    write(tmp_path, name)
    shard = resolve(DataConfig(dataset=str(tmp_path / name))).shards[0]
    assert (shard.format, shard.compression, shard.builder) == expected


def test_the_reader_datasets_takes_every_format(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl.zst", "b.txt", "c.parquet", "d.csv")
    shards = resolve(DataConfig(dataset=str(tmp_path), reader="datasets")).shards
    assert [(shard.format, shard.builder) for shard in shards] == [
        ("examples", "json"),
        ("examples", "text"),
        ("examples", "parquet"),
        ("examples", "csv"),
    ]


def test_a_glob_names_its_matches_below_the_first_wildcard(tmp_path: Path) -> None:
    write(tmp_path, "2019/a.jsonl", "2020/a.jsonl", "2020/more/b.jsonl", "2020/README.md")
    assert names(tmp_path / "20*" / "*.jsonl") == ["2019/a.jsonl", "2020/a.jsonl"]
    assert names(tmp_path / "2020" / "**" / "*") == ["a.jsonl", "more/b.jsonl"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    write(tmp_path, "part [1].jsonl", "part 1.jsonl")
    assert names(tmp_path / "part [1].jsonl") == ["part [1].jsonl"]


def test_a_glob_that_matches_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing-\*\.jsonl: no file matches"):
        resolve(DataConfig(dataset=str(tmp_path / "nothing-*.jsonl")))


@pytest.mark.parametrize(
    ("files", "there"),
    [
        ([], ""),
        (["README.md"], ", only README.md"),
        (["README.md", "b.sh", "a.py"], ", only README.md, a.py, b.sh"),
        (
            ["README.md", "texts.ZIP", "x.bin"],
            ", texts.ZIP is an archive, which cannot be streamed: unpack it, and give the folder",
        ),
        (["all.tgz"], ", all.tgz is an archive, which cannot be streamed: unpack it, and give the folder"),
        (
            ["a.docx", "b.html"],
            ", a.docx is not plain text: extract that, for example into JSON lines with a field text",
        ),
    ],
)
def test_a_folder_without_shards_says_what_is_there_and_what_to_do_with_it(
    tmp_path: Path, files: list[str], there: str
) -> None:
    write(tmp_path, *files)
    with pytest.raises(SourceError) as caught:
        resolve(DataConfig(dataset=str(tmp_path)))
    endings = ".jsonl .json .ndjson .txt .text .parquet .csv .tsv .arrow .tar"
    assert str(caught.value) == f"{tmp_path}: no shard there{there}; shards end in {endings}, compressed or not"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("corpus.bin", "the ending says no format"),
        ("corpus.zip", "corpus.zip is an archive, which cannot be streamed: unpack it, and give the folder"),
        ("corpus.docx", "corpus.docx is not plain text: extract that, "),
    ],
)
def test_a_file_of_unknown_format_is_refused_at_once_and_says_why(tmp_path: Path, name: str, said: str) -> None:
    write(tmp_path, name)
    data = DataConfig(dataset=str(tmp_path / name))
    for look in (resolve, refuse_absent):
        with pytest.raises(SourceError, match=f"{re.escape(name)}: {re.escape(said)}"):
            look(data)


def test_a_path_that_is_not_there_is_refused_without_asking_the_hub() -> None:
    with pytest.raises(SourceError, match=r"^\./no/such/folder: there is no such file or folder$"):
        resolve(DataConfig(dataset="./no/such/folder"))


@pytest.mark.parametrize("entry", ["././" + "b" * 300 + ".jsonl", "~nobody-of-this-name/b.jsonl"])
def test_a_path_that_can_be_none_is_refused_at_once(entry: str) -> None:
    with pytest.raises(SourceError, match="there is no such file or folder"):
        resolve(DataConfig(dataset=entry))


PARTS = "; of the Hub dataset org/texts, parts are --data.name, --data.split, --data.revision and --data.data-dir"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("a.jsonl,b.jsonl", "; list several in a file, one a line, and give @FILE"),
        ("a.jsonl b.jsonl", "; list several in a file, one a line, and give @FILE"),
        ("a.jsonl,c.jsonl", "; did you mean a.jsonl?"),
        ("org/texts:en", PARTS),
        ("org/texts@main", PARTS),
        ("org/texts/en", PARTS),
        ("org/texts/en.jsonl", ""),
        ("here/texts/en", ""),
    ],
)
def test_what_is_no_path_is_answered_by_how_to_give_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, said: str
) -> None:
    write(tmp_path, "a.jsonl", "b.jsonl", "here/other.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        resolve(DataConfig(dataset=entry))
    assert str(caught.value).removeprefix(f"{entry}: there is no such file or folder") == said


@pytest.mark.parametrize(
    ("page", "instead"),
    [
        ("", "org/texts"),
        ("/", "org/texts"),
        ("/tree/main/en", "org/texts"),
        ("/viewer/default/train?row=1", "org/texts"),
        ("/blob/main/a.jsonl", "https://huggingface.co/datasets/org/texts/resolve/main/a.jsonl, or all of org/texts"),
    ],
)
def test_a_page_of_the_hub_is_answered_by_the_dataset(page: str, instead: str) -> None:
    url = f"https://huggingface.co/datasets/org/texts{page}"
    with pytest.raises(SourceError, match=f": is a page of the Hub: give {re.escape(instead)}$"):
        resolve(DataConfig(dataset=url))


def test_data_files_and_data_dir_choose_inside_a_folder(tmp_path: Path) -> None:
    root = write(tmp_path / "with [brackets]", "en/a.jsonl", "en/deep/b.jsonl", "de/a.jsonl")
    assert names(root, data_files="*/a.jsonl") == ["de/a.jsonl", "en/a.jsonl"]
    assert names(root, data_dir="en") == ["a.jsonl", "deep/b.jsonl"]
    assert names(root, data_dir="en", data_files="**/b.jsonl") == ["deep/b.jsonl"]
    with pytest.raises(SourceError, match=r"fr-\*: no file matches"):
        resolve(DataConfig(dataset=str(root), data_files="fr-*"))
    with pytest.raises(SourceError, match="there is no folder fr in it"):
        resolve(DataConfig(dataset=str(root), data_dir="fr"))


def test_options_that_choose_parts_of_a_dataset_are_refused_where_there_are_none(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl")
    for option in ("name", "revision", "data_files", "data_dir"):
        with pytest.raises(SourceError, match=f"--data.{option.replace('_', '-')} does not apply to it"):
            names(tmp_path / "a.jsonl", **{option: "x"})


@pytest.mark.parametrize(
    "layout",
    [
        ("train/a.jsonl", "train/b.jsonl.zst", "test/c.jsonl"),
        ("corpus-train-a.jsonl", "corpus-train-b.jsonl", "corpus-test.jsonl"),
        ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"),
    ],
)
def test_a_folder_with_splits_is_read_by_split(tmp_path: Path, layout: tuple[str, str, str]) -> None:
    write(tmp_path, *layout)
    assert names(tmp_path) == sorted(layout[:2])
    assert names(tmp_path, split="test") == [layout[2]]
    with pytest.raises(SourceError, match="there is no split 'validation', only train, test"):
        resolve(DataConfig(dataset=str(tmp_path), split="validation"))


def test_splits_are_found_in_a_folder_of_a_linked_folder(tmp_path: Path) -> None:
    write(tmp_path / "real", "en/train/a.jsonl", "en/test/b.jsonl", "de/train/c.jsonl")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    assert names(tmp_path / "linked", data_dir="en", split="test") == ["test/b.jsonl"]


def test_files_in_no_split_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "train/a.jsonl", "train/b.jsonl", "extra/c.jsonl", "train/d.txt")
    assert names(tmp_path) == ["train/a.jsonl", "train/b.jsonl"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 1 file is in no split and is not read: extra/c.jsonl; choose files with --data.data-files",
        f"{tmp_path}: 1 file is of another kind than 2 JSON lines and is not read: train/d.txt; "
        "choose files with --data.data-files",
    ]


def test_a_folder_without_splits_has_only_train(tmp_path: Path) -> None:
    write(tmp_path, "shard-00000-of-00001.jsonl")
    assert names(tmp_path) == ["shard-00000-of-00001.jsonl"]
    with pytest.raises(SourceError, match="there is no split 'test', only train"):
        resolve(DataConfig(dataset=str(tmp_path)), split="test")


def test_the_card_of_a_folder_names_its_configurations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "one.jsonl", "two.jsonl")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files: one.jsonl\n- config_name: de\n  data_files: two.jsonl\n---\n"
    )
    assert names(tmp_path, name="de") == ["two.jsonl"]
    assert not caplog.records, "the files of other configurations are not left out by mistake"
    with pytest.raises(SourceError, match=r"Config name is missing.*\['en', 'de'\]"):
        resolve(DataConfig(dataset=str(tmp_path)))
    with pytest.raises(SourceError, match=r"'fr' not found. Available: \['en', 'de'\]"):
        resolve(DataConfig(dataset=str(tmp_path), name="fr"))


def test_an_evaluation_dataset_is_resolved_without_the_options_of_the_corpus(tmp_path: Path) -> None:
    write(tmp_path, "corpus/en/a.jsonl", "held/b.jsonl", "split/train/c.jsonl", "split/test/d.jsonl")
    data = DataConfig(dataset=str(tmp_path / "corpus"), data_dir="en", data_files="*.jsonl")
    assert [shard.name for shard in resolve(data, dataset=str(tmp_path / "held")).shards] == ["b.jsonl"]
    data = DataConfig(dataset=str(tmp_path / "split"), data_files="train/*")
    assert [shard.name for shard in resolve(data, split="test").shards] == ["test/d.jsonl"]


def test_a_list_names_one_dataset_a_line(tmp_path: Path) -> None:
    write(tmp_path, "one/a.jsonl", "one/b.jsonl", "two/a.jsonl", "three/x.jsonl", "three/y.jsonl")
    (tmp_path / "list.txt").write_text(
        f"\ufeff{tmp_path}/one/*.jsonl\n\n# more\n{tmp_path}/two # a folder\n{tmp_path}/three/y.jsonl\n{tmp_path}/one/a.jsonl\n"
    )
    corpus = resolve(DataConfig(dataset=f"@{tmp_path}/list.txt"))
    assert [shard.name for shard in corpus.shards] == ["one/a.jsonl", "one/b.jsonl", "three/y.jsonl", "two/a.jsonl"]
    assert corpus.dataset == f"@{tmp_path}/list.txt"


def test_a_list_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"list\.txt: there is no such file"):
        resolve(DataConfig(dataset=f"@{tmp_path}/list.txt"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match=r"pipe: is not a file: a list is read again at a resume"):
        resolve(DataConfig(dataset=f"@{tmp_path}/pipe"))
    (tmp_path / "list.txt").write_text("# nothing\n")
    with pytest.raises(SourceError, match=r"list\.txt: names no dataset"):
        resolve(DataConfig(dataset=f"@{tmp_path}/list.txt"))


def test_a_local_listing_takes_as_long_as_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "sub/a.jsonl")
    monkeypatch.setattr(resolving, "LEAST_DEADLINE", 0.0)
    threads = set()
    walk = os.walk

    def watched(*arguments: Any, **options: Any) -> Any:
        threads.add(threading.current_thread())
        return walk(*arguments, **options)

    monkeypatch.setattr(os, "walk", watched)
    for dataset in (tmp_path, f"file://{tmp_path}", f"{tmp_path}/**/*.jsonl", tmp_path / "sub/a.jsonl"):
        assert [Path(name).name for name in names(dataset, retry_deadline=0.0)] == ["a.jsonl"]
    assert threads == {threading.current_thread()}
