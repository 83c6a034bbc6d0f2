"""Rows do not depend on when a run was killed, or on how many workers read it; documents are seen exactly once."""

from __future__ import annotations

import gc
import gzip
import json
import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.lane import Lane
from stream_pretrain.data.lanes.readers import Readers
from stream_pretrain.data.lanes.row_layout import part_of
from stream_pretrain.data.lanes.source_lane import CAUSES
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_state import cursors_from, first_cursors, stream_state
from stream_pretrain.data.rows.clm import Clm
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.mlm import Mlm
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.errors import SourceError, TrainingError
from tests.corpora import documents, json_lines, write_shard
from tests.data.plans import TOKENIZER, lane, ledger, plan_for, read_through, row_of, rows_of, texts_of, unmasked

STYLES = ["plain", "zst", "zst-multi", "gz", "parquet"]


@pytest.mark.parametrize("style", ["plain", "gz", "parquet"])
def test_lanes_that_are_dropped_leave_no_file_open(tmp_path: Path, style: str) -> None:
    write_shard(tmp_path / "s", documents(200), style)
    plan = plan_for(tmp_path, lanes=2)
    gc.collect()
    before = psutil.Process().num_fds()
    dropped = [lane(plan, number) for number in range(2)]
    assert all(rows_of(one, 3) for one in dropped)
    assert psutil.Process().num_fds() > before
    del dropped
    gc.collect()
    assert psutil.Process().num_fds() == before


def test_lanes_that_come_to_a_shard_one_after_the_other_decompress_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in zip("abc", range(3), strict=True):
        write_shard(tmp_path / name, documents(400, seed=seed), "zst")
    plan = plan_for(tmp_path, max_epochs=2)
    source = plan.sources[0]
    assert {stripe.count for lane in range(4) for stripe in source.stripes(0, lane)} == {2, 4}
    assert len({source.stripes(0, lane)[0].unit for lane in range(4)}) > 1, "some lanes come to a shard later than others"
    decompressed: list[int] = []
    read = ShardBytes.read

    def counted(self: ShardBytes) -> bytes:
        chunk = read(self)
        decompressed.append(len(chunk))
        return chunk

    monkeypatch.setattr(ShardBytes, "read", counted)
    readers = [Readers(source)]
    lanes = [Lane(plan, number, plan.encoder.build(), readers, (Cursor(),)) for number in range(4)]
    while lanes:
        lanes = [lane for lane in lanes if row_of(lane) is not None]
    assert sum(decompressed) == 2 * sum(shard.content_bytes or 0 for shard in source.shards)
    assert not readers[0].open


def test_a_document_that_begins_with_nothing_to_tokenize_is_counted_all_the_same(tmp_path: Path) -> None:
    texts = [f"{' ' * 70_000 * (i % 2)}{text}" for i, text in enumerate(documents(20))]
    write_shard(tmp_path / "s", texts, "plain")
    plan = plan_for(tmp_path, lanes=1, window_bytes=1 << 20, max_epochs=1, sequence_length=32)
    alone = lane(plan, 0)
    while row_of(alone) is not None:
        pass
    assert alone.cursors[0].documents == 20


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("packing", ["best_fit", "concat", "none"])
def test_a_lane_goes_on_from_every_position_as_if_it_had_never_stopped(tmp_path: Path, style: str, packing: str) -> None:
    for i in range(2):
        write_shard(tmp_path / f"s{i}", documents(80, seed=i), style)
    plan = plan_for(tmp_path, packing=packing, lanes=2)
    reading = lane(plan, 1)
    rows, states = [], []
    for _ in range(160):
        states.append(json.loads(json.dumps(reading.cursors[0])))
        rows += rows_of(reading, 1)
    assert len(rows) == 160
    assert max(state[0] for state in states) >= 1, "the positions reach into a second epoch"
    for k in range(0, 140, 1 if packing == "best_fit" else 7):
        resumed = lane(plan, 1, (Cursor(*states[k]),))
        assert list(resumed.cursors[0]) == states[k]
        assert rows_of(resumed, 20) == rows[k : k + 20], f"after row {k}"
        assert list(resumed.cursors[0]) == states[k + 20], f"after row {k}"
        assert len(json.dumps(states[k])) <= 256


