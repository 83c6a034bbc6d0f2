"""The windows of a shard are its lines, each in one window, whoever reads them and wherever reading begins."""

from __future__ import annotations

import bisect
import itertools
import random
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_pretrain.data.documents.line_windows import LineWindows, Window
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.transport.compression import Compression
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.errors import ContentError
from tests.data.compressed import COMPRESS
from tests.data.shards import EVERY_WINDOW

NO_LIMIT = 1 << 40


@dataclass
class Memory:
    """A shard in memory: frames begin at some of its bytes, and a read gives a few bytes of one frame."""

    content: bytes
    frames: list[int] = field(default_factory=lambda: [0])
    chunk: int = 7
    damaged_at: int | None = None
    opened: int = 0
    closed: int = 0
    most_kept: int = 2

    def windows(self, window_bytes: int, *, compressed: bool = True, max_line_bytes: int = NO_LIMIT) -> LineWindows:
        return LineWindows(
            self.open,  # type: ignore[arg-type]
            compressed=compressed,
            window_bytes=window_bytes,
            max_line_bytes=max_line_bytes,
            most_kept=self.most_kept,
        )

    def open(self, restart: RestartPoint) -> MemoryBytes:
        self.opened += 1
        return MemoryBytes(self, restart)

    def restart_of(self, offset: int) -> RestartPoint:
        """A frame's place in the file is twice its place in the content."""
        frame = self.frames[bisect.bisect_right(self.frames, offset) - 1]
        return RestartPoint(2 * frame, frame)


class MemoryBytes:
    """What ShardBytes does, for a shard in memory."""

    def __init__(self, shard: Memory, restart: RestartPoint) -> None:
        self.shard = shard
        self.position = restart.uncompressed
        self.restart = restart

    def stored_bytes_before(self, offset: int) -> int:
        return 2 * offset

    def read(self) -> bytes:
        ends = [frame for frame in self.shard.frames if frame > self.position]
        stop = min(self.position + self.shard.chunk, len(self.shard.content), *ends)
        if self.shard.damaged_at is not None and stop > self.shard.damaged_at:
            raise ContentError(f"damaged at {self.shard.damaged_at}")
        self.restart = self.shard.restart_of(self.position)
        start, self.position = self.position, stop
        return self.shard.content[start:stop]

    def skip_to(self, offset: int) -> None:
        assert offset >= self.position
        self.position = min(offset, len(self.shard.content))

    def prefetch(self, offset: int) -> None:
        assert offset > self.position

    def close(self) -> None:
        self.shard.closed += 1


def lines_of(content: bytes) -> list[tuple[int, bytes]]:
    """The lines with their offsets."""
    lines = content.split(b"\n")
    ended = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    return list(zip(itertools.accumulate(map(len, ended), initial=0), ended, strict=False))


def expected_windows(
    content: bytes, window_bytes: int, max_line_bytes: int, restart_of: Callable[[int], RestartPoint]
) -> list[Window]:
    """The windows by their definition; of the lines too long, only one that does not end within the block is left out."""
    expected = []
    for first in range(0, len(content), window_bytes):
        end = first + window_bytes
        inside = [(offset, line) for offset, line in lines_of(content) if first <= offset < end]
        overlong = None
        if inside and len(inside[-1][1].rstrip(b"\n")) > max_line_bytes:
            offset, line = inside[-1]
            if offset + len(line) >= end or not line.endswith(b"\n"):
                overlong = offset
                inside.pop()
        begin = inside[0][0] if inside else end if overlong is None else overlong
        expected.append(Window(begin, b"".join(line for _, line in inside), restart_of(max(first - 1, 0)), overlong))
    return expected


def read_all(windows: LineWindows, stripe: Stripe = EVERY_WINDOW) -> list[Window]:
    windows.follow(stripe, stripe.first)
    found: list[Window] = []
    while (window := windows.read(stripe, stripe.block(len(found)), RestartPoint())) is not None:
        found.append(window)
    return found


