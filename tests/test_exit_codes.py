"""The table of exit codes, by the errors that end a run."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from safetensors import SafetensorError

from stream_pretrain import errors, exit_codes
from stream_pretrain.training.files.atomic_files import writing


def refused_write(error: Exception) -> errors.StreamPretrainError:
    with pytest.raises(errors.CheckpointError) as caught, writing("OUT"):
        raise error
    return caught.value


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("--max-steps"), 2),
        (errors.DeadlineError("a.zst: nothing for 1800 s"), 75),
        (errors.TransportError("a.zst: not found"), 1),
        (errors.EngineError("a.zst, offset 7: nanotoken 0.1.0 gives other ids"), 75),
        (errors.LostRankError("rank 1 on b shows no life any more"), 75),
        (refused_write(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))), 75),
        (refused_write(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))), 75),
        (refused_write(OSError("tokenizer: No space left on device (os error 28)")), 75),
        (refused_write(OSError(errno.EIO, os.strerror(errno.EIO))), 1),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 75),
        (RuntimeError("unable to write to file </torch_1>: No space left on device (28)"), 1),
        (ZeroDivisionError(), 1),
    ],
)
def test_an_error_has_75_where_the_same_command_resumes(error: Exception, code: int) -> None:
    assert exit_codes.of_error(error) == code


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND"])
def test_a_stop_is_0_below_a_launcher_alone(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("ACCELERATE_DYNAMO_BACKEND", raising=False)
    assert [exit_codes.of_stopped_process(name) for name in ("SIGTERM", "SIGINT", None)] == [75, 130, 75]
    monkeypatch.setenv(variable, "no")
    assert [exit_codes.of_stopped_process(name) for name in ("SIGTERM", "SIGINT", None)] == [0, 0, 0]
    assert [exit_codes.of_stop(name) for name in ("SIGTERM", "SIGINT", None)] == [75, 130, 75]


def test_the_readme_has_the_table() -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    [table] = re.findall(r"\| how it ended \|.*?\n\n", readme, re.DOTALL)
    codes = [line.split("|")[4].strip() for line in table.splitlines()[2:] if line]
    assert codes == ["0", "75", "130", "75", "75", "75", "1", "2", "137; 75 from a launch file"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError("tokenizer: No space left on device (os error 28)"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_in_the_same_words_whoever_writes(error: Exception) -> None:
    assert str(refused_write(error)) == (
        "OUT cannot be written (No space left on device): free some space, then run the same command again"
    )