def test_the_rows_of_every_step_are_the_same_for_any_number_of_workers_also_when_it_changes(tmp_path: Path) -> None:
    for i, style in enumerate(["plain", "zst", "zst-multi", "gz", "parquet"]):
        write_shard(tmp_path / f"s{i}", documents(200, seed=i), style)
    plan = plan_for(tmp_path, lanes=8, global_batch_size=8)
    expected, _ = ledger(plan, 30, workers=0)
    assert len({str(step) for step in expected}) == 30
    for workers in (1, 2, 3):
        assert ledger(plan, 30, workers)[0] == expected
    seen, cursors = [], first_cursors(8)
    for steps, workers in ((7, 2), (1, 3), (12, 0), (10, 1)):
        state = json.loads(json.dumps(stream_state(len(seen), cursors)))
        part, cursors = ledger(plan, steps, workers, cursors_from(state, len(seen), 8, "the state"), len(seen))
        seen += part
    assert seen == expected


@pytest.mark.parametrize(
    ("shards", "lanes"), [([400, 3, 90, 250], 4), ([700], 8), ([30, 30, 30], 2), ([500, 0, 1], 4)], ids=str
)
@pytest.mark.parametrize("style", ["plain", "zst"])
def test_one_epoch_sees_every_document_exactly_once(tmp_path: Path, shards: list[int], lanes: int, style: str) -> None:
    for i, count in enumerate(shards):
        write_shard(tmp_path / f"s{i}", documents(count, seed=i), style)
    plan = plan_for(tmp_path, lanes=lanes, global_batch_size=8, max_epochs=1, window_bytes=8_000)
    seen: Counter[int] = Counter()
    with StepStream(plan, first_cursors(lanes), workers=0) as stream:
        for step in stream:
            if not len(step.row_lane):
                break
            for row in unmasked(step.trained):
                seen.update(texts_of(row))
        assert not len(next(stream).row_lane), "a lane that has ended stays ended"
    assert seen == Counter(i * 1000 + n for i, count in enumerate(shards) for n in range(count))
    assert int(step.cursors[:, :, Cursor._fields.index("documents")].sum()) == sum(shards)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_one_epoch_of_what_datasets_reads_is_the_same_for_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    for i in range(4):
        (tmp_path / f"s{i}.csv").write_text("".join(f"{line}\n" for line in ["text", *documents(100, seed=i)]))
    plan = plan_for(tmp_path, lanes=4, global_batch_size=8, max_epochs=1)
    seen: Counter[int] = Counter()
    with StepStream(plan, first_cursors(4), workers=workers) as stream:
        while len((step := next(stream)).row_lane):
            for row in unmasked(step.trained):
                seen.update(texts_of(row))
    assert seen == Counter(i * 1000 + n for i in range(4) for n in range(100))


def test_every_token_of_a_document_is_in_exactly_one_row(tmp_path: Path) -> None:
    texts = documents(150, longest=400)
    write_shard(tmp_path / "s", texts, "plain")
    plan = plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1)
    tokens: Counter[int] = Counter()
    reading = lane(plan, 0)
    while (row := row_of(reading)) is not None:
        tokens.update(row[1].rows.input_ids[row[2]].tolist())
    expected: Counter[int] = Counter(i for ids in TOKENIZER(texts, add_special_tokens=False)["input_ids"] for i in ids)
    special = {i: tokens.pop(i) for i in (0, 2, 3)}
    assert tokens == expected
    assert special[2] == special[3] >= len(texts), "every segment is framed"


def test_another_seed_gives_another_order_and_other_masks(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(300), "plain")
    first, _ = ledger(plan_for(tmp_path, seed=1), 3, workers=0)
    other, _ = ledger(plan_for(tmp_path, seed=2), 3, workers=0)
    again, _ = ledger(plan_for(tmp_path, seed=1), 3, workers=0)
    assert first == again
    assert first != other


def test_a_second_epoch_has_the_same_documents_in_another_order(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(200), "plain")
    plan = plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=2)
    reading, epochs = lane(plan, 0), ([], [])
    while (row := row_of(reading)) is not None:
        epochs[int(row[1].origins[0, 0])].extend(texts_of(row[1].rows.input_ids[row[2]].tolist()))
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(200))
    assert epochs[0] != epochs[1]


