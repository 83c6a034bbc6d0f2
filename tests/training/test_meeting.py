"""Ranks that do not find each other, as after one was killed before it could."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import DistBackendError, DistError, TCPStore

from stream_pretrain import exit_codes
from stream_pretrain.errors import LostRankError
from stream_pretrain.training.ranks import meeting

PLACE = "all 2 processes {}at 127.0.0.1:29500 (MASTER_ADDR:MASTER_PORT)"


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As the launcher of two ranks has it; returns the error file of this one."""
    variables = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in {**variables, "TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")}.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "error.json"


def test_a_rank_that_waits_for_another_says_so_and_ends_in_one_line_that_the_same_command_resumes(
    launched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(meeting, "MEETING_SECONDS", 0.2)
    with pytest.raises(LostRankError) as caught, meeting.meeting():
        TCPStore("127.0.0.1", 0, 2, is_master=True, timeout=timedelta(seconds=3))
    [line] = str(caught.value).splitlines()
    assert line.startswith(f"rank 1 does not find {PLACE.format('')}: Timed out after ")
    assert line.endswith("; see that each was started and reaches this address, then run the same command again")
    assert f"warning: rank 1 has been waiting for {PLACE.format('to meet ')} for 0." in capsys.readouterr().err
    assert exit_codes.of_error(caught.value) == 75
    assert json.loads(launched.read_text())["message"]["extraInfo"]["exit_code"] == 75


def test_ranks_of_one_machine_say_it_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(meeting, "MEETING_SECONDS", 0.01)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with meeting.meeting():
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("environment", "error"),
    [
        ({}, RuntimeError("CUDA error: invalid device ordinal")),
        ({}, DistBackendError("NCCL error in: x.cpp:1, invalid usage\nncclInvalidUsage\nLast error:\nDuplicate GPU detected")),
        ({"WORLD_SIZE": "two"}, ValueError("WORLD_SIZE is two")),
    ],
)
def test_what_fails_for_another_reason_fails_as_it_did(
    environment: dict[str, str], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(type(error)) as caught, meeting.meeting():
        raise error
    assert caught.value is error


def test_ranks_that_are_started_again_meet_apart_from_those_before() -> None:
    """As torchrun does with --max-restarts: its store lives on, with all that the ranks before have told each other."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def meet(rank: int, seconds: float = 20.0) -> str:
        client = TCPStore("127.0.0.1", store.port, is_master=False, timeout=timedelta(seconds=seconds))
        return meeting._name_of_start(client, rank, 3, timedelta(seconds=seconds))

    with ThreadPoolExecutor() as threads:
        before = list(threads.map(meet, (0, 1, 2)))
        with pytest.raises(DistError):  # the first rank of before answers no more
            meet(1, 0.5)
        with pytest.raises(DistError):  # the second rank never comes, though it has asked in starts before
            list(threads.map(meet, (0, 2), (0.5, 0.5)))
        again = list(threads.map(meet, (2, 1, 0)))
    assert len({*before}) == len({*again}) == 1
    assert before != again
