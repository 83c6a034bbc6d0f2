"""What a lane holds while it waits for its turn: the text that is not read yet, and little more."""

from __future__ import annotations

import gc
import itertools
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from stream_pretrain.data.lanes import shuffled_text
from stream_pretrain.data.lanes.shuffled_text import ShuffledText
from stream_pretrain.data.rows.engine import decoded
from stream_pretrain.data.transport.readings import HELD_BACK_BYTES
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.units import MIB
from tests.data.plans import lane, plan_for


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=30)


@given(texts=TEXTS, part=st.integers(0, 60), short=st.integers(0, 30), data=st.data())
def test_texts_come_back_as_they_were_in_any_portions(texts: list[str], part: int, short: int, data: st.DataObject) -> None:
    edges = [0, *itertools.accumulate(map(len, texts))]
    cuts = data.draw(st.lists(st.integers(0, len(texts)), min_size=1).map(sorted))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffled_text, "PART_CHARACTERS", part)
        patch.setattr(shuffled_text, "SHORT_TEXT", short)
        text = ShuffledText(texts)
        for first, stop in itertools.pairwise([0, *cuts, len(texts)]):
            assert decoded(text.take(edges[first : stop + 1])) == texts[first:stop]


def held() -> int:
    """Bytes that were allocated since tracing began."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def test_texts_that_were_read_are_dropped(traced: None) -> None:
    texts = ShuffledText("a word or two " * 100 + str(number) for number in range(1000))
    whole = held()
    texts.take(range(0, 900 * 1400, 1400))
    assert held() < 0.15 * whole


@pytest.mark.parametrize("words", ["a word or two – and more " * 80, "a word or two", "слово и ещё одно, 語 " * 20])
def test_a_lane_that_waits_holds_little_more_than_the_bytes_of_its_window(words: str, tmp_path: Path, traced: None) -> None:
    document = json.dumps({"text": words}, ensure_ascii=False).encode() + b"\n"
    content = zstandard.ZstdCompressor().compress(document * (3 * MIB // len(document)))
    (tmp_path / "s.jsonl.zst").write_bytes(content)
    waiting = lane(plan_for(tmp_path, lanes=1, window_bytes=MIB), 0)
    gc.collect()
    before = held()
    assert waiting.take(1)
    decompressed_at_once = MIB
    assert held() - before < decompressed_at_once + 1.5 * MIB


@pytest.mark.parametrize(("is_local", "held_back"), [(True, 0), (False, HELD_BACK_BYTES)])
def test_what_was_decompressed_is_not_held_once_it_was_read(
    is_local: bool, held_back: int, tmp_path: Path, traced: None
) -> None:
    path = tmp_path / "s.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(b"a line\n" * MIB))
    content = ShardBytes(str(path), "zstd", path.stat().st_size)
    content._data.is_local = is_local
    before = held()
    for _ in range(3):
        content.read()
        assert held() < before + held_back + MIB // 2
    content.close()