def test_held_out_documents_never_train(tmp_path: Path) -> None:
    from stream_pretrain.data.documents.filters import is_heldout

    texts = documents(400)
    write_shard(tmp_path / "s", texts, "plain")
    heldout = {i for i, text in enumerate(texts) if is_heldout(text, 0.1)}
    assert 20 < len(heldout) < 60
    plan = plan_for(tmp_path, max_epochs=1, heldout_fraction=0.1)
    seen = [number for n in range(4) for row in rows_of(lane(plan, n), 10_000) for number in texts_of(row)]
    assert sorted(seen) == [i for i in range(400) if i not in heldout]


def test_bad_lines_are_counted_once_and_ride_with_their_rows(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}).encode() for text in documents(100)]
    lines[10] = b"{broken"
    lines[50] = b'{"text": null}'
    (tmp_path / "s.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    plan = plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1, window_bytes=3_000)
    reading, skipped = lane(plan, 0), []
    while (row := row_of(reading)) is not None:
        skipped += row[3]
        reading = lane(plan, 0, tuple(reading.cursors))  # a resume after every row repeats none
    first = len(b"\n".join(lines[:10])) + 1
    second = len(b"\n".join(lines[:50])) + 1
    assert {(skip.offset, skip.reason) for skip in skipped} == {(first, "not JSON"), (second, "text is null")}
    cursor = reading.cursors[0]
    assert (len(skipped), cursor.skipped, cursor.empty, cursor.documents, cursor.read) == (2, 1, 1, 98, 100)


@pytest.mark.parametrize("style", ["plain", "zst-multi", "parquet"])
def test_what_is_not_trained_on_is_counted_and_named_once_wherever_a_run_goes_on(tmp_path: Path, style: str) -> None:
    for number in range(2):
        texts: list[str | None] = list(documents(200, seed=number, longest=6))
        texts[30:60] = [None] * 30  # more than a window has
        texts[80:120:4] = [" "] * 10
        texts[120:160:4] = ["\u200b"] * 10
        write_shard(tmp_path / f"s{number}", texts, style)  # type: ignore[arg-type]
    plan = plan_for(tmp_path, lanes=2, global_batch_size=2, max_epochs=2, window_bytes=900, heldout_fraction=0.1)
    ends, named = [], [Counter[tuple[int, int, int, str]](), Counter[tuple[int, int, int, str]]()]
    for goes_on in (False, True):
        reading = [lane(plan, number) for number in range(2)]
        for number in range(2):
            while True:
                row = row_of(reading[number])
                skipped = reading[number].report_skipped() if row is None else row[3]
                for skip in skipped:
                    named[goes_on][skip.epoch, skip.shard, skip.offset, skip.reason] += skip.documents or 0
                if row is None:
                    break
                if goes_on:
                    reading[number] = lane(plan, number, tuple(reading[number].cursors))
        ends.append([one.cursors for one in reading])
    assert ends[0] == ends[1]
    assert named[0] == named[1]
    counts = Counter[str]()
    for (cursor,) in ends[0]:
        counts.update({name: getattr(cursor, name) for name in ("read", "empty", "skipped", "filtered", "documents")})
    assert (counts["read"], counts["empty"], counts["skipped"], counts["filtered"]) == (800, 200, 0, 0)
    assert 0 < 600 - counts["documents"] < 100, "those held out"
    assert sum(named[0].values()) == 200


def skipped_in(folder: Path, **options: object) -> list[tuple[int, str]]:
    """Offset and reason of all that two lanes skip in an epoch, in the order of the offsets."""
    skipped, _ = read_through(folder, **options)
    return sorted((skip.offset, skip.reason[:27]) for skip in skipped)


def test_the_rest_of_a_stripe_that_nobody_can_count_is_counted_apart(tmp_path: Path) -> None:
    lines = b"".join(line + b"\n" for line in [b"text", *(text.encode() for text in documents(2_500, longest=3))])
    (tmp_path / "s.csv.gz").write_bytes(gzip.compress(lines)[:-3_000])
    named, cursors = read_through(tmp_path, lanes=1, global_batch_size=1)
    assert [skip.documents for skip in named] == [None]
    assert [(cursor.read, cursor.documents, cursor.skipped, cursor.stripes) for cursor in cursors] == [(0, 0, 0, 1)]


def test_the_rest_of_a_stripe_of_lines_is_skipped_from_the_first_byte_of_its_window(tmp_path: Path) -> None:
    lines = json_lines(documents(300))
    frames = [zstandard.ZstdCompressor(write_checksum=True).compress(lines[i : i + 5_003]) for i in range(0, len(lines), 5_003)]
    frames[5] = frames[5][:-1] + bytes([frames[5][-1] ^ 1])  # the content from byte 25,015 on
    (tmp_path / "s.jsonl.zst").write_bytes(b"".join(frames))
    assert skipped_in(tmp_path) == [(24_000, "rest of the stripe skipped:"), (36_000, "rest of the stripe skipped:")]


def test_the_rest_of_a_stripe_of_a_table_is_skipped_from_the_first_row_of_its_window(tmp_path: Path) -> None:
    table = pa.table({"text": [f"{text:<100.100}" for text in documents(300)]})
    pq.write_table(table, tmp_path / "s.parquet", row_group_size=100, compression="none", use_dictionary=False)
    content = bytearray((tmp_path / "s.parquet").read_bytes())
    column = pq.read_metadata(tmp_path / "s.parquet").row_group(1).column(0)
    start = column.data_page_offset
    content[start : start + 64] = b"\xff" * 64
    (tmp_path / "s.parquet").write_bytes(content)
    # Three windows a row group: of the second one, a lane meets the first, the other the second.
    skipped = skipped_in(tmp_path, window_bytes=4_000)
    assert skipped == [(100, "rest of the stripe skipped:"), (133, "rest of the stripe skipped:")]
    # Rows 100-132, 166-199 and 233-265 are of one stripe, 133-165, 200-232 and 266-299 of the other: metadata says so.
    named, cursors = read_through(tmp_path, window_bytes=4_000)
    assert [skip.documents for skip in named] == [100, 100]
    counts = [(cursor.read, cursor.documents, cursor.skipped, cursor.stripes) for cursor in cursors]
    assert sorted(counts) == [(133, 33, 100, 1), (167, 67, 100, 1)]


def test_a_table_that_cannot_be_entered_is_skipped_from_its_first_row(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", documents(100), "plain")
    write_shard(tmp_path / "s", documents(300), "parquet")
    (tmp_path / "s.parquet").write_bytes((tmp_path / "s.parquet").read_bytes()[:-9])
    assert skipped_in(tmp_path) == [(0, "rest of the stripe skipped:")] * 2


def test_the_rest_of_a_stripe_of_examples_is_skipped_from_the_first_example_of_its_window(tmp_path: Path) -> None:
    lines = "".join(f"{line}\n" for line in ["text", *documents(15_000, longest=3)])
    (tmp_path / "s.csv.gz").write_bytes(gzip.compress(lines.encode())[:-3_000])
    assert skipped_in(tmp_path) == [(12_000, "rest of the stripe skipped:"), (13_000, "rest of the stripe skipped:")]


def test_a_document_that_has_no_tokens_is_counted(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(b'{"text": "doc 000001 bara"}\n{"text": "\\u200b"}\n{"text": "doc 000002 bara"}\n')
    plan = plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1)
    reading, skipped = lane(plan, 0), []
    while (row := row_of(reading)) is not None:
        skipped += row[3]
    assert [(skip.offset, skip.reason) for skip in skipped] == [(28, "no tokens")]


def test_a_document_that_has_no_tokens_is_named_once_wherever_a_run_goes_on(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", ["\u200b" if i % 4 == 3 else text for i, text in enumerate(documents(80))], "plain")
    plan = plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1)
    reading, named = lane(plan, 0), Counter[int]()
    while (row := row_of(reading)) is not None:
        named.update({skip.offset: skip.documents for skip in row[3]})
        reading = lane(plan, 0, tuple(reading.cursors))  # in the middle of a group, too
    assert reading.cursors[0].empty == sum(named.values()) == 20
    assert len(named) < 20, "those of a group are named together"


@pytest.mark.parametrize("packing", ["best_fit", "concat", "none"])
def test_a_document_that_goes_on_in_a_new_group_with_a_new_piece_is_counted_once(tmp_path: Path, packing: str) -> None:
    first, second = ("doc 000001 " + " ".join(["bara"] * 55), " ".join(["cost"] * 100))  # 62 tokens fill the first group, a row
    write_shard(tmp_path / "s", [first + " " * 70_000 + second], "plain")
    reading = lane(plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1, packing=packing), 0)
    assert len(rows_of(reading, 1)) == 1
    assert reading.cursors[0][5:8] == (0, 1, 0), "document, piece and token"
    assert len(rows_of(reading, 9)) == 2
    assert reading.cursors[0].documents == 1


def test_a_lane_without_documents_says_so_instead_of_waiting_for_ever(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(b"\n\n")
    with pytest.raises(SourceError, match=r"lane 0 of 8 found no document in 64 epochs"):
        row_of(lane(plan_for(tmp_path, lanes=8), 0))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"id,text", "lane 0 of 1 found no document in 2 epochs, but 6 skipped (not JSON): check "),
        (b'{"text": ""}', "lane 0 of 1 found no document in 64 epochs, but 192 without text (text is blank): check "),
    ],
)
def test_a_lane_without_documents_says_what_it_met_instead(tmp_path: Path, line: bytes, said: str) -> None:
    (tmp_path / "s.jsonl").write_bytes(line + b"\n" + line + b"\n" + line + b"\n")
    with pytest.raises(SourceError) as error:
        row_of(lane(plan_for(tmp_path, lanes=1, global_batch_size=1, window_bytes=1), 0))
    assert str(error.value).startswith(said)