@st.composite
def contents(draw: st.DrawFn, window_bytes: int) -> bytes:
    """Lines: empty, short, ending about the edge of a block, longer than several windows."""
    lengths = st.one_of(
        st.just(0),
        st.integers(0, 12),
        st.integers(max(0, window_bytes - 3), window_bytes + 1),
        st.integers(0, 5 * window_bytes),
    )
    lines = [bytes([97 + i % 26]) * n for i, n in enumerate(draw(st.lists(lengths, max_size=12)))]
    return b"\n".join(lines) + draw(st.sampled_from([b"", b"\n"]))


@st.composite
def shards(draw: st.DrawFn) -> tuple[Memory, int, int]:
    """A shard cut into frames anywhere, the size of its windows, and the longest line that is allowed."""
    window_bytes = draw(st.integers(1, 24))
    content = draw(contents(window_bytes))
    cuts = draw(st.sets(st.integers(1, max(1, len(content) - 1)), max_size=6))
    memory = Memory(content, [0, *sorted(cuts)], chunk=draw(st.sampled_from([1, 3, 16, 1000])))
    return memory, window_bytes, draw(st.sampled_from([1, 5, 20, NO_LIMIT]))


@settings(max_examples=300)
@given(shards(), st.booleans())
def test_a_window_is_the_lines_that_start_in_its_block(shard: tuple[Memory, int, int], compressed: bool) -> None:
    memory, window_bytes, longest = shard
    restart_of = memory.restart_of if compressed else lambda offset: RestartPoint(offset, offset)
    expected = expected_windows(memory.content, window_bytes, longest, restart_of)
    assert read_all(memory.windows(window_bytes, compressed=compressed, max_line_bytes=longest)) == expected
    if longest == NO_LIMIT:
        assert b"".join(window.lines for window in expected) == memory.content


@settings(max_examples=300)
@given(shards(), st.booleans(), st.integers(1, 5), st.data())
def test_lanes_that_share_a_shard_get_the_same_windows_in_any_order_and_after_a_resume(
    shard: tuple[Memory, int, int], compressed: bool, count: int, data: st.DataObject
) -> None:
    memory, window_bytes, longest = shard
    restart_of = memory.restart_of if compressed else lambda offset: RestartPoint(offset, offset)
    expected = expected_windows(memory.content, window_bytes, longest, restart_of)
    stripes = [Stripe(0, first, count) for first in range(count)]
    standing = {stripe: (stripe.first, RestartPoint()) for stripe in stripes}
    reading = set(stripes)
    while reading:
        windows = memory.windows(window_bytes, compressed=compressed, max_line_bytes=longest)
        for stripe in sorted(reading, key=lambda stripe: stripe.first):
            windows.follow(stripe, standing[stripe][0])
        for _ in range(data.draw(st.integers(1, 12))):
            stripe = data.draw(st.sampled_from(sorted(reading, key=lambda stripe: stripe.first)))
            block, restart = standing[stripe]
            window = windows.read(stripe, block, restart)
            assert window == (expected[block] if block < len(expected) else None)
            kept = Counter(block % count for block in windows.kept)
            assert all(kept[first] <= windows.most_kept for first in range(count))
            assert len(windows.passes) <= len(windows.next_of)
            if window is None:
                reading.remove(stripe)
                assert windows.leave(stripe) == (not windows.next_of)
                if not reading:
                    break
            else:
                standing[stripe] = block + count, window.restart


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_lanes_in_step_share_one_decompression_whoever_reads_first(order: tuple[int, ...]) -> None:
    memory = Memory(b"".join(b"%04d\n" % i for i in range(100)))
    windows = memory.windows(20)
    stripes = [Stripe(0, first, 4) for first in range(4)]
    for stripe in stripes:
        windows.follow(stripe, stripe.first)
    found = {}
    for turn in range(7):
        for lane in order:
            block = lane + 4 * turn
            window = windows.read(stripes[lane], block, RestartPoint())
            found[block] = None if window is None else window.lines
    assert memory.opened == 1
    assert b"".join(found[block] or b"" for block in sorted(found)) == memory.content
    assert [block for block in sorted(found) if found[block] is None] == [25, 26, 27]


