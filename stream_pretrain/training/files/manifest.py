"""MANIFEST.json: size and SHA-256 of every file of a checkpoint, by which damage is detected."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from stream_pretrain.errors import CheckpointError, DamagedCheckpointError
from stream_pretrain.training.files.atomic_folders import files
from stream_pretrain.training.files.retried_reads import NOT_THERE, open_regular, parsed_object, retried, unreadable

MANIFEST = "MANIFEST.json"
FORMAT = 1


def write_manifest(folder: Path) -> None:
    """List all files of a folder with their sizes and sha256. Raises: OSError."""
    listed = {path.relative_to(folder).as_posix(): _fingerprint(path) for path in files(folder)}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": listed}, indent=1), encoding="utf-8")


def check_manifest(folder: Path, required: Iterable[str], without: Container[str] = ()) -> None:
    """Compare every file with the manifest, which must list the required ones. without: files that may be missing or others.

    Raises: DamagedCheckpointError for wrong content, CheckpointError for a file that cannot be read now.
    """
    listed = _listed(folder / MANIFEST)
    for name in required:
        if name not in listed:
            raise DamagedCheckpointError(f"{folder / MANIFEST} does not list {name}: use another checkpoint")
    for name, expected in listed.items():
        _refuse_outside(folder, name)
        if name in without:
            continue
        found = _found(folder / name)
        wrong = [key for key in found if found[key] != expected[key]]
        if wrong:
            raise DamagedCheckpointError(
                f"{folder / name} is damaged (its {wrong[0]} differs from {MANIFEST}): use another checkpoint"
            )


def file_of(path: Path) -> bytes:
    """The content of a small file of a checkpoint.

    Raises: DamagedCheckpointError where it is missing or not a file, CheckpointError where it cannot be read now.
    """

    def read() -> bytes:
        with os.fdopen(open_regular(path), "rb") as file:
            return file.read()

    try:
        return retried(read)  # each attempt opens it: after an error in the middle, the position is not known
    except OSError as error:
        raise _fault(path, error) from error


def json_of(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint. Raises: as `file_of`; DamagedCheckpointError for other content."""
    content = file_of(path)
    try:
        return parsed_object(content)
    except ValueError as fault:
        raise DamagedCheckpointError(f"{path} is damaged (it is {fault}): use another checkpoint") from fault


def _listed(manifest: Path) -> dict[str, dict[str, Any]]:
    content = json_of(manifest)
    version, listed = content.get("format"), content.get("files")
    if type(version) is not int:
        raise DamagedCheckpointError(f"{manifest} is damaged (it names no format): use another checkpoint")
    if version != FORMAT:
        raise CheckpointError(
            f"{manifest} has format {version}, this version reads format {FORMAT}: use the version that wrote it"
        )
    if not isinstance(listed, dict) or not all(map(_is_fingerprint, listed.values())):
        raise DamagedCheckpointError(f"{manifest} is damaged (it lists no sizes and sha256): use another checkpoint")
    return listed


def _is_fingerprint(value: object) -> bool:
    return isinstance(value, dict) and type(value.get("size")) is int and isinstance(value.get("sha256"), str)


def _refuse_outside(folder: Path, name: str) -> None:
    parts = PurePosixPath(name).parts
    plain = name == "/".join(parts) and ".." not in parts and parts and name.isprintable()
    if not plain or any((folder / Path(*parts[:depth])).is_symlink() for depth in range(1, len(parts))):
        raise DamagedCheckpointError(f"{folder / MANIFEST} lists {name!r}, not a file of the checkpoint: use another one")


def _found(path: Path) -> dict[str, Any]:
    try:
        return retried(lambda: _fingerprint(path))
    except OSError as error:
        raise _fault(path, error) from error


def _fault(path: Path, error: OSError) -> CheckpointError:
    if error.errno in NOT_THERE:
        return DamagedCheckpointError(f"{path} cannot be read ({error.strerror}): use another checkpoint")
    return unreadable(path, error)


def _fingerprint(path: Path) -> dict[str, Any]:
    with os.fdopen(open_regular(path), "rb") as file:
        return {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
