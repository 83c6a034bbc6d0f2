"""A stream that is interrupted, copied, or given a state that it cannot take goes on with the batch it has not given yet."""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest

from stream_pretrain import DataConfig, SourceConfig, StreamPretrainError, TokenStream
from stream_pretrain.config import ObjectiveConfig, WeightChange
from stream_pretrain.data.lanes.cursor import Cursor
from tests.corpora import documents, json_lines, word_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def stream_of(corpus: Any, **options: Any) -> TokenStream:
    usual = {"sequence_length": 64, "lanes": 4, "workers": 0, "global_batch_size": 8, "micro_batch_size": 4}
    stream = TokenStream(corpus, word_tokenizer(), **{**usual, **options})
    stream.is_prepared = True  # no model sees the rows
    return stream


def rows_of(stream: TokenStream, count: int) -> list[list[list[int]]]:
    return [batch["input_ids"].tolist() for batch in itertools.islice(stream, count)]


class InterruptAtCall:
    """A profile function that interrupts the n-th call into the package, as Ctrl-C may at any moment."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and "/stream_pretrain/" in frame.f_code.co_filename:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python drops one in a finalizer
def test_a_loop_that_goes_on_after_an_interrupt_anywhere_misses_no_batch_and_repeats_none(corpus: str) -> None:
    whole = rows_of(stream_of(corpus), 7)
    counting = InterruptAtCall(0)
    sys.setprofile(counting)
    rows_of(stream_of(corpus), 7)
    sys.setprofile(None)
    for number in range(1, -counting.left, -counting.left // 20):
        found: list[Any] = []
        stream = stream_of(corpus)
        sys.setprofile(InterruptAtCall(number))
        with suppress(KeyboardInterrupt):
            for batch in itertools.islice(stream, 7):
                found.append(batch["input_ids"].tolist())
        sys.setprofile(None)
        state = json.loads(json.dumps(stream.state_dict()))
        begun = stream_of(corpus)
        begun.load_state_dict(state)
        assert found + rows_of(begun, 7 - len(found)) == whole, f"interrupted at call {number}, from the state"
        assert found + rows_of(stream, 7 - len(found)) == whole, f"interrupted at call {number}"


def test_signals_to_a_process_group_are_for_the_loop_not_for_the_workers(corpus: str) -> None:
    whole = rows_of(stream_of(corpus), 60)
    with stream_of(corpus, workers=2) as stream:
        first = rows_of(stream, 1)
        send = "import os, sys, signal; [os.kill(int(pid), number) for pid in sys.argv[1:] for number in (2, 15, 1, 10)]"
        subprocess.run([sys.executable, "-c", send, *(str(one.pid) for one in multiprocessing.active_children())], check=True)
        assert first + rows_of(stream, 59) == whole


LEFT_BEHIND = """
import multiprocessing, os, signal, sys, time
from stream_pretrain.data.lanes.workers import Workers
from stream_pretrain.training.ranks.signals import leave_to_trainer

class WaitsForServer:
    def __iter__(self):
        yield 1
        time.sleep(600)

workers = Workers([WaitsForServer()], [None], 8, leave_to_trainer)
workers.receive(0)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_waits_ends_soon_after_a_trainer_that_is_killed() -> None:
    trainer = subprocess.run([sys.executable, "-c", LEFT_BEHIND], cwd=ROOT, check=False, capture_output=True, text=True)
    assert trainer.returncode == -signal.SIGKILL, trainer.stderr
    worker = int(trainer.stdout)
    deadline = time.monotonic() + 60
    while _runs(worker):
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_stream_goes_on_after_its_worker_was_killed_and_that_was_said(corpus: str) -> None:
    whole = rows_of(stream_of(corpus), 40)
    others = multiprocessing.active_children()
    with stream_of(corpus, workers=1) as stream:
        found = rows_of(stream, 1)
        [worker] = set(multiprocessing.active_children()) - set(others)
        os.kill(worker.pid or 0, signal.SIGKILL)
        with pytest.raises(StreamPretrainError, match="a data worker died"):
            found.extend(batch["input_ids"].tolist() for batch in stream)
        assert found + rows_of(stream, 40 - len(found)) == whole


# --- Copies ---


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_copy_goes_on_where_the_stream_stands_and_by_itself(
    corpus: str, workers: int, copied: Callable[[TokenStream], TokenStream]
) -> None:
    whole = rows_of(stream_of(corpus), 8)
    with stream_of(corpus, workers=workers) as stream:
        rows_of(stream, 3)
        with copied(stream) as other:
            assert rows_of(other, 5) == whole[3:]
            assert rows_of(stream, 5) == whole[3:]


# --- What is refused ---


