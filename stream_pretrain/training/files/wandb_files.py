"""The steps in the offline files of Weights & Biases: a client that is killed loses the last ones it was given.

A file is seven bytes and then the log format of LevelDB: blocks of 32 KiB with pieces of records, each piece with its checksum,
length and kind. A record is a message of the client's own protocol.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

BLOCK = 32_768
PREAMBLE = 7
PIECE = struct.Struct("<IHB")
"""CRC-32 of kind and content, length of the content, kind."""
WHOLE, LAST = 1, 4
"""Kinds of pieces that end a record; the others begin or continue one."""


def steps_held(wandb: Path, run_id: str) -> set[int]:
    """The steps whose metrics are complete in the offline files of a run. Raises: OSError."""
    return {step for path in wandb.glob(f"offline-run-*/run-{run_id}.wandb") for step in _steps(path)}


def _steps(path: Path) -> Iterator[int]:
    from wandb.proto.wandb_internal_pb2 import Record

    for content in _records(path):
        for item in Record.FromString(content).history.item:
            if item.key == "train/step" or list(item.nested_key) == ["train/step"]:
                yield int(json.loads(item.value_json))


def _records(path: Path) -> Iterator[bytes]:
    """The records of a file, up to its end or the first damage."""
    pieces: list[bytes] = []
    with path.open("rb") as file:
        file.seek(PREAMBLE)
        while True:
            left = BLOCK - file.tell() % BLOCK
            if left < PIECE.size:  # too short for a header: padding
                file.seek(left, 1)
            head = file.read(PIECE.size)
            if len(head) < PIECE.size:
                return
            checksum, length, kind = PIECE.unpack(head)
            content = file.read(length)
            if len(content) < length or zlib.crc32(content, zlib.crc32(bytes([kind]))) != checksum:
                return
            pieces.append(content)
            if kind in (WHOLE, LAST):
                yield b"".join(pieces)
                pieces = []