def test_a_corpus_smaller_than_the_lanes_is_read_by_all_of_them_in_turn(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", ["doc 000001"], "plain")
    plan = plan_for(tmp_path, lanes=8)
    assert [len(rows_of(lane(plan, number), 3)) for number in range(8)] == [3] * 8


def test_the_fields_of_a_stored_cursor_keep_their_names() -> None:
    assert stream_state(0, first_cursors(1))["fields"][:9] == [
        *("epoch", "stripe", "compressed", "uncompressed", "window", "next_document", "piece", "token", "taken")
    ]


def test_neighbouring_lanes_are_dealt_to_a_rank() -> None:
    assert [list(part_of(range(8), rank, 3)) for rank in range(3)] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert [list(part_of(range(2), rank, 3)) for rank in range(3)] == [[], [0], [1]]


def test_rows_hold_at_least_99_percent_real_tokens(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(3000, longest=200), "plain")
    plan = plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1, window_bytes=1_000_000, sequence_length=512)
    reading, filled, rows = lane(plan, 0), 0, 0
    while (row := row_of(reading)) is not None:
        filled += int(np.count_nonzero(row[1].rows.input_ids[row[2]]))
        rows += 1
    assert filled / (rows * 512) >= 0.99


@pytest.mark.parametrize("tail", ["", " " * 70_000], ids=["ends in a word", "ends in a piece without a token"])
def test_a_causal_document_has_its_end_token_once(tmp_path: Path, tail: str) -> None:
    write_shard(tmp_path / "s", ["doc 000001 bara" + tail, "doc 000002"], "plain")
    plan = plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1)
    encoder = Clm.framed(Encoder.of(TOKENIZER))
    source = plan.sources[0]
    reading = Lane(replace(plan, encoder=encoder), 0, encoder.build(), [Readers(source)], (Cursor(),))
    tokens: list[int] = []
    while (row := row_of(reading)) is not None:
        tokens += row[1].rows.input_ids[row[2]].tolist()
    assert len(encoder.document_end) == 1
    assert tokens.count(encoder.document_end[0]) == 2


