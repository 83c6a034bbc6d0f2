"""What counts as the same corpus at a resume."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.corpus.shard import Corpus, Shard
from stream_pretrain.data.corpus.unchanged_since_start import check_unchanged
from stream_pretrain.errors import SourceError
from stream_pretrain.typed_json import from_json
from tests.data.named_corpora import write


def corpus(*shards: tuple[str, int | None, str | None], place: str = "/one") -> Corpus:
    found = (Shard(f"{place}/{name}", name, size, identity, "jsonl", "none") for name, size, identity in shards)
    return Corpus(place, None, tuple(found))


def test_a_corpus_survives_json(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "b.csv")
    pinned = replace(resolve(DataConfig(dataset=str(tmp_path))), revision="c0ffee")
    assert from_json(Corpus, json.loads(json.dumps(pinned.to_json())), "") == pinned


def test_the_same_content_at_another_place_and_time_is_the_same_corpus(tmp_path: Path) -> None:
    write(tmp_path / "one", "a.jsonl", "sub/b.jsonl")
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copyfile)
    check_unchanged(resolve(DataConfig(dataset=f"{tmp_path}/one")), resolve(DataConfig(dataset=f"{tmp_path}/two")))


@pytest.mark.parametrize("offset", [0, 199_999])
def test_a_byte_changed_at_either_end_of_a_file_is_noticed(tmp_path: Path, offset: int) -> None:
    content = bytearray(200_000)
    (tmp_path / "a.jsonl").write_bytes(content)
    pinned = resolve(DataConfig(dataset=str(tmp_path)))
    content[offset] = 1
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(SourceError, match=r"a\.jsonl changed; restore it or start a new run$"):
        check_unchanged(pinned, resolve(DataConfig(dataset=str(tmp_path))))


def test_missing_new_and_changed_shards_are_named() -> None:
    pinned = corpus(("a", 1, "git:a"), ("b", 1, "git:b"), ("c", 1, None), ("d", 1, None), ("e", 1, None))
    found = corpus(("b", 1, "git:x"), ("c", 2, None), ("d", 2, None), ("e", None, None), ("new", 1, None), place="/two")
    with pytest.raises(SourceError) as raised:
        check_unchanged(pinned, found)
    assert str(raised.value) == (
        "/two is not the corpus this run began with: a is missing, new is new, b changed and 2 more; "
        "restore it or start a new run"
    )


def test_identities_of_different_kinds_are_not_compared() -> None:
    check_unchanged(corpus(("a", 1, "sha256:x")), corpus(("a", 1, "ends:1:y"), place="/two"))
    check_unchanged(corpus(("a", 1, "sha256:x")), corpus(("a", 1, None)))


def test_an_etag_counts_at_the_same_url_only() -> None:
    check_unchanged(corpus(("a", 1, "etag:x-2")), corpus(("a", 1, "etag:x-3"), place="/copied"))
    with pytest.raises(SourceError, match="a changed"):
        check_unchanged(corpus(("a", 1, "etag:x-2")), corpus(("a", 1, "etag:x-3")))
