"""The bytes of one shard: uncompressed and in order from a restart point, or stored and anywhere.

    Store        bytes [start, stop) of the file as stored, in pieces, without retries
    StoredBytes  retries, reads one block ahead, buffers
    members      zstd and lz4 frames, gzip members, bz2 and xz streams; restart points are where they start
    ShardBytes   uncompressed chunks of bounded size, skipping forward
    ShardFile    stored bytes anywhere, for formats with an index of their own

A fault of transport (network, server) is retried at the missing byte and changes nothing above it. A fault of content (damage,
truncation) is a ContentError, met after the same good bytes wherever reading started.
"""

from __future__ import annotations

import bisect
import io
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

from stream_pretrain.data.transport.compression import CODECS, LFS_POINTER, Compression, binary_format, looks_like
from stream_pretrain.data.transport.decoders import DamageError, no_memory
from stream_pretrain.data.transport.members import CHUNK, CUT, SLICE, decode, is_skippable, joined, skip_skippable
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.readings import Readings, read_until_two_agree
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.seek_table import read_seek_table
from stream_pretrain.data.transport.stored_bytes import StoredBytes
from stream_pretrain.errors import ContentError, SourceError, StreamPretrainError, TransportError
from stream_pretrain.urls import without_secrets

logger = logging.getLogger(__name__)

Chunk: TypeAlias = bytes | memoryview
"""Content that does not change."""


