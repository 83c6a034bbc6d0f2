"""A folder that is replaced is the old or the new one at any moment, also where a kill falls between two renames."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from stream_pretrain.training.files import atomic_folders
from stream_pretrain.training.files.atomic_folders import exchange, put_in_place, repair
from tests.training.checkpoints import run_beside


def filled_with(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "weights").write_text(text)

    return fill


def held(folder: Path) -> dict[str, str]:
    """What lies in a folder: the names of folders, and what their files hold."""
    return {path.name: (path / "weights").read_text() for path in sorted(folder.iterdir())}


KILLED = """
import json, os
from tests.training.test_atomic_folders import atomic_folders, filled_with, held
directory = Path(sys.argv[1])
for exchanges in (True, False):
    for cut in range(1, 9):
        model = directory / f"{exchanges}{cut}" / "model"
        model.parent.mkdir()
        atomic_folders.put_in_place(model, filled_with("old"))
        child = os.fork()
        if child == 0:
            calls = 0
            def until_killed(action):
                def counted(*arguments):
                    global calls
                    calls += 1
                    if calls == cut:
                        os._exit(9)
                    return action(*arguments)
                return counted
            os.rename = until_killed(os.rename)
            os.unlink = until_killed(os.unlink)
            atomic_folders.exchange = until_killed(atomic_folders.exchange) if exchanges else lambda *_: False
            atomic_folders.put_in_place(model, filled_with("new"))
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        there = model.exists()
        atomic_folders.repair(model)
        print(json.dumps([exchanges, ended, there, held(model.parent)]))
"""


def test_a_folder_that_is_replaced_is_there_after_a_kill_and_a_start(tmp_path: Path) -> None:
    found = [json.loads(line) for line in run_beside(KILLED, tmp_path)]
    assert len(found) == 16
    assert sum(ended == 9 for exchanges, ended, _, _ in found if exchanges) >= 3
    assert sum(ended == 9 for exchanges, ended, _, _ in found if not exchanges) >= 4
    for exchanges, ended, there, after in found:
        assert after in [{"model": "new"}, {"model": "old"}]
        assert there or not exchanges, "never absent"
        assert ended == 9 or after == {"model": "new"}
    assert not all(there for _, _, there, _ in found), "without an exchange it is absent for a moment"


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def exchanges(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(atomic_folders, "exchange", lambda one, other: False)
    return bool(request.param)


@pytest.mark.usefixtures("exchanges")
def test_a_folder_a_file_and_a_link_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    filled_with("kept")(tmp_path / "elsewhere")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("folder", "folder", "file", "link"):
        put_in_place(tmp_path / name, filled_with("new"))
    assert held(tmp_path) == {"elsewhere": "kept", "file": "new", "folder": "new", "link": "new"}


@pytest.mark.usefixtures("exchanges")
@pytest.mark.parametrize("fails", ["fill", "sync"])
def test_what_fails_leaves_the_folder_as_it_was(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(tmp_path / "model", filled_with("old"))

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_folders, "flush", full)
    with pytest.raises(OSError, match="No space left"):
        put_in_place(tmp_path / "model", full if fails == "fill" else filled_with("new"))
    assert held(tmp_path) == {"model": "old"}


def test_a_second_rename_that_fails_takes_the_first_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(tmp_path / "model", filled_with("old"))
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name == ".tmp-model" and target.name == "model":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(atomic_folders, "exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="Input/output error"):
        put_in_place(tmp_path / "model", filled_with("new"))
    assert held(tmp_path) == {"model": "old"}


@pytest.mark.usefixtures("exchanges")
@pytest.mark.parametrize("before", ["old", None])
def test_a_folder_whose_place_cannot_be_brought_to_the_disk_is_as_it_was(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is not None:
        put_in_place(tmp_path / "model", filled_with(before))
    sync = atomic_folders.sync

    def failing(path: Path) -> None:
        if path == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        sync(path)

    monkeypatch.setattr(atomic_folders, "sync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        put_in_place(tmp_path / "model", filled_with("new"))
    assert held(tmp_path) == ({} if before is None else {"model": before})


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_system_without_an_exchange_is_told_from_one_that_fails(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def renameat2(self, *_: object) -> int:
            return -1

    monkeypatch.setattr(atomic_folders.ctypes, "CDLL", Library)
    monkeypatch.setattr(atomic_folders.ctypes, "get_errno", lambda: number)
    assert not exchange(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(atomic_folders.ctypes, "get_errno", lambda: errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        exchange(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(atomic_folders.ctypes, "CDLL", lambda *_, **__: object())
    assert not exchange(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("beside", [[".old-model"], [".old-model", ".tmp-model"], [".tmp-model"], []])
def test_a_start_puts_the_folder_back_that_had_stepped_aside(beside: list[str], tmp_path: Path) -> None:
    for name in beside:
        (tmp_path / name).mkdir()
        filled_with(name)(tmp_path / name)
    repair(tmp_path / "model")
    new = ".tmp-model" if ".tmp-model" in beside else ".old-model"
    assert held(tmp_path) == ({"model": new} if ".old-model" in beside else {})


def test_a_folder_whose_place_was_taken_away_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "out" / "model", lambda folder: (folder / "file").write_text("text"))
    assert list(tmp_path.iterdir()) == []