def test_lanes_that_stand_apart_after_a_resume_share_one_decompression() -> None:
    memory = Memory(b"".join(b"%04d\n" % i for i in range(100)))
    windows = memory.windows(20)
    ahead, behind = Stripe(0, 0, 2), Stripe(0, 1, 2)
    windows.follow(ahead, 8)
    windows.follow(behind, 5)
    first = windows.read(ahead, 8, RestartPoint())
    second = windows.read(behind, 5, RestartPoint())
    assert first is not None
    assert second is not None
    assert (first.lines, second.lines) == (b"0032\n0033\n0034\n0035\n", b"0020\n0021\n0022\n0023\n")
    assert memory.opened == 1


def test_a_lane_too_far_behind_gets_a_pass_of_its_own_and_the_right_windows() -> None:
    memory = Memory(b"".join(b"%04d\n" % i for i in range(100)))
    windows = memory.windows(20)
    fast, slow = Stripe(0, 0, 2), Stripe(0, 1, 2)
    windows.follow(fast, 0)
    windows.follow(slow, 1)
    for block in range(0, 14, 2):
        windows.read(fast, block, RestartPoint())
    assert sorted(windows.kept) == [1, 3], "only the next few are kept for the slow one"
    assert memory.opened == 1
    slow_lines = [window.lines for block in range(1, 25, 2) if (window := windows.read(slow, block, RestartPoint()))]
    assert memory.opened == 2
    assert slow_lines == [memory.content[20 * block : 20 * block + 20] for block in range(1, 25, 2)]
    fast_window = windows.read(fast, 14, RestartPoint())
    assert fast_window is not None
    assert fast_window.lines == memory.content[280:300]
    assert not windows.leave(fast)
    assert windows.leave(slow)
    assert memory.closed == 2


def test_a_shard_of_small_windows_is_read_once_by_lanes_that_are_far_apart() -> None:
    memory = Memory(b"".join(b"%04d\n" % i for i in range(80)), most_kept=10)
    windows = memory.windows(20)
    fast, slow = Stripe(0, 0, 2), Stripe(0, 1, 2)
    windows.follow(fast, 0)
    windows.follow(slow, 1)
    for stripe in (fast, slow):
        lines = [window.lines for b in range(stripe.first, 20, 2) if (window := windows.read(stripe, b, RestartPoint()))]
        assert lines == [memory.content[20 * block : 20 * block + 20] for block in range(stripe.first, 20, 2)]
    assert memory.opened == 1


def test_a_plain_shard_is_read_by_each_stripe_on_its_own() -> None:
    memory = Memory(b"".join(b"%04d\n" % i for i in range(100)), chunk=20)
    windows = memory.windows(20, compressed=False)
    lanes = [Stripe(0, 0, 2), Stripe(0, 1, 2)]
    windows.follow(lanes[0], 0)
    windows.follow(lanes[1], 1)
    windows.read(lanes[0], 0, RestartPoint())
    windows.read(lanes[1], 1, RestartPoint())
    window = windows.read(lanes[0], 2, RestartPoint())
    assert window is not None
    assert window.restart == RestartPoint(39, 39)
    assert (memory.opened, windows.kept) == (2, {})


@pytest.mark.parametrize("longest", [100, 10_000])
@pytest.mark.parametrize("window_bytes", [50, 1_000, 20_000])
def test_a_line_longer_than_allowed_never_stays_in_memory(longest: int, window_bytes: int) -> None:
    bomb = b"x" * 1_000_000
    memory = Memory(b"first\n" + bomb + b"\nmiddle\n" + bomb, chunk=512)
    windows = memory.windows(window_bytes, max_line_bytes=longest)
    windows.follow(EVERY_WINDOW, 0)
    lines, left_out, largest = b"", [], 0
    for block in itertools.count():
        window = windows.read(EVERY_WINDOW, block, RestartPoint())
        largest = max(largest, len(windows.passes[0].buffer))
        if window is None:
            break
        lines += window.lines
        left_out += [] if window.overlong is None else [window.overlong]
    assert (lines, left_out) == (b"first\nmiddle\n", [6, 1_000_014])
    assert largest <= window_bytes + longest + 512 + 1