class ShardBytes:
    """The uncompressed bytes of one shard, in order, from a restart point. Used by one thread; opened by the first read.

    Offsets are uncompressed bytes. `position` is that of the next byte of read(). `restart` is where the member starts that the
    last chunk is of: a pure function of the shard and the offset of the chunk, wherever reading started.

    Raises: ContentError where the shard is damaged, after all good bytes before the damage, and again at every later read;
    TransportError where the bytes cannot be fetched; SourceError where the file was replaced.
    """

    def __init__(
        self,
        url: str,
        compression: Compression,
        size: int | None,
        restart: RestartPoint | None = None,
        options: TransportOptions | None = None,
        identity: str | None = None,
    ):
        """size: stored bytes, as listed; identity: `KIND:VALUE` as pinned, checked where the store says one of that kind."""
        restart = restart or RestartPoint()
        self.position = restart.uncompressed
        self.restart = restart
        self._begin = restart
        self._name = without_secrets(url)
        self._size = size
        self._data = StoredBytes(url, self._name, size, restart.compressed, options or TransportOptions(), identity)
        self._decoded = restart.uncompressed  # offset after the last byte of the decoder
        self._is_plain = compression == "none"
        if not self._is_plain:
            self._codec = CODECS[compression]
            self._decoder = self._codec.decoders()
        self._chunks = self._plain() if self._is_plain else self._members()
        self._pending: tuple[RestartPoint, Chunk] | None = None
        self._frames: list[RestartPoint] | None = None  # of the seek table; empty where the shard has none
        self._member = restart  # where the current member starts
        # Uncompressed and stored offset of where pieces of the content begin, which is the same for every pass and store.
        self._pieces = deque([(restart.uncompressed, restart.compressed)])
        self._error: StreamPretrainError | None = None

    def read(self) -> Chunk:
        """The next chunk, of one member; b"" at the end of the shard."""
        following = self._pending or self._next()
        self._pending = None
        self.position = self._decoded
        if following is None:
            return b""
        self.restart, chunk = following
        return chunk

    def skip_to(self, offset: int) -> None:
        """Make the next read() start at this offset, which is not before `position`, or at the end of the shard.

        Damage on the way is skipped where there is a seek table, since a pass that starts after it does not find it either.
        """
        assert offset >= self.position, "bytes are only skipped forward"
        if not self._is_plain:
            self._jump(offset)
        elif offset > self._decoded:
            known = self._data.known_total
            self._decoded = offset if known is None else max(self._decoded, min(offset, known))
            self._data.skip_to(self._decoded)
        pending, self._pending = self._pending, None
        while self._decoded < offset:
            try:
                following = self._next()
            except ContentError:
                if not self._pass_over_damage(offset):
                    raise
                pending = None
                continue
            if following is None:
                break
            pending = following
        if (left := self._decoded - offset) > 0:
            assert pending is not None
            restart, chunk = pending
            self._pending = (restart, chunk[-left:])
        self.position = min(offset, self._decoded)

    def prefetch(self, offset: int) -> None:
        """In a plain shard, fetch ahead what skip_to() will move to next."""
        if self._is_plain:
            self._data.prefetch(offset)

    def stored_bytes_before(self, offset: int) -> int:
        """Stored bytes before an uncompressed offset that was read, or not skipped, by now; offsets do not go back.

        Interpolated within a piece that the decoder returns at once.
        """
        if self._is_plain:
            return min(offset, self._decoded)
        while len(self._pieces) > 1 and self._pieces[1][0] <= offset:
            self._pieces.popleft()
        begin, stored = self._pieces[0]
        if len(self._pieces) == 1:
            return stored
        end, stored_end = self._pieces[1]
        return stored + (stored_end - stored) * (offset - begin) // (end - begin)

    def close(self) -> None:
        """Close the file or connection."""
        self._data.close()

    def _next(self) -> tuple[RestartPoint, Chunk] | None:
        if self._error is not None:
            raise self._error
        try:
            return next(self._chunks, None)
        except StreamPretrainError as error:
            self._error = error  # a finished generator would look like the end of the shard
            raise

    def _plain(self) -> Iterator[tuple[RestartPoint, Chunk]]:
        head = bytes(self._data.peek(_HEAD))
        if self._data.position == 0 and (found := binary_format(head)):
            instead = "" if found == LFS_POINTER else ", but its name says plain text; name it after its format"
            raise ContentError(f"{self._name}: looks like {found}{instead}")
        while piece := self._data.peek(CHUNK, least=1):
            start = RestartPoint(self._decoded, self._decoded)
            self._data.advance(len(piece))
            self._decoded += len(piece)
            yield start, piece
        self._decoded = min(self._decoded, self._data.total)
        self._check_size()

    def _members(self) -> Iterator[tuple[RestartPoint, Chunk]]:
        while self._data.peek(1):
            start = self._member = RestartPoint(self._data.position, self._decoded)
            self._compare_with_seek_table(start)
            try:
                content = joined(self._content_of_member()) if self._data.is_local else self._member_of_store(start)
                yield from map(partial(self._chunk, start), content)  # a loop would hold the last while a lane waits
            except NoMemberError as damage:
                found = RestartPoint(self._data.position, self._decoded)
                if self._codec.magic.startswith(damage.head):
                    raise self._damaged(found, CUT) from damage
                raise ContentError(
                    f"{self._name}: no {self._codec.member} begins at compressed byte {found.compressed} "
                    f"(uncompressed {found.uncompressed}); what is there looks like {looks_like(damage.head)}"
                ) from damage
            except DamageError as damage:
                raise self._damaged(start, damage.reason, damage.what) from damage.__cause__
            except MemoryError as error:
                raise no_memory(self._name, error) from error
        self._check_size()
        del self._decoder  # with the memory that it needs: a lane may be long in its last window

    def _content_of_member(self) -> Iterator[bytes]:
        """The content of the member that starts here, if something good follows it; none of padding or a skippable frame.

        Raises: DamageError, after all good content.
        """
        codec, data = self._codec, self._data
        head = bytes(data.peek(_HEAD))
        if not head:
            return
        if head[0] == 0 and codec.is_zero_padded and data.position > 0:
            padding = bytes(data.peek(SLICE))
            data.advance(len(padding) - len(padding.lstrip(b"\0")))
        elif codec.has_skippable_frames and is_skippable(head):
            if not skip_skippable(data):
                raise DamageError(CUT, "skippable frame")
        elif head.startswith(codec.magic):
            self._begin_notes()
            yield from map(self._noted, decode(data, self._decoder()))
            following = bytes(data.peek(_HEAD))
            begins = following.startswith(codec.magic) or codec.magic.startswith(following)
            padded = codec.is_zero_padded and following[:1] == b"\0"
            if not (begins or padded or (codec.has_skippable_frames and is_skippable(following))):
                raise NoMemberError(f"no {codec.member} begins where it ends", following)
        else:
            raise NoMemberError(f"no {codec.member} began there", head)

    def _chunk(self, start: RestartPoint, content: Chunk) -> tuple[RestartPoint, Chunk]:
        self._decoded += len(content)
        return start, content

    def _begin_notes(self) -> None:
        """Note where the content of a member begins, instead of the end of the one before."""
        while self._pieces and self._pieces[-1][0] >= self._member.uncompressed:
            self._pieces.pop()  # or what a first reading of this member has noted
        self._pieces.append((self._member.uncompressed, self._member.compressed))

    def _noted(self, piece: bytes) -> bytes:
        """A piece of the content of a member; notes where it ends."""
        self._pieces.append((self._pieces[-1][0] + len(piece), self._data.position))
        return piece

    def _member_of_store(self, start: RestartPoint) -> Iterator[bytes]:
        """The same for a remote shard: a damaged member is read again."""
        member = f"the {self._codec.member} that begins at compressed byte {start.compressed}"

        def begin_again(damage: DamageError) -> None:
            if isinstance(damage, NoMemberError) and self._data.position == 0:
                self._data.reopen()  # the answer may have been another file, such as a page of a proxy
            self._data.reread_from(start.compressed)

        readings = Readings(self._name, member, "uncompressed byte")
        return readings.content(lambda: joined(self._content_of_member()), begin_again, start.uncompressed)

    def _compare_with_seek_table(self, start: RestartPoint) -> None:
        if self._frames and bytes(self._data.peek(len(self._codec.magic))) == self._codec.magic:
            at = bisect.bisect_left(self._frames, start.compressed, key=lambda frame: frame.compressed)
            listed = self._frames[min(at, len(self._frames) - 1)]
            if listed.compressed == start.compressed and listed != start:
                raise self._damaged(start, f"the seek table says it begins at uncompressed byte {listed.uncompressed}")

    def _damaged(self, start: RestartPoint, reason: str, what: str | None = None) -> ContentError:
        known = (self._data.known_total, self._size)
        sizes = "" if None in known or known[0] == known[1] else f" (the shard has {known[0]} bytes, {known[1]} are listed)"
        return ContentError(
            f"{self._name}: the {what or self._codec.member} that begins at compressed byte {start.compressed} "
            f"(uncompressed {start.uncompressed}) cannot be decompressed from uncompressed byte {self._decoded} on: "
            f"{reason}{sizes}"
        )

    def _check_size(self) -> None:
        if self._data.total < self._begin.compressed:
            raise SourceError(
                f"{self._name}: has {self._data.total} bytes, but reading would resume at byte {self._begin.compressed}: "
                "it was replaced since the run began"
            )
        if self._size is not None and self._data.total != self._size:
            raise ContentError(_other_size(self._name, self._data.total, self._size))

    def _jump(self, offset: int) -> None:
        """Move to the frame that the seek table has `offset` in, where that saves reading."""
        if not self._codec.has_seek_table or offset - self._decoded <= CHUNK or not self._data.can_jump():
            return
        frame = self._frame_of(offset)
        if frame is not None and frame.uncompressed > self._decoded:
            if frame.compressed < self._data.position:
                self._error = self._damaged(
                    self._member, f"the seek table says that uncompressed byte {frame.uncompressed} lies before it"
                )
                raise self._error
            self._data.skip_to(frame.compressed)
            self._decoded = frame.uncompressed
            self._chunks = self._members()

    def _pass_over_damage(self, offset: int) -> bool:
        """Move to the frame that the seek table has `offset` in; false without a table, or where that frame is damaged."""
        frame = self._frame_of(offset)
        if frame is None or frame.compressed <= self._member.compressed:
            return False
        self._data.seek(frame.compressed)
        self._decoded = frame.uncompressed
        self._chunks, self._error = self._members(), None
        return True

    def _frame_of(self, offset: int) -> RestartPoint | None:
        """Where the frame starts that the seek table has `offset` in; None without a table."""
        if self._is_plain or not self._codec.has_seek_table:
            return None
        if self._frames is None:
            # No checksum covers the sizes in the table, and a wrong one would lead to a wrong place.
            read = partial(read_seek_table, self._data)
            self._frames = read() if self._data.is_local else read_until_two_agree(read)
            if self._frames is None:
                raise TransportError(f"{self._name}: its seek table differs at each reading; check the network")
        at = bisect.bisect_right(self._frames, offset, key=lambda frame: frame.uncompressed) - 1
        return self._frames[at] if at >= 0 else None


