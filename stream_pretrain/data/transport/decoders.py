"""Decoders of one member (a zstd or lz4 frame, a gzip member...), with the interface of those of bz2 and lzma."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sized
from functools import partial
from typing import Protocol

import zstandard

from stream_pretrain.errors import SourceError
from stream_pretrain.units import GIB, KIB

MOST_MEMORY = 2 * GIB
"""Bytes that a decoder may need."""

_ZSTD_BLOCK = 128 * KIB  # content of one block of a zstd frame, at most


class DamageError(Exception):
    """A member that cannot be decompressed, or `what` stands in its place."""

    def __init__(self, reason: str, what: str | None = None, stored: bytes = b""):
        """stored: the bytes that show it, or a digest of them."""
        super().__init__(reason)
        self.reason = reason
        self.what = what
        self.evidence = (reason, stored)
        """Equal where two readings found the same damage."""


def no_memory(name: str, error: Exception) -> SourceError:
    """The error where this machine has too little memory for a shard, which is no damage: elsewhere it may be read."""
    return SourceError(
        f"{name}: there is too little memory to decompress it ({error}): free some, or give fewer --workers or --lanes"
    )


class Decoder(Protocol):
    """Decompresses one member. Used by one thread."""

    @property
    def eof(self) -> bool:
        """Whether the member has ended."""

    @property
    def needs_input(self) -> bool:
        """Whether decompress() gives nothing more without further input."""

    @property
    def unused_data(self) -> Sized | None:
        """Input after the end of the member."""

    def decompress(self, data: bytes | memoryview, /, max_length: int) -> bytes:
        """At most about `max_length` bytes of content. Where input is needed, b"" says that the shard has ended.

        The decoder may keep `data`, which must not change. Raises: DamageError, or what its library raises for damage.
        """


class GzipMember:
    """One gzip member; zlib checks CRC and length."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes | memoryview, /, max_length: int) -> bytes:
        return self._inflate.decompress(data or self._inflate.unconsumed_tail, max_length)


def lz4_frame() -> Decoder:
    """Raises SourceError where lz4 is not installed."""
    try:
        import lz4.frame
    except ImportError as error:
        raise SourceError("reading .lz4 shards needs a package: pip install lz4") from error
    decoder: Decoder = lz4.frame.LZ4FrameDecompressor()
    return decoder


def zstd_frames() -> Callable[[], Decoder]:
    """The frames of one shard, read one after the other, share a decompressor: making one takes as long as 4 KB of text."""
    return partial(ZstdFrame, zstandard.ZstdDecompressor(max_window_size=MOST_MEMORY))


class ZstdFrame:
    """One zstd frame, fed block by block: a block has at most 128 KiB of content, so that a decompression bomb stays small.

    Source: RFC 8878, section 3.1.1.
    """

    def __init__(self, decompressor: zstandard.ZstdDecompressor) -> None:
        """decompressor: used by this frame alone until it has ended, or is abandoned."""
        self._decompressor = decompressor
        self._frame: zstandard.ZstdDecompressionObj | None = None  # once the header is there
        self._has_checksum = False
        self._held: bytes | bytearray | memoryview = b""  # input that is not fed yet
        self._end = 0  # of the blocks in it that are fed next...
        self._blocks = 0  # ...so many
        self._last = False  # the last of the frame is among them
        self._can_go_on = False

    @property
    def eof(self) -> bool:
        return self._frame is not None and self._frame.eof

    @property
    def needs_input(self) -> bool:
        return not self._can_go_on

    @property
    def unused_data(self) -> Sized:
        return self._held

    def decompress(self, data: bytes | memoryview, /, max_length: int) -> bytes:
        if self._last and self._end == 0:
            raise DamageError("it does not end with its last block")
        if not self._held:
            self._held = data
        elif data:
            if not isinstance(self._held, bytearray):
                self._held = bytearray(self._held)
            self._held += data
        if not self._are_there(max_length) and data:
            return b""
        if self._frame is None:
            return b""
        held = memoryview(self._held)
        content = self._frame.decompress(held[: self._end])
        rest = held[self._end :]
        self._held = rest if self._last else bytes(rest)  # which does not keep what is in front of it
        self._end = self._blocks = 0
        self._can_go_on = self._last or self._are_there(max_length)
        return content

    def _are_there(self, max_length: int) -> bool:
        """Whether all blocks that are fed next are held."""
        self._can_go_on = False
        if self._frame is None and not self._begin():
            return False
        while not self._last and self._blocks * _ZSTD_BLOCK < max_length:
            header = self._held[self._end : self._end + 3]
            if len(header) < 3:
                return False
            word = int.from_bytes(header, "little")
            self._last, run_length = bool(word & 1), word >> 1 & 3 == 1
            self._end += 3 + (1 if run_length else word >> 3)
            self._blocks += 1
            if self._last and self._has_checksum:
                self._end += 4
        self._can_go_on = len(self._held) >= self._end
        return self._can_go_on

    def _begin(self) -> bool:
        """Read the frame header; false where more input is needed."""
        header = bytes(self._held[:18])
        size = zstandard.frame_header_size(header) if len(header) > 4 else 5
        if len(header) < size:
            return False
        single_segment = bool(header[4] & 0x20)  # otherwise the next byte is the window: exponent and eighths
        window = 0 if single_segment else (8 + (header[5] & 7)) << (7 + (header[5] >> 3))
        if window <= MOST_MEMORY:  # above, zstandard does not even describe the frame
            parameters = zstandard.get_frame_parameters(header)
            window, self._has_checksum = parameters.window_size, parameters.has_checksum
            if parameters.dict_id:
                raise DamageError(
                    f"it needs a dictionary (id {parameters.dict_id}), which is not supported; recompress it without one"
                )
        if window > MOST_MEMORY:
            raise DamageError(
                f"it needs {window / GIB:.1f} GiB of memory to decompress, and {MOST_MEMORY // GIB} GiB is the most that is "
                "supported; recompress it with --long=31 or less"
            )
        self._frame = self._decompressor.decompressobj(write_size=2 * _ZSTD_BLOCK)
        self._end = size
        return True