def test_a_line_too_long_hides_no_later_line_of_its_window() -> None:
    content = b"a\n" + b"x" * 60 + b"\nb\nc\n" + b"y" * 60 + b"\nd\n"
    windows = Memory(content, chunk=10).windows(100, max_line_bytes=20).read(EVERY_WINDOW, 0, RestartPoint())
    assert windows == Window(0, b"a\n" + b"x" * 60 + b"\nb\nc\n", RestartPoint(), overlong=67)


def test_what_lies_before_damage_is_read_and_what_lies_behind_it_is_not() -> None:
    memory = Memory(b"".join(b"%04d\n" % i for i in range(100)), damaged_at=205)
    for first in range(2):
        windows = memory.windows(20)
        windows.follow(Stripe(0, 0, 2), 0)
        windows.follow(Stripe(0, 1, 2), 1)
        stripe = Stripe(0, first, 2)
        good = [windows.read(stripe, block, RestartPoint()) for block in range(first, 10, 2)]
        assert [window.lines for window in good if window] == [
            memory.content[20 * block : 20 * block + 20] for block in range(first, 10, 2)
        ]
        for _ in range(2):
            with pytest.raises(ContentError, match="damaged at 205"):
                windows.read(stripe, 10 + first, RestartPoint())
            assert memory.closed == memory.opened


@pytest.mark.parametrize("compression", COMPRESS)
@settings(max_examples=25)
@given(data=st.data())
def test_a_file_in_any_compression_has_the_windows_of_its_content(
    tmp_path: Path, compression: Compression, data: st.DataObject
) -> None:
    window_bytes = data.draw(st.integers(1, 400))
    content = data.draw(contents(window_bytes))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(content)), max_size=4)) | {0, len(content)})
    members = [COMPRESS[compression](content[a:b]) for a, b in itertools.pairwise(cuts)]
    path = tmp_path / "shard"
    path.write_bytes(b"".join(members))
    starts = list(zip(itertools.accumulate(map(len, members), initial=0), cuts, strict=True))

    def restart_of(offset: int) -> RestartPoint:
        return (
            RestartPoint(offset, offset) if compression == "none" else RestartPoint(*[s for s in starts if s[1] <= offset][-1])
        )

    def windows() -> LineWindows:
        return LineWindows(
            lambda restart: ShardBytes(str(path), compression, path.stat().st_size, restart, TransportOptions()),
            compressed=compression != "none",
            window_bytes=window_bytes,
            max_line_bytes=NO_LIMIT,
        )

    expected = expected_windows(content, window_bytes, NO_LIMIT, restart_of)
    assert read_all(windows()) == expected
    for block, window in enumerate(expected):
        resumed = windows()
        resumed.follow(EVERY_WINDOW, block)
        assert resumed.read(EVERY_WINDOW, block, window.restart) == window
        resumed.leave(EVERY_WINDOW)