def said_by(call: Callable[[], object]) -> str:
    with pytest.raises(StreamPretrainError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_state_that_no_stream_writes_is_refused_and_changes_nothing(corpus: str, tmp_path: Path) -> None:
    whole = rows_of(stream_of(corpus), 8)
    stream = stream_of(corpus)
    rows_of(stream, 3)
    state = json.loads(json.dumps(stream.state_dict()))
    no_run = "which no run writes: use another checkpoint"
    for name, value, expected in (
        ("micro_batches", 2, "the state is 2 micro-batches after step 1, which no stream writes"),
        ("micro_batches", -1, "the state is -1 micro-batches after step 1, which no stream writes"),
        ("micro_batches", "1", f"micro_batches of the state is '1', {no_run}"),
        ("micro_batches", 1.5, f"micro_batches of the state is 1.5, {no_run}"),
        ("step", "1", f"step of the state is '1', {no_run}"),
        ("fixed", None, f"fixed of the state is None, {no_run}"),
        ("corpus", [], f"corpus of the state is [], {no_run}"),
        ("step", -1, "the state is 1 micro-batches after step -1, which no stream writes"),
    ):
        assert said_by(lambda broken={**state, name: value}: stream.load_state_dict(broken)) == expected
    assert said_by(lambda: stream.load_state_dict(None)).startswith("this is not the state of a TokenStream: ")  # type: ignore[arg-type]
    (tmp_path / "other.jsonl").write_bytes(json_lines(documents(60, seed=5)))
    other = stream_of(tmp_path).state_dict()["corpus"]
    assert "is not the corpus this run began with" in said_by(lambda: stream.load_state_dict({**state, "corpus": other}))
    assert rows_of(stream, 5) == whole[3:]


@pytest.mark.parametrize("name", [*Cursor._fields, "micro_batches"])
def test_a_state_of_which_a_number_was_changed_is_refused_wherever_the_place_exists(corpus: str, name: str) -> None:
    stream = stream_of(corpus)
    rows_of(stream, 21)
    state = json.loads(json.dumps(stream.state_dict()))
    for lane in range(4) if name in Cursor._fields else (0,):
        for more in (-1, 1, 2):
            changed = json.loads(json.dumps(state))
            if name in Cursor._fields:
                changed["lanes"][lane]["sources"][0][Cursor._fields.index(name)] += more
            else:
                changed[name] = 1 - state[name]
            said_by(lambda changed=changed: stream.load_state_dict(changed))
    stream.load_state_dict(state)


def test_a_state_without_a_checksum_is_of_an_earlier_version_and_goes_on(corpus: str) -> None:
    stream = stream_of(corpus)
    first = rows_of(stream, 3)
    state = {name: value for name, value in stream.state_dict().items() if name != "sha256"}
    begun = stream_of(corpus)
    begun.load_state_dict(state)
    assert first + rows_of(begun, 5) == rows_of(stream_of(corpus), 8)


def test_options_of_another_type_are_refused_in_one_line(corpus: str, tmp_path: Path) -> None:
    source = SourceConfig("a", corpus)
    said = {
        "--data.sequence-length is '64', not a whole number": {"sequence_length": "64"},
        "--train.global-batch-size is 8.0, not a whole number": {"global_batch_size": 8.0},
        "--train.micro-batch-size is True, not a whole number": {"micro_batch_size": True},
        "--train.seed is nothing, not a whole number": {"seed": None},
        "--train.max-epochs is 0.5, not a whole number or none": {"max_epochs": 0.5},
        "--objective.mask-rate is '0.3', not a number": {"objective": ObjectiveConfig(mask_rate="0.3")},  # type: ignore[arg-type]
        "--data.window-bytes is '4096', not a whole number or auto": {"corpus": DataConfig(corpus, window_bytes="4096")},  # type: ignore[arg-type]
        "--data.sources is a list, not a tuple of SourceConfig": {"corpus": DataConfig(sources=[source])},  # type: ignore[arg-type]
        "--data.sources: weight is '2', not a number": {"corpus": DataConfig(sources=(SourceConfig("a", corpus, "2"),))},  # type: ignore[arg-type]
        "--data.weight-schedule: weights is a list, not a mapping": {
            "corpus": DataConfig(sources=(source,), weight_schedule=(WeightChange(3, [1]),))  # type: ignore[arg-type]
        },
        "--data.storage-options is a mapping, not text or none": {"corpus": DataConfig(corpus, storage_options={"key": "k"})},  # type: ignore[arg-type]
        "dataset is of type list: give a name, a path or a DataConfig": {"corpus": [corpus]},
    }  # fmt: skip
    for expected, options in said.items():
        assert said_by(lambda options=options: stream_of(**{"corpus": corpus, **options})) == expected
    assert said_by(lambda: TokenStream(corpus, object())) == (  # type: ignore[arg-type]
        "the tokenizer is of type object: give one that AutoTokenizer loads, a fast one"
    )
    assert rows_of(stream_of(Path(corpus)), 2) == rows_of(stream_of(corpus), 2)
