"""What reading costs is said before it is paid."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_pretrain.config import Config, DataConfig, TrainConfig
from stream_pretrain.data.corpus.file_formats import Format
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.lanes import pinning
from stream_pretrain.data.lanes.pinning import source_plans
from stream_pretrain.data.lanes.reading_costs import memory_bound, reading_cost
from stream_pretrain.data.lanes.worker_lanes import lanes_of_workers
from stream_pretrain.data.transport.compression import Compression
from stream_pretrain.errors import ConfigError
from tests.corpora import documents, write_shard
from tests.data.plans import pinned_of
from tests.integration.http_server import serve

KIB, MIB = 1 << 10, 1 << 20
CONFIG = Config(data=DataConfig(dataset="x"), train=TrainConfig(max_steps=1, global_batch_size=64))


def corpus_of(count: int, size: int, compression: Compression, file_format: Format = "jsonl") -> PinnedCorpus:
    return pinned_of([Shard(f"/s{i}", f"s{i}", size, None, file_format, compression) for i in range(count)], 8, MIB)


@pytest.mark.parametrize(
    ("count", "compression", "world", "workers", "times", "again"),
    [
        (8, "zstd", 1, 1, 1.0, 8),  # whole shards: a lane each
        (8, "zstd", 4, 2, 1.0, 8),
        (1, "zstd", 1, 1, 1.0, 1),  # one shard for all lanes of one process, in one pass
        (1, "zstd", 1, 4, 4.0, 4),  # and for four
        (1, "gzip", 4, 2, 8.0, 8),
        (1, "none", 4, 2, 1.0, 0),  # plain: every window can be entered
        (2, "zstd", 2, 1, 2.0, 4),
    ],
)
def test_a_shard_that_lanes_of_several_processes_share_is_read_by_each(
    count: int, compression: Compression, world: int, workers: int, times: float, again: int
) -> None:
    cost = reading_cost(source_plans(CONFIG, corpus_of(count, 100 * MIB, compression)), world, workers)
    assert cost.amplification == times
    assert cost.resume_bytes == again * 100 * MIB
    assert cost.stored_bytes == count * 100 * MIB


@pytest.mark.parametrize(
    ("count", "lanes", "workers", "times"),
    [
        (3, 8, 2, 2.0),
        (20, 64, 2, 1.20),
        (20, 64, 8, 1.69),
        (40, 64, 4, 1.25),
        (64, 64, 8, 1.03),
    ],  # neighbours: 2, 2, 4.2, 2.1, 1.3
)
def test_lanes_that_share_shards_are_read_by_one_worker_where_they_can_be(
    count: int, lanes: int, workers: int, times: float
) -> None:
    shards = [Shard(f"/s{i}", f"s{i}", 100 * MIB + i * MIB // 10, None, "jsonl", "zstd") for i in range(count)]
    plans = source_plans(CONFIG, pinned_of(shards, lanes, MIB))
    assert reading_cost(plans, 1, workers).amplification == pytest.approx(times, abs=0.01)
    for epochs in ([0], [1]):
        dealt = lanes_of_workers(plans, range(lanes), workers, epochs)
        assert sorted(itertools.chain(*dealt)) == list(range(lanes))
        assert {len(own) for own in dealt} == {lanes // workers}


def test_a_format_without_bytes_is_read_by_every_lane_that_shares_it() -> None:
    assert reading_cost(source_plans(CONFIG, corpus_of(1, 100 * MIB, "none", "examples")), 1, 1).amplification == 8


def test_remote_shards_are_not_read_many_times_unless_lanes_are_given(tmp_path: Path) -> None:
    with (tmp_path / "s.jsonl.gz").open("wb") as shard:
        shard.truncate(64 * MIB)
    with serve(tmp_path) as server:
        url = server.url("s.jsonl.gz")
        with pytest.raises(ConfigError, match=r"read 8\.0 times in an epoch, by 8 processes: give --lanes 8 to accept that"):
            pinning.pin(with_options(dataset=url, workers=8), world=1)
        assert pinning.pin(with_options(dataset=url, workers=8, lanes=8), world=1).lanes == 8
        assert pinning.pin(with_options(dataset=url, workers=4), world=1).lanes == 8
        assert {request["range"] for request in server.log()} == {"bytes=0-0"}
    assert pinning.pin(with_options(dataset=str(tmp_path), workers=8), world=1).lanes == 8


def with_options(**options: object) -> Config:
    return Config(data=DataConfig(**options), train=TrainConfig(max_steps=1, global_batch_size=64))  # type: ignore[arg-type]


def test_the_memory_of_a_worker_is_bounded_by_its_lanes() -> None:
    plan = source_plans(CONFIG, corpus_of(8, 100 * MIB, "none", "parquet"))
    # Two blocks, pages and what they give, spare memory, the window of the lane and its group; and the window that is opened.
    assert memory_bound(plan, 1) == 2 * 8 * MIB + OF_LANE + 3 * MIB
    assert memory_bound(plan, 16) == 16 * (2 * 8 * MIB + OF_LANE) + 3 * MIB
    assert memory_bound(plan, 64) == 64 * (2 * 2 * MIB + OF_LANE) + 3 * MIB, "as many lanes share what 16 have"
    assert memory_bound(plan, 1024) == 1024 * (2 * MIB // 2 + OF_LANE) + 3 * MIB


OF_LANE = 8 * MIB + MIB + MIB // 2 + 5 * MIB // 4 + MIB // 4
"""Of a lane with windows of 1 MiB and groups of 16 rows of 512 tokens, beside what it has fetched."""


def test_windows_are_kept_for_the_lanes_that_share_shards_and_for_no_others() -> None:
    def kept(shards: int, lanes: int) -> int:
        return memory_bound(source_plans(CONFIG, corpus_of(shards, 100 * MIB, "zstd")), lanes) - lanes * (
            128 * KIB + MIB + OF_LANE
        )

    assert [kept(shards, 8) // MIB for shards in (8, 80, 1, 9)] == [3, 3, 3 + 8 * 2 * 4, 3 + 7 * 2 * 4]


@pytest.mark.parametrize(
    ("compression", "of_decoder"), [("zstd", 10 * MIB), ("gzip", MIB + MIB // 4), ("bz2", 5 * MIB), ("none", 0)]
)
def test_a_decompressor_takes_what_its_format_needs(compression: Compression, of_decoder: int) -> None:
    plan = source_plans(CONFIG, corpus_of(8, 100 * MIB, compression))
    assert memory_bound(plan, 1) == 128 * KIB + of_decoder + 2 * MIB + 3 * MIB


def test_small_windows_lower_what_lanes_keep_for_each_other() -> None:
    def kept(window_bytes: int, lanes: int) -> int:
        shard = Shard("/s", "s", 100 * MIB, None, "jsonl", "zstd")
        [plan] = source_plans(CONFIG, pinned_of([shard] * 8, 64, window_bytes))
        read = plan.read_by(lanes)
        return lanes * read.most_kept * window_bytes

    assert [kept(window, 64) for window in (4 * MIB, MIB, MIB // 4, MIB // 64)] == [512 * MIB, 128 * MIB, 64 * MIB, 64 * MIB]
    assert [kept(MIB // 4, lanes) for lanes in (1, 8, 16, 32)] == [4 * MIB, 32 * MIB, 64 * MIB, 64 * MIB]


def test_a_process_with_many_lanes_asks_for_smaller_blocks_and_its_requests_are_counted_so() -> None:
    shard = Shard("https://here.test/s.jsonl.zst", "s", 80 * MIB, None, "jsonl", "zstd")
    plans = source_plans(CONFIG, pinned_of([shard] * 64, 64, MIB))
    assert [plans[0].read_by(lanes).transport.block_bytes // MIB for lanes in (1, 16, 32, 64)] == [8, 8, 4, 2]
    assert [reading_cost(plans, 1, workers).requests for workers in (1, 2, 4)] == [64 * 40, 64 * 20, 64 * 10]


def test_what_is_held_back_of_a_compressed_shard_in_a_store_counts() -> None:
    shard = Shard("https://here.test/s.jsonl.zst", "s", 100 * MIB, None, "jsonl", "zstd")
    plan = source_plans(CONFIG, pinned_of([shard] * 8, 8, MIB))
    decoder_beyond_pages, held_back = MIB, MIB
    assert memory_bound(plan, 1) == 2 * 8 * MIB + OF_LANE + decoder_beyond_pages + held_back + 3 * MIB


WATCHED = """
import sys
from pathlib import Path
from stream_pretrain.data.lanes.reading_costs import memory_bound
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_state import first_cursors
from tests.data.plans import plan_for