@pytest.mark.parametrize("objective", [Clm, Mlm])
def test_a_document_without_tokens_is_none_however_long_it_is_and_wherever_a_run_goes_on(
    tmp_path: Path, objective: type[Clm | Mlm]
) -> None:
    nothing = "\u200b"
    texts = [*documents(6), nothing, nothing * 70_000, nothing * 150_000, f"{nothing * 70_000}doc 000006{nothing * 140_000}"]
    write_shard(tmp_path / "s", texts, "plain")
    plan = plan_for(tmp_path, lanes=1, global_batch_size=1, max_epochs=1, sequence_length=24, window_bytes=1 << 22)
    plan = replace(plan, encoder=objective.framed(Encoder.of(TOKENIZER)))
    reading, resumed, rows = lane(plan, 0), lane(plan, 0), []
    while row := rows_of(reading, 1):
        rows += row
        assert rows_of(resumed, 1) == row
        resumed = lane(plan, 0, tuple(resumed.cursors))
    for one in (reading, resumed):
        one.report_skipped()
        assert (one.cursors[0].read, one.cursors[0].documents, one.cursors[0].empty) == (10, 7, 3)
    assert objective is Mlm or sum(row.count(3) for row in rows) == 7


def test_a_step_says_what_its_readers_spent_their_time_on(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(300), "zst")
    plan = plan_for(tmp_path)
    with StepStream(plan, first_cursors(4), workers=2) as stream:
        network, reading, tokenizing = sum(next(stream).seconds for _ in range(20))
    assert network > 0, "a local file takes time too"
    assert reading > 0
    assert tokenizing > 0
    assert len(CAUSES) == 3


