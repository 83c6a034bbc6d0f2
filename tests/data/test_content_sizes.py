"""How large the content of shards is, is found out once, at the first start, and decides how evenly lanes are dealt."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from stream_pretrain.config import Config, DataConfig, TrainConfig
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.lanes import content_sizes
from stream_pretrain.data.lanes.pinning import pin, relocate, source_plans
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.transport import retrying
from stream_pretrain.errors import DeadlineError
from stream_pretrain.training.start.advice import advice, advice_on_learning_rate
from stream_pretrain.units import MIB
from tests.corpora import documents, json_lines, write_shard
from tests.data.compressed import seek_table, zstd_frame
from tests.data.plans import lane as lane_of
from tests.data.plans import pinned_of, plan_for, row_of
from tests.integration.http_server import Server, serve

LINES = json_lines(documents(400))


def config_of(dataset: str, **options: Any) -> Config:
    data = DataConfig(**{"dataset": dataset, "sequence_length": 64, "lanes": 4, "window_bytes": 20_000} | options)
    return Config(data, train=TrainConfig(max_steps=1000, global_batch_size=8))


def found(folder: Path) -> list[int | None]:
    """What is pinned of the content of each shard."""
    return [shard.content_bytes for shard in pin(config_of(str(folder)), world=1).shards]


def plan_of(shards: list[tuple[int, int | None]], lanes: int = 4, window_bytes: int = 1000) -> SourcePlan:
    """Of zstd shards with these stored and uncompressed bytes."""
    found = [Shard(f"/{i}", str(i), size, None, "jsonl", "zstd", None, content) for i, (size, content) in enumerate(shards)]
    [source] = source_plans(config_of("x"), pinned_of(found, lanes, window_bytes))
    return source


def test_the_content_of_a_small_local_corpus_is_counted(tmp_path: Path) -> None:
    for number, style in enumerate(["plain", "zst", "zst-multi", "gz", "parquet"]):
        write_shard(tmp_path / f"s{number}", documents(400), style)
    streaming = zstandard.ZstdCompressor().compressobj()
    (tmp_path / "s5.jsonl.zst").write_bytes(streaming.compress(LINES) + streaming.flush())
    (tmp_path / "s6.jsonl.zst").write_bytes(b"")
    *of_lines, of_parquet, streamed, empty = found(tmp_path)
    assert [*of_lines, streamed, empty] == [len(LINES)] * 5 + [0]
    assert of_parquet == pytest.approx(sum(map(len, documents(400))), rel=0.05)


def test_of_a_large_local_corpus_headers_and_seek_tables_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_sizes, "COUNTED_BYTES", 1000)
    parts = [LINES[:30_000], LINES[30_000:]]
    frames = [zstd_frame(part) for part in parts]
    table = seek_table([(len(frame), len(part)) for frame, part in zip(frames, parts, strict=True)])
    (tmp_path / "a.jsonl.zst").write_bytes(zstd_frame(LINES))
    small = [LINES[i : i + 5000] for i in range(0, len(LINES), 5000)]
    (tmp_path / "b.jsonl.zst").write_bytes(b"".join(map(zstd_frame, small)))
    by_table = [(len(zstd_frame(part)), len(part)) for part in small]
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(map(zstd_frame, small)) + seek_table(by_table))
    (tmp_path / "d.jsonl.gz").write_bytes(b"".join(frames) + table)
    one_frame, several, with_table, gzip = found(tmp_path)
    assert (one_frame, with_table, gzip) == (len(LINES), len(LINES), None)
    told = 2 * len(LINES) / sum((tmp_path / f"{name}.jsonl.zst").stat().st_size for name in "ac")
    assert several == int((tmp_path / "b.jsonl.zst").stat().st_size * told), "taken to compress like the others"


def test_of_many_shards_some_are_opened_evenly_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_sizes, "MOST_OPENED", 2)
    for number in range(4):
        (tmp_path / f"{number}.jsonl.zst").write_bytes(zstd_frame(LINES[: 10_000 * (number + 1)]))
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    ratio = 40_000 / (sizes[0] + sizes[2])
    assert found(tmp_path) == [10_000, int(sizes[1] * ratio), 30_000, int(sizes[3] * ratio)]


def test_damage_and_absurd_headers_are_left_to_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"<html>no shard</html>" * 1000)
    assert found(tmp_path) == [None]
    monkeypatch.setattr(content_sizes, "COUNTED_BYTES", 0)
    huge = b"\x28\xb5\x2f\xfd\xe0" + (2**62).to_bytes(8, "little")
    for name, content in {"b": huge + b"\0" * 999, "c": b"\x28\xb5\x2f\xfd", "d": b"garbage" * 99}.items():
        (tmp_path / f"{name}.jsonl.zst").write_bytes(content)
    assert found(tmp_path) == [None] * 4


def test_zeros_without_end_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_sizes, "LONGEST_COUNTED", 2_000_000)
    (tmp_path / "a.jsonl.zst").write_bytes(zstd_frame(bytes(9_000_000)))
    assert found(tmp_path) == [None]


@pytest.fixture
def remote(tmp_path: Path) -> Any:
    """Two zstd shards of one frame and a small one on a web server, and a list of their URLs."""
    (tmp_path / "files").mkdir()
    for name, count in (("a", 400), ("b", 300), ("c", 1)):
        write_shard(tmp_path / "files" / name, documents(count), "zst")
    with serve(tmp_path / "files") as server:
        urls = [server.url(f"{name}.jsonl.zst") for name in "abc"]
        (tmp_path / "list").write_text("\n".join(urls))
        yield server, config_of(f"@{tmp_path}/list")


def test_a_remote_shard_is_asked_once_for_its_first_bytes_and_not_again(remote: tuple[Server, Config]) -> None:
    server, config = remote
    pinned = pin(config, world=1)
    sizes = [len(json_lines(documents(count))) for count in (400, 300)]
    assert [shard.content_bytes for shard in pinned.shards] == [*sizes, None], "of one line nobody needs to know it"
    asked = [(request["path"], request["range"]) for request in server.log() if request["range"] != "bytes=0-0"]
    assert sorted(asked) == [("/a.jsonl.zst", "bytes=0-17"), ("/b.jsonl.zst", "bytes=0-17")]

    server.forget()
    again = relocate(config, PinnedCorpus.from_json(json.loads(pinned.encoded)), world=1)
    assert [shard.content_bytes for shard in again.shards] == [*sizes, None]
    assert {request["range"] for request in server.log()} == {"bytes=0-0"}


def write_tables(folder: Path) -> None:
    """Two Parquet shards with the same text, one of them with ten times as much in another column."""
    folder.mkdir()
    texts = documents(2000, longest=300)
    for name, size in (("a", 1), ("b", 3000)):
        others = [random.Random(number).randbytes(size) for number in range(len(texts))]
        pq.write_table(
            pa.table({"text": texts, "other": others}), folder / f"{name}.parquet", row_group_size=200, write_statistics=False
        )


def test_lanes_of_parquet_are_level_in_text_as_footers_tell(tmp_path: Path) -> None:
    write_tables(tmp_path / "files")
    config = config_of(str(tmp_path / "files"), window_bytes=40_000)
    pinned = pin(config, world=1)
    first, second = pinned.shards
    assert first.content_bytes == second.content_bytes
    assert (second.size or 0) > 5 * (first.size or 0)
    [source] = source_plans(config, pinned)
    read = []
    for lane in range(4):
        reading = lane_of(plan_for(tmp_path / "files", window_bytes=40_000, max_epochs=1), lane)
        while row_of(reading) is not None:
            pass
        read.append(reading.cursors[0].bytes_read)
    assert sum(read) == source.bytes_of_epoch
    assert max(read) < 1.05 * min(read)


def test_a_remote_shard_of_parquet_is_asked_once_for_its_footer(tmp_path: Path) -> None:
    write_tables(tmp_path / "files")
    with serve(tmp_path / "files") as server:
        (tmp_path / "list").write_text("\n".join(server.url(f"{name}.parquet") for name in "ab"))
        config = config_of(f"@{tmp_path}/list")
        pinned = pin(config, world=1)
        assert [shard.content_bytes for shard in pinned.shards] == [
            shard.content_bytes for shard in pin(config_of(str(tmp_path / "files")), world=1).shards
        ]
        ranges = [request["range"] for request in server.log() if request["path"] == "/b.parquet"]
        assert len(ranges) == 2, "the size, and the end"


def test_a_server_that_fails_for_a_while_changes_nothing_of_what_is_known(
    remote: tuple[Server, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, config = remote
    undisturbed = [shard.content_bytes for shard in pin(config, world=1).shards]
    monkeypatch.setattr(retrying, "_BACKOFF_BASE", 0.01)
    for name in "ab":  # the first request is for the size
        server.inject(f"{name}.jsonl.zst", {"do": "none"}, {"do": "status", "code": 503, "times": 2})
    assert [shard.content_bytes for shard in pin(config, world=1).shards] == undisturbed
    assert undisturbed == [134935, 99740, None]
    for name in "ab":
        server.inject(f"{name}.jsonl.zst", {"do": "none"}, {"do": "status", "code": 503, "times": 1000})
    impatient = replace(config, data=replace(config.data, retry_deadline=0.2))
    with pytest.raises(DeadlineError, match=r"jsonl\.zst: "):
        pin(impatient, world=1)


def test_stripes_have_the_windows_that_are_there() -> None:
    source = plan_of([(1000, 3400)])
    assert source.windows_of(0) == 4
    assert [source.bytes_from(Stripe(0, first, 3), 0) for first in range(3)] == [1400, 1000, 1000]
    assert [source.bytes_from(Stripe(0, first, 4), 0) for first in range(4)] == [1000, 1000, 1000, 400]
    assert [source.bytes_from(Stripe(0, first, 2), 1) for first in range(2)] == [1000, 700]
    guessed = plan_of([(1000, None)])
    assert guessed.windows_of(0) == 4
    assert [guessed.bytes_from(Stripe(0, first, 3), 0) for first in range(3)] == [333, 333, 334]


def test_lanes_are_level_in_what_they_read_not_in_what_is_stored() -> None:
    source = plan_of([(1000, 8000), (1000, 2000)], lanes=2)
    assert [source.stripes(0, lane) for lane in range(2)] == [
        [Stripe(0, 1, 2), Stripe(1, 1, 2)],
        [Stripe(0, 0, 2), Stripe(1, 0, 2)],
    ]
    assert source.fullest_lane == 1.0
    guessed = plan_of([(1000, None), (1000, None)], lanes=2)
    assert [guessed.stripes(0, lane) for lane in range(2)] == [[Stripe(0)], [Stripe(1)]]


@pytest.mark.parametrize(("compression", "size", "was", "is_now"), [("zstd", 1540, 5, 6), ("none", 5400, 5, 6)])
def test_a_corpus_that_was_pinned_without_sizes_is_dealt_as_it_was(compression: str, size: int, was: int, is_now: int) -> None:
    shard = Shard("/a", "a", size, None, "jsonl", compression, None, 5400)
    value = json.loads(pinned_of([shard], lanes=4, window_bytes=1000).encoded)
    [source] = source_plans(config_of("x"), PinnedCorpus.from_json(value))
    assert source.windows_of(0) == is_now
    del value["sources"][0]["shards"][0]["content_bytes"]
    [source] = source_plans(config_of("x"), PinnedCorpus.from_json(value))
    assert source.windows_of(0) == was


def test_a_start_says_how_uneven_lanes_are(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", documents(60), "plain")
    alone: Any = SimpleNamespace(world=1)
    for window_bytes, times in ((8000, "1.45"), (1200, "1.09")):
        assert list(advice(plan_for(tmp_path, window_bytes=window_bytes), alone, workers=0)) == [
            f"lanes are uneven: the fullest has {times} times the mean, so an epoch ends with rows of few lanes; fewer --lanes "
            "or a smaller --data.window-bytes level them"
        ]
    assert not list(advice(plan_for(tmp_path, window_bytes=500), alone, workers=0))


def test_a_start_counts_the_data_workers_that_have_a_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(tmp_path / "a", documents(60), "plain")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(3))
    alone: Any = SimpleNamespace(world=1)
    assert not list(advice(plan_for(tmp_path, lanes=3, window_bytes=200), alone, workers=64))
    assert list(advice(plan_for(tmp_path, lanes=4, window_bytes=200), alone, workers=64)) == [
        "4 data workers on a machine with 3 cores: fewer --workers may be faster"
    ]


def test_a_start_says_how_often_an_epoch_reads_the_corpus() -> None:
    alone: Any = SimpleNamespace(world=1)
    sources = source_plans(config_of("x"), pinned_of([Shard("/a", "a", 8 * MIB, None, "examples", "none")], 8, MIB))
    plan: Any = SimpleNamespace(layout=sources[0].layout, sources=sources, schedule=[SimpleNamespace(parts=[1])])
    assert list(advice(plan, alone, workers=0)) == [
        "several lanes read shards that can only be read from the start: an epoch reads the corpus 8.0 times, and a resume at "
        "most 67 MB of it again; fewer --lanes or --workers read less, as do more and smaller shards"
    ]


@pytest.mark.parametrize(("rate", "warnings"), [("auto", 0), (5e-4, 0), (1e4, 1)])
def test_a_learning_rate_that_destroys_a_model_is_warned_of(rate: Any, warnings: int) -> None:
    found = list(advice_on_learning_rate(TrainConfig(learning_rate=rate)))
    warning = "--train.learning-rate 10000 moves weights by up to 10000 a step, which destroys a model: 1e-4 is usual"
    assert found == [warning] * warnings


def test_a_start_says_that_a_step_is_more_than_the_corpus(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", documents(60), "plain")
    alone: Any = SimpleNamespace(world=1)
    assert list(advice(plan_for(tmp_path, window_bytes=500, global_batch_size=1_000_000), alone, workers=0)) == [
        "a step of 1,000,000 rows is about 11,623 times the corpus: a smaller --global-batch-size makes several steps of it"
    ]
    [line] = advice(plan_for(tmp_path, window_bytes=500, global_batch_size=100), alone, workers=0)
    assert line.startswith("a step of 100 rows is about 1.2 times the corpus: ")
    plan = plan_for(tmp_path, window_bytes=500, global_batch_size=1_000_000, packing="none")
    assert not list(advice(plan, alone, workers=0))