@pytest.mark.parametrize(("frame_bytes", "window_bytes"), [(1_000, 300), (400_000, 130_000)])
@pytest.mark.parametrize("damaged", [3, 7])
def test_a_damaged_frame_costs_each_lane_the_same_whoever_shares_its_pass(
    tmp_path: Path, frame_bytes: int, window_bytes: int, damaged: int
) -> None:
    lines = [b"%07d %s\n" % (i, random.Random(i).randbytes(30).hex().encode()) for i in range(12 * frame_bytes // 69)]
    content = b"".join(lines)
    parts = [content[start : start + frame_bytes] for start in range(0, len(content), frame_bytes)]
    frames = [zstandard.ZstdCompressor(write_checksum=True).compress(part) for part in parts]
    sizes = b"".join(struct.pack("<II", len(frame), len(part)) for frame, part in zip(frames, parts, strict=True))
    table = sizes + struct.pack("<IBI", len(frames), 0, 0x8F92EAB1)
    broken = bytearray(frames[damaged])
    broken[len(broken) // 2] ^= 1
    frames[damaged] = bytes(broken)
    path = tmp_path / "shard.jsonl.zst"
    path.write_bytes(b"".join(frames) + struct.pack("<II", 0x184D2A5E, len(table)) + table)
    lanes = 6

    def read_by(groups: list[list[int]]) -> dict[int, tuple[list[bytes], bool]]:
        """What each lane gets, and whether it met the damage, when the lanes of a group share a process."""
        got: dict[int, tuple[list[bytes], bool]] = {}
        for group in groups:
            windows = LineWindows(
                lambda restart: ShardBytes(str(path), "zstd", path.stat().st_size, restart, TransportOptions()),
                compressed=True,
                window_bytes=window_bytes,
                max_line_bytes=NO_LIMIT,
            )
            places = {lane: (lane, RestartPoint()) for lane in group}
            for lane in group:
                windows.follow(Stripe(0, lane, lanes), lane)
                got[lane] = [], False
            while places:
                for lane, (block, restart) in list(places.items()):
                    stripe = Stripe(0, lane, lanes)
                    try:
                        window = windows.read(stripe, block, restart)
                    except ContentError:
                        got[lane] = got[lane][0], True
                        window = None
                    if window is None:
                        windows.leave(stripe)
                        del places[lane]
                    else:
                        got[lane][0].append(window.lines)
                        places[lane] = block + lanes, window.restart
        return got

    alone = read_by([[lane] for lane in range(lanes)])
    assert read_by([list(range(lanes))]) == alone
    assert read_by([[0, 3], [1, 4], [2, 5]]) == alone
    assert read_by([[5, 0, 2], [4, 1, 3]]) == alone
    met = [lane for lane, (_, met_damage) in alone.items() if met_damage]
    assert 0 < len(met) < lanes, "only the lanes with a window in the frame"
    for lane in set(range(lanes)) - set(met):
        assert len(alone[lane][0]) == len(range(lane, -(-len(content) // window_bytes), lanes))


@pytest.mark.parametrize("compression", ["none", *COMPRESS])
def test_the_stored_bytes_before_a_window_are_the_same_wherever_a_pass_begins(tmp_path: Path, compression: str) -> None:
    lines = b"".join(b"%07d %s\n" % (i, random.Random(i).randbytes(30).hex().encode()) for i in range(30_000))
    members = [lines[:900_000], lines[900_000:1_000_000], lines[1_000_000:]]
    path = tmp_path / "shard"
    path.write_bytes(lines if compression == "none" else b"".join(map(COMPRESS[compression], members)))
    size = path.stat().st_size

    def windows() -> LineWindows:
        return LineWindows(
            lambda restart: ShardBytes(str(path), compression, size, restart, TransportOptions()),
            compressed=compression != "none",
            window_bytes=130_000,
            max_line_bytes=NO_LIMIT,
        )

    reading, found = windows(), []
    reading.follow(EVERY_WINDOW, 0)
    while (window := reading.read(EVERY_WINDOW, len(found), RestartPoint())) is not None:
        found.append(window)
    ends = [end for window in found for end in window.stored]
    assert ends == sorted(ends)
    assert (ends[0], ends[-1]) == (0, size)
    fair = [len(lines) / 130_000 * (window.stored[1] / size) for window in found]
    assert all(abs(share - block) < 1.5 for block, share in enumerate(fair, start=1)), "as the content is"
    for block, window in enumerate(found):
        resumed = windows()
        resumed.follow(EVERY_WINDOW, block)
        again = resumed.read(EVERY_WINDOW, block, window.restart)
        assert again is not None
        assert again.stored == window.stored
        resumed.leave(EVERY_WINDOW)