def most() -> int:  # of this process: `getrusage` has what the one had that started it
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

lanes = int(sys.argv[2])
plan = plan_for(Path(sys.argv[1]), dataset=sys.argv[1], lanes=lanes, global_batch_size=64, window_bytes=1 << 22)
before = most()
with StepStream(plan, first_cursors(lanes)) as stream:
    for _ in range(40):
        assert len(next(stream).row_lane) == 64
print(most() - before, memory_bound(plan.sources, lanes))
"""


def held_and_bound(dataset: str, lanes: int) -> tuple[int, int]:
    command = [sys.executable, "-c", WATCHED, dataset, str(lanes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    held, bound = map(int, done.stdout.split())
    return held, bound


@pytest.mark.long
@pytest.mark.parametrize(("style", "longest"), [("txt", 36), ("plain", 400), ("gz", 400), ("zst", 400)])
def test_lanes_hold_at_most_what_is_said_and_no_less_than_half_of_it(style: str, longest: int, tmp_path: Path) -> None:
    texts = documents(27 * MIB // (8 * longest), longest=longest)
    if style == "txt":  # with nothing around its short documents
        first = tmp_path / "s0.txt"
        first.write_text("\n".join(texts))
    else:
        first = write_shard(tmp_path / "s0", texts, style)
    assert first.stat().st_size > MIB
    for number in range(1, 16):
        (tmp_path / first.name.replace("s0", f"s{number}")).hardlink_to(first)
    held, bound = held_and_bound(str(tmp_path), 16)
    assert bound / 2 < held < bound


@pytest.mark.long
@pytest.mark.parametrize("style", ["zst", "parquet"])
def test_the_readers_of_64_remote_lanes_stay_within_the_bound(style: str, tmp_path: Path) -> None:
    """Takes about a minute: 64 windows of 4 MiB are held at once."""
    served = tmp_path / "served"
    served.mkdir()
    texts = documents(20_000, longest=120)
    if style == "parquet":
        first = served / "s0.parquet"
        pq.write_table(pa.table({"text": texts * 4}), first, row_group_size=80_000)
    else:
        first = write_shard(served / "s0", texts, style)
    assert first.stat().st_size > MIB
    for number in range(1, 64):
        (served / first.name.replace("s0", f"s{number}")).hardlink_to(first)
    with serve(served) as server:
        (tmp_path / "urls.txt").write_text("\n".join(server.url(path.name) for path in sorted(served.iterdir())))
        held, bound = held_and_bound(f"@{tmp_path / 'urls.txt'}", 64)
    assert 64 * 2 * MIB < held < bound
