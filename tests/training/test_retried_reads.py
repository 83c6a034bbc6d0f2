"""What a run keeps beside its checkpoints is read with patience, and what cannot be read or is wrong is one line."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stream_pretrain.errors import CheckpointError
from stream_pretrain.training.evaluation.evaluation_documents import load_documents
from stream_pretrain.training.files import manifest, retried_reads
from stream_pretrain.training.files.manifest import file_of
from stream_pretrain.training.files.records import has_evaluation, trim_after
from stream_pretrain.training.files.retried_reads import read_object
from stream_pretrain.training.files.run_directory import RunDirectory
from stream_pretrain.training.report.tracking import _read_record
from stream_pretrain.training.start.engine import _kept
from tests.training.checkpoints import unexpected

READERS: dict[str, Callable[[Path], Any]] = {
    "metrics.jsonl": lambda path: list(_read_record(path)),
    "metrics": lambda path: has_evaluation(path, 1),
    "quarantine.jsonl": lambda path: trim_after(path, 5, unexpected),
    "evaluation.jsonl": load_documents,
    "evaluation.json": lambda path: read_object(path, "delete it"),
    "engine.json": lambda path: _kept(path.parent),
    "run.json": lambda path: RunDirectory(path.parent, [], unexpected).recorded(),
}
GOOD = b'{"step": 1, "text": "one", "engine": "tokenizers"}\n'


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retried_reads, "PAUSES", (0.0, 0.0, 0.0))


def failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int, times: int) -> list[str]:
    """Let files of this name fail to open for reading so often; gives a list of the attempts."""
    attempts: list[str] = []
    really = io.open

    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "r" in mode and os.path.basename(str(file)) == name:
            attempts.append(name)
            if len(attempts) <= times:
                raise OSError(number, os.strerror(number), file)
        return really(file, mode, *arguments, **options)

    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr(builtins, "open", opened)
    return attempts


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(("number", "attempts"), [(errno.EIO, 4), (errno.EMFILE, 4), (errno.EACCES, 1)])
def test_a_file_that_cannot_be_read_is_one_line_and_stays_as_it_is(
    name: str, number: int, attempts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(GOOD)
    with monkeypatch.context() as broken:
        asked = failing(broken, name, number, times=10**9)
        with pytest.raises(CheckpointError, match=rf"{name} cannot be read \({os.strerror(number)}\): .* run the same command"):
            READERS[name](tmp_path / name)
    assert len(asked) == attempts
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == GOOD


@pytest.mark.parametrize("name", READERS)
def test_a_fault_that_passes_is_not_noticed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(GOOD)
    asked = failing(monkeypatch, name, errno.EMFILE, times=3)
    READERS[name](tmp_path / name)
    assert len(asked) == 4


def test_a_file_that_fails_halfway_is_read_from_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [errno.EIO, errno.EIO]

    class Failing(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            if faults:
                super().read(2)
                raise OSError(faults.pop(), "Input/output error")
            return super().read(size)

    (tmp_path / "stream.json").write_bytes(b'{"lanes": []}')
    monkeypatch.setattr(manifest.os, "fdopen", lambda descriptor, mode: Failing(descriptor))
    assert file_of(tmp_path / "stream.json") == b'{"lanes": []}'
    assert not faults


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluation.jsonl", "evaluation.json", "engine.json", "run.json"])
@pytest.mark.parametrize("content", [b"{\n", b"[]\n", b"7\n", b"\xff\n", b"[" * 100_000])
def test_what_is_no_object_is_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("line", [b"{}", b'{"step": "1"}', b'{"step": null, "text": 7}'])
@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluation.jsonl"])
def test_a_line_that_is_none_of_the_file_is_named_by_its_number(name: str, line: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(GOOD + line + b"\n")
    with pytest.raises(CheckpointError, match=rf"{name}, line 2: not "):
        READERS[name](tmp_path / name)


def test_a_line_of_a_record_with_a_step_that_is_no_number_goes(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(GOOD + b'{"step": "1"}\n{"step": null}\n' + b"[" * 100_000 + b"\n")
    said: list[str] = []
    trim_after(log, 2, said.append)
    assert len(said) == 1
    assert log.read_bytes() == GOOD


@pytest.mark.parametrize("owner", [{"host": 1, "pid": 1, "time": 1.0}, {"host": "a", "pid": "1", "time": "x"}, [], 7])
def test_a_lock_that_names_no_owner_is_free(owner: object, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps(owner))
    with RunDirectory.own(tmp_path, [], unexpected):
        pass