class NoMemberError(DamageError):
    """Something else begins where a member should."""

    def __init__(self, reason: str, head: bytes):
        super().__init__(reason, stored=head)
        self.head = head


_HEAD = 512


def _other_size(name: str, found: int | None, listed: int) -> str:
    return f"{name}: has {found} bytes, but {listed} are listed: it was cut short or replaced"


class ShardFile(io.RawIOBase):
    """The stored bytes of one shard as a seekable file, for formats with an index of their own. Used by one thread.

    Each read fetches one range. Raises: TransportError, and SourceError where the file was replaced, as StoredBytes does;
    ContentError where its size is not the listed one.
    """

    def __init__(self, url: str, size: int | None, options: TransportOptions, identity: str | None = None):
        self.upcoming: Sequence[tuple[int, int]] = ()
        """Ranges [start, stop) of stored bytes that will be read in this order; one block of them is fetched ahead."""
        self._name = without_secrets(url)
        self._data = StoredBytes(url, self._name, size, 0, options, identity)
        self._block_bytes = options.block_bytes
        self._at = 0
        self._held = (0, b"")  # what hold() has fetched, by its offset
        if size is None:
            self._data.read_at(0, 1)  # an answer says how large the file is
            size = self._data.known_total
        if size is None:
            raise TransportError(f"{self._name}: the server does not say how large the file is")
        self._size = size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def hold(self, start: int, stop: int) -> None:
        """Fetch a part at once that will be read in small pieces, unless it is larger than a block; kept until the next one."""
        self._held = 0, b""
        if stop - start <= self._block_bytes:
            self._held = start, self._data.read_range(start, stop, None)

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._size, self._at + size)
        start, held = self._held
        if start <= self._at and stop <= start + len(held):
            content = held[self._at - start : stop - start]
        else:
            content = self._data.read_range(self._at, stop, self._following(stop)) if self._at < stop else b""
        self._at += len(content)
        if self._data.known_total not in (None, self._size):
            raise ContentError(_other_size(self._name, self._data.known_total, self._size))
        return content

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _following(self, stop: int) -> tuple[int, int] | None:
        """The block of the upcoming ranges that is read next after a read that ends at `stop`."""
        for begin, end in self.upcoming:
            if end > stop:
                start = max(begin, stop)
                return start, min(end, start + self._block_bytes)
        return None

    def close(self) -> None:
        self._data.close()
        super().close()
