"""Small shards share rows: they are dealt, read, shuffled and packed together, and stay what they are in every other way."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_pretrain.config import Config, DataConfig, SourceConfig, TrainConfig
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.lanes.bundles import bundles_of, not_in_bundles
from stream_pretrain.data.lanes.cursor import Cursor, Skipped
from stream_pretrain.data.lanes.cursor_checks import fault_of
from stream_pretrain.data.lanes.lane import Lane
from stream_pretrain.data.lanes.pinning import pin, relocate
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.errors import CheckpointError, ContentError, SourceError, TransportError
from tests.corpora import documents, json_lines, write_shard
from tests.data.plans import TOKENIZER, lane, plan_for, read_through, row_of, rows_of, texts_of
from tests.integration.http_server import Server, serve


def shards_of(*sizes: int | None, compression: str = "none") -> list[Shard]:
    return [Shard(f"/{i}", str(i), size, None, "jsonl", compression) for i, size in enumerate(sizes)]


def test_small_shards_that_lie_side_by_side_are_one_unit() -> None:
    assert bundles_of(shards_of(10, 20, 30), 1000) == ((0, 3),)
    assert bundles_of(shards_of(10, 1000, 20, 30), 1000) == ((2, 4),), "one by itself has nothing to share rows with"
    assert bundles_of(shards_of(10, None, 20), 1000) == (), "nobody knows whether one of unknown size is small"
    assert bundles_of(shards_of(*[400] * 6), 1000) == ((0, 3), (3, 6)), "no bundle is left over that fills no row"
    assert bundles_of(shards_of(*[400] * 6, compression="gzip"), 1000) == ((0, 2), (2, 4), (4, 6)), (
        "some 600 bytes of text each"
    )
    assert bundles_of(shards_of(*[700] * 6, compression="gzip"), 1000) == ()
    assert bundles_of(shards_of(*[0] * 600), 1000) == ((0, 300), (300, 600)), "256 are enough, however small"
    assert bundles_of(shards_of(*[10] * 600), 10**6) == ((0, 300), (300, 600))


def test_a_unit_is_a_shard_or_a_bundle(tmp_path: Path) -> None:
    for i, count in enumerate([1, 2, 200, 1, 200, 1, 1, 1]):
        write_shard(tmp_path / f"s{i}", documents(count, seed=i), "plain")
    [source] = plan_for(tmp_path).sources
    assert source.bundles == ((0, 2), (5, 8))
    assert [list(unit) for unit in source.units] == [[0, 1], [2], [3], [4], [5, 6, 7]]
    assert [source.windows_of(unit) for unit in range(5)] == [1, 6, 1, 6, 1]
    assert source.size_of(4) == sum(path.stat().st_size for path in tmp_path.glob("s[567].jsonl"))
    assert [shard.name for shard in not_in_bundles(source.shards, source.bundles)] == ["s2.jsonl", "s3.jsonl", "s4.jsonl"]
    assert {stripe.count for number in range(4) for stripe in source.stripes(0, number) if stripe.unit in (0, 2, 4)} == {1}


@pytest.mark.parametrize("per_shard", [1, 10])
@pytest.mark.parametrize("style", ["plain", "gz", "parquet"])
def test_rows_of_small_shards_hold_at_least_95_percent_real_tokens(tmp_path: Path, per_shard: int, style: str) -> None:
    for i in range(300 // per_shard):
        write_shard(tmp_path / f"s{i:03d}", documents(per_shard, seed=i, longest=100), style)
    assert real_tokens(tmp_path) >= 0.95


def test_rows_of_files_that_are_documents_hold_at_least_95_percent_real_tokens(tmp_path: Path) -> None:
    for i, text in enumerate(documents(300, longest=100)):
        (tmp_path / f"s{i:03d}.txt").write_text(text.replace(" ", "\n", 3))
    assert real_tokens(tmp_path, text_documents="file") >= 0.95


def test_rows_of_small_row_groups_hold_at_least_95_percent_real_tokens(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": documents(300, longest=100)}), tmp_path / "s.parquet", row_group_size=10)
    assert real_tokens(tmp_path) >= 0.95


def real_tokens(folder: Path, **options: object) -> float:
    """The share of positions that hold a token, of an epoch of 300 documents."""
    plan = plan_for(folder, lanes=1, global_batch_size=1, max_epochs=1, window_bytes="auto", sequence_length=512, **options)
    reading, filled, rows, seen = lane(plan, 0), 0, 0, 0
    while (row := row_of(reading)) is not None:
        filled += int(np.count_nonzero(row[1].rows.input_ids[row[2]]))
        rows, seen = rows + 1, seen + int(row.group.begins[row.group.rows.segments_of(range(row.row, row.row + 1))].sum())
    assert seen == 300
    return filled / (rows * 512)


def test_a_source_of_a_mixture_numbers_the_shards_of_its_bundles_among_those_of_all(tmp_path: Path) -> None:
    for name, first in (("one", 0), ("two", 5)):
        (tmp_path / name).mkdir()
        for i in range(first, first + 5):
            write_shard(tmp_path / name / f"s{i}", documents(3, seed=i, longest=9), "plain")
    for max_epochs in (None, 1):
        sources = tuple(SourceConfig(name, str(tmp_path / name), 1, max_epochs=max_epochs) for name in ("one", "two"))
        config = Config(
            DataConfig(sources=sources, sequence_length=64, lanes=2),
            train=TrainConfig(max_steps=9, max_epochs=None, global_batch_size=2),
        )
        plan = stream_plan(config, TOKENIZER)
        assert [source.bundles for source in plan.sources] == [((0, 5),), ((0, 5),)]
        assert [source.undealt for source in plan.sources] == [max_epochs is None] * 2
        met = set[tuple[int, int]]()
        for number in range(2):
            reading = lane(plan, number)
            for _ in range(8):
                if (row := row_of(reading)) is not None:
                    _, group, index, _ = row
                    segments = group.rows.segments_of(range(index, index + 1))
                    numbers = texts_of(group.rows.input_ids[index].tolist())
                    met.update(zip(group.origins[segments, 1].tolist(), (number // 1000 for number in numbers), strict=False))
        assert met == {(shard, shard) for shard in range(10)}


def mixed(folder: Path) -> dict[tuple[str, int], str]:
    """A corpus of two bundles, of all formats, beside two large shards; its documents by shard and offset."""
    found: dict[tuple[str, int], str] = {}
    for i, (style, count) in enumerate(
        [
            *(("plain", 3), ("gz", 4), ("parquet", 2), ("csv", 3), ("txt", 4), ("zst", 1), ("plain", 0)),
            *(("plain", 60), ("parquet", 50)),
            *(("plain", 5), ("zst-multi", 6), ("plain", 1)),
        ]
    ):
        texts = documents(count, seed=i, longest=40)
        name = {"plain": "jsonl", "gz": "jsonl.gz", "zst": "jsonl.zst", "zst-multi": "jsonl.zst"}.get(style, style)
        path = folder / f"s{i:02d}.{name}"
        lines = [line + b"\n" for line in json_lines(texts).split(b"\n")[:-1]]
        offsets = [sum(map(len, lines[:k])) for k in range(count)]
        match style:
            case "csv":
                path.write_text("".join(f"{line}\n" for line in ["text", *texts]))
            case "txt":
                path.write_text("".join(f"{text}\n" for text in texts))
                offsets = [sum(len(text) + 1 for text in texts[:k]) for k in range(count)]
            case "parquet":
                pq.write_table(pa.table({"text": texts}), path, row_group_size=4)
            case _:
                write_shard(path.with_suffix("") if "." in name else path, texts, style)
        if style in ("csv", "parquet"):
            offsets = list(range(count))
        found |= {(path.name, offset): text for offset, text in zip(offsets, texts, strict=True)}
    return found


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)])
def test_a_lane_goes_on_from_every_position_of_bundles_and_joined_row_groups(every: int, tmp_path: Path) -> None:
    whole = mixed(tmp_path)
    for packing in ("best_fit", "concat", "none"):
        plan = plan_for(tmp_path, packing=packing, lanes=2, max_epochs=2, sequence_length=32, window_bytes=2_500)
        [source] = plan.sources
        assert source.bundles == ((0, 7), (9, 12))
        seen: Counter[tuple[int, str, int]] = Counter()
        for number in range(2):
            reading, rows, states = lane(plan, number), [], []
            while True:
                states.append(tuple(reading.cursors))
                row = row_of(reading)
                if row is None:
                    break
                rows.append(row[1].rows.input_ids[row[2]].tolist())
                segments = row[1].rows.segments_of(range(row[2], row[2] + 1))
                begun = row[1].rows.segment_token[segments] == 0
                seen.update(
                    (epoch, source.shards[shard].name, offset)
                    for epoch, shard, offset in row[1].origins[segments][begun].tolist()
                )
            for k in range(0, len(rows), every if packing == "best_fit" else 11):
                resumed = lane(plan, number, states[k])
                assert rows_of(resumed, 12) == rows[k : k + 12], f"after row {k}"
                if k + 12 <= len(rows):
                    assert tuple(resumed.cursors) == states[k + 12], f"after row {k}"
        assert {place[1:] for place in seen} == set(whole)
        assert len(seen) == 2 * len(whole), "every document in each of the epochs"


def test_every_segment_says_which_shard_of_a_bundle_it_is_of_and_where_it_stands_in_it(tmp_path: Path) -> None:
    whole = mixed(tmp_path)
    plan = plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1, packing="none", sequence_length=128)
    reading = lane(plan, 0)
    met = {}
    while (row := row_of(reading)) is not None:
        _, group, index, _ = row
        [segment] = np.flatnonzero(group.rows.segment_row == index)
        _, shard, offset = group.origins[segment].tolist()
        [met[plan.shards[shard].name, offset]] = texts_of(group.rows.input_ids[index].tolist())
    assert met == {place: int(text.split()[1]) for place, text in whole.items()}


def test_held_out_documents_of_a_bundle_are_left_out_and_the_others_keep_their_places(tmp_path: Path) -> None:
    for i in range(20):
        write_shard(tmp_path / f"s{i:02d}", documents(2, seed=i, longest=20), "plain")
    seen = []
    for fraction in (0.0, 0.3):
        plan = plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1, heldout_fraction=fraction)
        assert [list(unit) for unit in plan.sources[0].units] == [list(range(20))]
        seen.append(origins_by_number(plan))
    everything, kept = seen
    assert 20 <= len(kept) < 40
    assert kept.items() <= everything.items()


def origins_by_number(plan: StreamPlan) -> dict[int, tuple[str, int]]:
    """Of one lane: shard and offset of each document, by the number in it."""
    plan = replace(plan, layout=replace(plan.layout, packing="none"), sources=plan.sources)
    reading, found = lane(plan, 0), {}
    while (row := row_of(reading)) is not None:
        _, group, index, _ = row
        segments = group.rows.segments_of(range(index, index + 1))
        for number, (_, shard, offset) in zip(
            texts_of(group.rows.input_ids[index].tolist()), group.origins[segments].tolist(), strict=False
        ):
            found[number] = (plan.shards[shard].name, offset)
    return found


@pytest.mark.parametrize("drop", [False, True])
def test_copies_in_other_shards_of_a_bundle_are_dropped_where_copies_are(tmp_path: Path, drop: bool) -> None:
    texts = documents(4, longest=5)
    for i, of_shard in enumerate([texts[:2], texts[1:3], [texts[3], texts[3], texts[0]]]):
        write_shard(tmp_path / f"s{i}", of_shard, "plain")
    skipped, [cursor] = read_through(tmp_path, lanes=1, global_batch_size=1, drop_duplicates=drop)
    assert skipped == []
    assert (cursor.read, cursor.documents, cursor.filtered) == ((7, 4, 3) if drop else (7, 7, 0))


def bad_documents(folder: Path) -> None:
    """Three small shards: of each, something is not used."""
    (folder / "a.jsonl").write_bytes(b'{"text": "doc 000001"}\nnot JSON\n')
    (folder / "b.jsonl").write_bytes(b'{"text": "doc 000002"}\n{"text": "\\u200b"}\n{"text": null}\n{"text": "\\u200b"}\n')
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(b'{"no": 1}\n{"text": "doc 000003"}\n{"text": 7}\n{"text": "\\u200b"}\n'))


def test_what_no_row_is_made_of_is_named_with_its_own_shard_and_offset(tmp_path: Path) -> None:
    bad_documents(tmp_path)
    plan = plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1)
    assert [list(unit) for unit in plan.sources[0].units] == [[0, 1, 2]]
    skipped, [cursor] = read_through(tmp_path, lanes=1, global_batch_size=1)
    assert sorted(
        (plan.shards[skip.shard].name, skip.offset, skip.reason.split(";")[0], skip.documents) for skip in skipped
    ) == [
        ("a.jsonl", 23, "not JSON", 1),
        ("b.jsonl", 23, "no tokens", 2),
        ("b.jsonl", 42, "text is null", 1),
        ("c.jsonl.gz", 0, "no field text", 1),
        ("c.jsonl.gz", 33, "field 'text' holds a number, not text", 1),
        ("c.jsonl.gz", 45, "no tokens", 1),
    ]
    assert (cursor.read, cursor.documents, cursor.skipped, cursor.empty) == (10, 3, 2, 5)


def test_what_no_row_is_made_of_is_named_once_wherever_a_run_goes_on(tmp_path: Path) -> None:
    bad_documents(tmp_path)
    plan = plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1, packing="none")
    reading, named = lane(plan, 0), Counter[tuple[int, int]]()
    while (row := row_of(reading)) is not None:
        named.update((skip.shard, skip.offset) for skip in row[3])
        reading = lane(plan, 0, tuple(reading.cursors))
    named.update((skip.shard, skip.offset) for skip in reading.report_skipped())
    assert set(named.values()) == {1}
    assert len(named) == 6


def damaged(folder: Path) -> None:
    """Five small shards; what the second, third and fourth hold cannot be had."""
    for i in range(5):
        write_shard(folder / f"s{i}", documents(3, seed=i, longest=9), ["plain", "gz", "parquet", "zst", "plain"][i])
    for name in ("s1.jsonl.gz", "s3.jsonl.zst"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-5] + bytes([content[-5] ^ 255]) + content[-4:])
    column = pq.read_metadata(folder / "s2.parquet").row_group(0).column(1)
    content = bytearray((folder / "s2.parquet").read_bytes())
    content[column.data_page_offset : column.data_page_offset + 20] = b"\xff" * 20
    (folder / "s2.parquet").write_bytes(content)


def test_a_damaged_shard_of_a_bundle_is_skipped_alone(tmp_path: Path) -> None:
    damaged(tmp_path)
    plan = plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1, on_bad_shard="skip")
    assert [list(unit) for unit in plan.sources[0].units] == [[0, 1, 2, 3, 4]]
    seen: list[int] = []
    skipped: list[Skipped] = []
    reading = lane(plan, 0)
    while (row := row_of(reading)) is not None:
        seen += texts_of(row[1].rows.input_ids[row[2]].tolist())
        skipped += row[3]
        reading = lane(plan, 0, tuple(reading.cursors))  # met again at every start, and named once
    skipped += reading.report_skipped()
    assert sorted(seen) == [0, 1, 2, 4000, 4001, 4002]
    assert [(skip.shard, skip.offset, skip.documents) for skip in skipped] == [(1, 0, None), (2, 0, 3), (3, 0, None)]
    assert [skip.reason.partition(": ")[0] for skip in skipped] == ["rest of the shard skipped"] * 3
    assert all(name in skip.reason for name, skip in zip(("s1.jsonl.gz", "s2.parquet", "s3.jsonl.zst"), skipped, strict=True))
    [cursor] = reading.cursors
    assert (cursor.read, cursor.documents, cursor.skipped, cursor.stripes) == (9, 6, 3, 3)


def test_a_damaged_shard_of_a_bundle_ends_a_run_that_skips_none(tmp_path: Path) -> None:
    damaged(tmp_path)
    with pytest.raises(ContentError, match=r"s1\.jsonl\.gz: the gzip member .* cannot be decompressed"):
        row_of(lane(plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1), 0))


def in_the_middle(folder: Path) -> tuple[StreamPlan, Lane, list[int]]:
    """A lane that has read part of a bundle and has a large shard before it or behind it; the documents it has seen."""
    for i in range(6):
        write_shard(folder / f"s{i}", documents(4, seed=i, longest=20), "gz")
    write_shard(folder / "s9", documents(60, seed=9), "plain")
    plan = plan_for(folder, lanes=1, global_batch_size=1, max_epochs=1, on_bad_shard="skip", sequence_length=32)
    [source] = plan.sources
    reading, seen = lane(plan, 0), []
    while source.stripes(0, 0)[reading.cursors[0].stripe].unit != 0 or reading.cursors[0].next_document < 5:
        row = row_of(reading)
        assert row is not None
        seen += texts_of(row[1].rows.input_ids[row[2]].tolist())
    return plan, reading, seen


def with_files_as_they_are(plan: StreamPlan) -> StreamPlan:
    """A plan that takes what is there now for what was pinned, as where a store says nothing of its files."""
    shards = tuple(replace(shard, size=Path(shard.url).stat().st_size, identity=None) for shard in plan.shards)
    return replace(plan, sources=(replace(plan.sources[0], shards=shards),))


def test_damage_that_a_bundle_has_only_where_a_run_goes_on_costs_the_rest_of_it_and_is_named(tmp_path: Path) -> None:
    plan, reading, seen = in_the_middle(tmp_path)
    content = (tmp_path / "s3.jsonl.gz").read_bytes()
    (tmp_path / "s3.jsonl.gz").write_bytes(content[:-8] + bytes(8))
    before = len(seen)
    reading = lane(with_files_as_they_are(plan), 0, tuple(reading.cursors))
    skipped = []
    while (row := row_of(reading)) is not None:
        seen += texts_of(row[1].rows.input_ids[row[2]].tolist())
        skipped += row[3]
    skipped += reading.report_skipped()
    assert max(Counter(seen).values()) == 1, "none is seen twice"
    assert {number for number in seen if number >= 9000} == set(range(9000, 9060))
    assert all(number >= 9000 for number in seen[before:])
    [named] = skipped
    assert named.reason.startswith(
        "rest of the stripe skipped: s0.jsonl.gz to s5.jsonl.gz: hold 20 documents, but held 24 when some of them were read: "
    )
    assert "s3.jsonl.gz: the gzip member" in named.reason


def test_a_bundle_that_holds_more_where_a_run_goes_on_is_not_read_on_as_if_it_were_the_same(tmp_path: Path) -> None:
    plan, reading, _ = in_the_middle(tmp_path)
    (tmp_path / "s3.jsonl.gz").write_bytes(gzip.compress(json_lines(documents(5, seed=3, longest=20))))
    changed = with_files_as_they_are(plan)
    changed = replace(changed, sources=(replace(changed.sources[0], skip_bad_shards=False),))
    with pytest.raises(ContentError, match=r"s0\.jsonl\.gz to s5\.jsonl\.gz: hold 25 documents, but held 24 when some"):
        row_of(lane(changed, 0, tuple(reading.cursors)))


def test_the_bundles_of_a_run_are_pinned(tmp_path: Path) -> None:
    for i in range(20):
        write_shard(tmp_path / f"s{i:02d}", documents(3, seed=i), "plain")
    config = Config(DataConfig(dataset=str(tmp_path), sequence_length=64), train=TrainConfig(max_steps=3))
    pinned = pin(config, 1)
    assert pinned.sources[0].bundles == ((0, 10), (10, 20))
    stored = json.loads(pinned.encoded)
    assert stored["version"] == 3
    assert relocate(config, PinnedCorpus.from_json(stored), 1).sources == pinned.sources
    stored["sources"][0]["bundles"] = [[0, 2], [5, 20]]
    assert relocate(config, PinnedCorpus.from_json(stored), 1).sources[0].bundles == ((0, 2), (5, 20))


def test_a_corpus_json_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(3), "plain")
    stored = json.loads(pin(Config(DataConfig(dataset=str(tmp_path)), train=TrainConfig(max_steps=3)), 1).encoded)
    del stored["sources"][0]["bundles"]
    with pytest.raises(CheckpointError) as refused:
        PinnedCorpus.from_json(stored | {"version": 1})
    assert str(refused.value) == (
        "corpus.json: of version 1, this program reads version 3: resume with the program that wrote it, or start a new run "
        "from its weights with --init-from"
    )


@pytest.mark.parametrize(
    "bundles", [[[0, 1]], [[1, 0]], [[0]], [[0, 2, 3]], [[0, 3], [2, 4]], [[3, 5]], [[-1, 2]], [[2, 4], [0, 2]]]
)
def test_bundles_that_no_run_has_are_refused(tmp_path: Path, bundles: list[list[int]]) -> None:
    for i in range(4):
        write_shard(tmp_path / f"s{i}", documents(3), "plain")
    stored = json.loads(pin(Config(DataConfig(dataset=str(tmp_path)), train=TrainConfig(max_steps=3)), 1).encoded)
    stored["sources"][0]["bundles"] = bundles
    with pytest.raises(CheckpointError, match="are not consecutive shards: use another checkpoint"):
        PinnedCorpus.from_json(stored)


def test_a_bundle_has_one_window(tmp_path: Path) -> None:
    for i in range(4):
        write_shard(tmp_path / f"s{i}", documents(3), "plain")
    [source] = plan_for(tmp_path, lanes=1, global_batch_size=1).sources
    assert fault_of(source, 0, Cursor(window=1, uncompressed=12)) is None
    assert fault_of(source, 0, Cursor(window=2)) == "window is 2, byte 0, of a bundle, which is one window"
    assert fault_of(source, 0, Cursor(compressed=7)) == "window is 0, byte 7, of a bundle, which is one window"


# On web servers


def on_server(folder: Path, server: Server) -> Path:
    """A list of the shards of a folder."""
    names = sorted(path.name for path in folder.iterdir())
    (folder / "list.txt").write_text("".join(f"{server.url(name)}\n" for name in names))
    return folder / "list.txt"


def test_a_bundle_of_a_store_has_the_rows_of_a_local_one_and_each_shard_is_asked_for_once(tmp_path: Path) -> None:
    for i in range(40):
        write_shard(tmp_path / f"s{i:02d}", documents(2, seed=i, longest=20), ["plain", "gz", "zst"][i % 3])
    with serve(tmp_path) as server:
        local = plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1)
        remote = plan_for(Path(f"@{on_server(tmp_path, server)}"), lanes=1, global_batch_size=1, max_epochs=1)
        server.forget()
        assert len(remote.sources[0].units) == 1
        assert rows_of(lane(remote, 0), 1000) == rows_of(lane(local, 0), 1000)
        assert Counter(request["path"] for request in server.log()) == {f"/{shard.name}": 1 for shard in local.shards}


def test_a_shard_of_a_bundle_that_was_replaced_since_the_start_is_refused_by_name(tmp_path: Path) -> None:
    for i in range(20):
        write_shard(tmp_path / f"s{i:02d}", documents(2, seed=i, longest=20), "plain")
    with serve(tmp_path) as server:
        plan = plan_for(
            Path(f"@{on_server(tmp_path, server)}"), lanes=1, global_batch_size=1, max_epochs=1, on_bad_shard="skip"
        )
        content = (tmp_path / "s07.jsonl").read_bytes()
        (tmp_path / "s07.jsonl").write_bytes(content.replace(b"doc", b"cod"))
        with pytest.raises(SourceError, match=r"/s07\.jsonl: was replaced since the run began"):
            row_of(lane(plan, 0))


def test_faults_of_a_server_skip_no_shard_of_a_bundle_and_damage_skips_one(tmp_path: Path) -> None:
    for i in range(20):
        write_shard(tmp_path / f"s{i:02d}", documents(2, seed=i, longest=20), "gz")
    content = (tmp_path / "s07.jsonl.gz").read_bytes()
    (tmp_path / "s07.jsonl.gz").write_bytes(content[:-6] + bytes(6))
    with serve(tmp_path) as server:
        plan = plan_for(
            Path(f"@{on_server(tmp_path, server)}"), lanes=1, global_batch_size=1, max_epochs=1, on_bad_shard="skip"
        )
        server.inject("s03.jsonl.gz", {"do": "reset", "after": 20})
        server.inject("s04.jsonl.gz", {"do": "status", "code": 503, "headers": {"Retry-After": "0"}})
        server.inject("s05.jsonl.gz", {"do": "flip", "at": 40})
        reading, seen, skipped = lane(plan, 0), [], []
        while (row := row_of(reading)) is not None:
            seen += texts_of(row[1].rows.input_ids[row[2]].tolist())
            skipped += row[3]
    assert sorted(seen) == [1000 * i + k for i in range(20) if i != 7 for k in range(2)]
    assert [skip.shard for skip in skipped] == [7]
    assert min(reading.take_seconds()) >= 0


def test_a_shard_of_a_bundle_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    for i in range(20):
        write_shard(tmp_path / f"s{i:02d}", documents(2, seed=i, longest=20), "plain")
    with serve(tmp_path) as server:
        plan = plan_for(
            Path(f"@{on_server(tmp_path, server)}"), lanes=1, global_batch_size=1, max_epochs=1, on_bad_shard="skip"
        )
        (tmp_path / "s07.jsonl").unlink()
        with pytest.raises(TransportError, match=r"/s07\.jsonl: not found"):
            row_of(lane(plan, 0))