def test_the_death_of_a_worker_is_told_with_the_step_that_is_missing_and_not_where_it_is_prepared(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(300), "zst")
    with StepStream(plan_for(tmp_path), first_cursors(4), workers=2) as stream:
        next(stream)
        [first, second] = multiprocessing.active_children()
        first.kill()
        first.join()
        for _ in range(20):  # more than it was ahead
            stream.prepare()
            if stream._merged is None:
                break
            next(stream)
        stream.prepare()
        with pytest.raises(TrainingError, match=rf"a data worker died \(process {first.pid}: SIGKILL\)"):
            list(stream)
        assert second.is_alive()


@pytest.mark.parametrize(("failing", "sent"), [(0, {0}), (0, {0, 1}), (1, {0, 1})])
def test_any_error_that_is_met_while_a_step_is_prepared_is_raised_with_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, sent: set[int]
) -> None:
    write_shard(tmp_path / "s", documents(300), "zst")
    with StepStream(plan_for(tmp_path), first_cursors(4), workers=2) as stream:
        next(stream)
        receive = stream._workers.receive

        def received(worker: int) -> object:
            assert worker in sent, "a worker is waited for, although another one has failed"
            if worker == failing:
                raise RuntimeError(f"a bug met by worker {worker}")
            return receive(worker)

        monkeypatch.setattr(stream._workers, "receive", received)
        monkeypatch.setattr(stream._workers, "has_sent", lambda worker: worker in sent)
        stream.prepare()
        with pytest.raises(RuntimeError, match=f"a bug met by worker {failing}"):
            next(stream)


def test_workers_that_stall_are_gone_when_another_one_has_died(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(300), "zst")
    plan = plan_for(tmp_path)
    with StepStream(plan, first_cursors(4), workers=2) as stream:
        next(stream)
        first, second = map(psutil.Process, sorted(worker.pid for worker in multiprocessing.active_children()))
        second.suspend()
        first.kill()
        with pytest.raises(TrainingError, match="a data worker died") as died:
            list(stream)
    assert not multiprocessing.active_children()
    assert died.traceback, "it keeps what torch would end the workers with"


def test_a_window_that_is_damaged_where_a_run_goes_on_costs_no_document_of_the_next_shard(tmp_path: Path) -> None:
    for i in range(2):
        write_shard(tmp_path / f"s{i}", documents(80, seed=i), "zst")
    plan = plan_for(tmp_path, lanes=1, max_epochs=1, on_bad_shard="skip", window_bytes=1 << 20)
    [source] = plan.sources
    shards = tuple(replace(shard, identity=None) for shard in source.shards)  # as those of a store that tells nothing of them
    plan = replace(plan, sources=(replace(source, shards=shards),))
    reading = lane(plan, 0)
    rows_of(reading, 20)
    stands = reading.cursors[0]
    assert stands.next_document > 0
    assert stands.taken > 0
    first, other = plan.sources[0].stripes(0, 0)
    path = tmp_path / f"s{first.unit}.jsonl.zst"
    path.write_bytes(path.read_bytes()[:-50] + bytes(50))
    reading, seen = lane(plan, 0, (stands,)), Counter[int]()
    while (row := row_of(reading)) is not None:
        seen.update(texts_of(row[1].rows.input_ids[row[2]].tolist()))
    assert sorted(seen) == list(range(other.unit * 1000, other.unit * 1000 + 80))
