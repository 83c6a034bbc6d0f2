"""One rank in trouble: all leave, one line says which rank and why, and what is on the disk stays whole."""

from __future__ import annotations

import json
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM

from stream_pretrain.training.state.checkpoint import verify
from tests.corpora import documents, write_shard, write_tiny_bert
from tests.integration.jobs import (
    START_SECONDS,
    Job,
    apart,
    assert_goes_on,
    checkpoints,
    job,
    lines,
    recorded,
    started,
    tiny_options,
)

long = pytest.mark.long
OUT_SECONDS = 30.0


def assert_failed(running: Job, out: Path, message: str) -> None:
    """All are out in time; one line has the message, and run.json too."""
    assert running.wait(OUT_SECONDS) != 0
    assert len(running.errors()) == 1, running.stderr
    assert message in running.errors()[0]
    run = recorded(out)
    assert run["state"] == "failed"
    assert message in run["error"]
    for step in checkpoints(out):
        verify(out / "checkpoints" / f"step-{step:08d}")


@long
@pytest.mark.parametrize("broken", [1, 0])
def test_a_damaged_shard_of_one_rank_ends_all_and_is_named(tmp_path: Path, model: Path, out: Path, broken: int) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for i in range(2):
        shard = write_shard(folder / f"s{i}", documents(200 if i == 0 else 180, seed=i), "zst")
        if i == broken:
            shard.write_bytes(shard.read_bytes()[:-100])
    with job(2, tiny_options(folder, model, out, "--lanes=2", "--save-every=1"), out.with_suffix(".log")) as running:
        running.until(lambda: "resolving the corpus…" in running.stderr)
        assert_failed(running, out, f"s{broken}.jsonl.zst")
        assert ": rank " in running.errors()[0]


def data_worker(rank: psutil.Process) -> psutil.Process:
    [worker] = [child for child in rank.children() if child.cmdline() == rank.cmdline()]
    return worker


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=long)])
def test_a_killed_data_worker_ends_all_ranks_and_is_named(corpus: Path, model: Path, out: Path, rank: int) -> None:
    with job(2, tiny_options(corpus, model, out, "--save-every=1"), out.with_suffix(".log")) as running:
        running.until(lambda: len(checkpoints(out)) > 2)
        data_worker(running.ranks()[rank]).kill()
        assert_failed(running, out, f"rank {rank}: a data worker died")
    _, summed_up = running.stderr.split("Root Cause (first observed failure):")
    assert f"traceback : TrainingError: rank {rank}: a data worker died" in summed_up


def test_a_killed_rank_ends_all_and_is_named_and_the_next_run_goes_on(corpus: Path, model: Path, out: Path) -> None:
    arguments = tiny_options(corpus, model, out, "--save-every=1")
    with job(2, arguments, out.with_suffix(".log")) as running:
        running.until(lambda: len(checkpoints(out)) > 2)
        running.ranks()[1].kill()
        assert_failed(running, out, "rank 1 died without an error")
    assert_goes_on(arguments, out, checkpoints(out)[-1])


@long
def test_where_the_first_rank_is_killed_the_others_leave_and_one_says_so(corpus: Path, model: Path, out: Path) -> None:
    with job(3, tiny_options(corpus, model, out, "--save-every=1"), out.with_suffix(".log")) as running:
        running.until(lambda: len(checkpoints(out)) > 2)
        running.ranks()[0].kill()
        assert running.wait(OUT_SECONDS) != 0
    assert running.errors() == ["error: rank 0 died without an error: it was killed, perhaps for lack of memory"]
    assert recorded(out)["state"] == "running"
    for step in checkpoints(out):
        verify(out / "checkpoints" / f"step-{step:08d}")


# The collectives of GPUs do not fail when a rank is gone, they wait.
HANGING = """
import sys, time
from accelerate import Accelerator
from stream_pretrain.cli import main
from stream_pretrain.training.ranks.ranks import Ranks

def hang(collective):
    def called(*arguments):
        try:
            return collective(*arguments)
        except RuntimeError:
            time.sleep(600)
    return called

Ranks.sum, Ranks.gather, Accelerator.backward = hang(Ranks.sum), hang(Ranks.gather), hang(Accelerator.backward)
sys.exit(main())
"""


@pytest.mark.parametrize(("killed", "state"), [(1, "failed"), pytest.param(0, "running", marks=long)])
def test_where_collectives_hang_the_others_leave_too(
    corpus: Path, model: Path, out: Path, tmp_path: Path, killed: int, state: str
) -> None:
    program = tmp_path / "hanging.py"
    program.write_text(HANGING)
    arguments = tiny_options(corpus, model, out, "--save-every=1")
    with job(2, arguments, out.with_suffix(".log"), program=[str(program)]) as running:
        running.until(lambda: len(checkpoints(out)) > 2)
        running.ranks()[killed].kill()
        assert running.wait(OUT_SECONDS) != 0
    assert running.errors() == [f"error: rank {killed} died without an error: it was killed, perhaps for lack of memory"]
    assert recorded(out)["state"] == state


@pytest.mark.parametrize(
    ("killed", "said"),
    [
        (1, "rank 1 on machine1 has no heartbeat: it or its machine was lost, cut off or stopped"),
        pytest.param(0, "rank 0 died without an error: it was killed, perhaps for lack of memory", marks=long),
    ],
)
def test_a_rank_that_is_lost_with_its_machine_is_missed_by_the_others(
    corpus: Path, model: Path, out: Path, killed: int, said: str
) -> None:
    with apart(2, tiny_options(corpus, model, out, "--save-every=1"), out.with_suffix(".log"), HANGING) as ranks:
        ranks[0].until(lambda: len(checkpoints(out)) > 2)
        ranks[killed].process.kill()
        assert ranks[1 - killed].wait(OUT_SECONDS) != 0
    assert ranks[1 - killed].errors() == [f"error: {said}"]
    assert recorded(out)["state"] == "running", "a launcher starts it again"
    assert recorded(out).get("error", said).endswith(said)


@long
def test_a_first_rank_whose_machine_falls_silent_is_missed_though_its_store_does_not_answer(
    corpus: Path, model: Path, out: Path
) -> None:
    with apart(2, tiny_options(corpus, model, out, "--save-every=1"), out.with_suffix(".log"), PLAIN) as ranks:
        ranks[0].until(lambda: len(checkpoints(out)) > 2)
        ranks[0].process.send_signal(signal.SIGSTOP)  # its connections stay open, as those of a machine without power do
        assert ranks[1].wait(OUT_SECONDS) != 0
    assert ranks[1].errors() == ["error: rank 0 on machine0 has no heartbeat: it or its machine was lost, cut off or stopped"]


PLAIN = "import sys\nfrom stream_pretrain.cli import main\nsys.exit(main())"


@long
def test_collectives_that_fail_as_a_machine_is_lost_are_told_apart_from_an_error_of_the_program(
    corpus: Path, model: Path, out: Path
) -> None:
    with apart(2, tiny_options(corpus, model, out, "--save-every=1"), out.with_suffix(".log"), PLAIN) as ranks:
        ranks[0].until(lambda: len(checkpoints(out)) > 2)
        ranks[1].process.kill()
        assert ranks[0].wait(OUT_SECONDS) != 0
    assert ranks[0].errors() == ["error: rank 1 on machine1 has no heartbeat: it or its machine was lost, cut off or stopped"]
    assert "Traceback" not in ranks[0].stderr


@long
def test_a_rank_out_of_memory_ends_all_and_is_told_what_to_do(corpus: Path, tmp_path: Path, out: Path) -> None:
    model = write_tiny_bert(tmp_path / "model")
    BertConfig.from_pretrained(model, intermediate_size=262_144, num_hidden_layers=1).save_pretrained(model)
    with job(2, tiny_options(corpus, model, out), out.with_suffix(".log")) as running:
        running.until(lambda: len(lines(out / "metrics.jsonl")) > 1)
        rank = running.ranks()[1]
        # Each step wants blocks of 64 MiB, which come straight from the system; what little the end needs is left.
        rank.rlimit(psutil.RLIMIT_AS, (rank.memory_info().vms // 2, psutil.RLIM_INFINITY))
        assert_failed(
            running, out, "rank 1: out of memory: halve --micro-batch-size; the rows and masks of a step stay the same"
        )


# What goes wrong in one rank, in a way that nobody has thought of.
FAILING = """
import os, sys
from stream_pretrain.cli import main
from stream_pretrain.training.steps import loop

def fail(*arguments, batches=loop.micro_batches, calls=[]):
    calls.append(arguments)
    if os.environ["RANK"] == "1" and len(calls) == 6:
        raise ZeroDivisionError("as it happens")
    return batches(*arguments)

loop.micro_batches = fail
sys.exit(main())
"""


@long
def test_an_exception_on_one_rank_ends_all_and_is_the_only_one_shown(
    corpus: Path, model: Path, out: Path, tmp_path: Path
) -> None:
    program = tmp_path / "failing.py"
    program.write_text(FAILING)
    with job(2, tiny_options(corpus, model, out), out.with_suffix(".log"), program=[str(program)]) as running:
        running.until(lambda: "resolving the corpus…" in running.stderr)
        assert running.wait(OUT_SECONDS) != 0
    shown = [line for line in running.stderr.splitlines() if "ZeroDivisionError:" in line]
    assert [line for line in shown if "traceback :" not in line] == ["ZeroDivisionError: as it happens"]
    assert running.stderr.count("Traceback (most recent call last)") == 2, "that of rank 1 and that of torchrun"
    assert recorded(out)["state"] == "failed"
    assert recorded(out)["error"] == "rank 1: ZeroDivisionError: as it happens"


# Where the first rank has more to put away than the others have patience for.
SLOW_TO_LEAVE = """
import os, sys, time
from stream_pretrain.cli import main
from stream_pretrain.training.state import checkpoint
from stream_pretrain.training.steps import loop
from stream_pretrain.training.ranks import peers
from stream_pretrain.training.report import tracking

peers.EXIT_SECONDS = peers.COLLECTIVE_FAILURE_SECONDS = 1.0

def slowly(*arguments, write=checkpoint.write):
    time.sleep(6)
    return write(*arguments)

def late(*arguments, finish=tracking.Tracker.finish):
    finish(*arguments)
    time.sleep(6)

def fail(*arguments, batches=loop.micro_batches, calls=[]):
    calls.append(arguments)
    if os.environ["RANK"] == os.environ["FAILING"] and len(calls) == 6:
        raise ZeroDivisionError("as it happens")
    return batches(*arguments)

def hang(*arguments, batches=loop.micro_batches, calls=[]):
    calls.append(arguments)
    if os.environ["RANK"] == "0" and len(calls) == 6:
        time.sleep(600)
    return batches(*arguments)

if "FAILING" in os.environ:
    checkpoint.write, loop.micro_batches = slowly, fail
elif "HANGING" in os.environ:
    checkpoint.write, loop.micro_batches = slowly, hang
elif os.environ["RANK"] == "0":
    tracking.Tracker.finish = late
sys.exit(main())
"""


@pytest.fixture
def slow(tmp_path: Path) -> list[str]:
    program = tmp_path / "slow.py"
    program.write_text(SLOW_TO_LEAVE)
    return [str(program)]


@pytest.mark.parametrize("failing", [0, pytest.param(1, marks=long)])
def test_a_checkpoint_that_is_being_written_when_a_rank_fails_is_written_to_its_end(
    corpus: Path, model: Path, out: Path, slow: list[str], failing: int
) -> None:
    arguments = tiny_options(corpus, model, out, "--save-every=4")
    with job(2, arguments, out.with_suffix(".log"), {"FAILING": str(failing)}, program=slow) as running:
        running.until(lambda: "resolving the corpus…" in running.stderr)
        assert running.wait(OUT_SECONDS) != 0
    assert recorded(out)["error"] == f"rank {failing}: ZeroDivisionError: as it happens"
    assert checkpoints(out) == [4], running.stderr


@long
def test_a_checkpoint_that_is_being_written_where_the_first_rank_hangs_is_written_to_its_end(
    corpus: Path, model: Path, out: Path, slow: list[str]
) -> None:
    arguments = tiny_options(corpus, model, out, "--save-every=4")
    with job(2, arguments, out.with_suffix(".log"), {"HANGING": "yes"}, program=slow) as running:
        running.until(lambda: len(lines(out / "metrics.jsonl")) > 4)
        running.ranks()[1].kill()
        assert running.wait(OUT_SECONDS) != 0
    assert recorded(out)["state"] == "failed"
    assert checkpoints(out) == [4], running.stderr


@long
def test_a_rank_that_is_killed_behind_the_end_does_not_make_a_failure_of_it(
    corpus: Path, model: Path, out: Path, slow: list[str]
) -> None:
    arguments = tiny_options(corpus, model, out, "--max-steps=2")
    with job(2, arguments, out.with_suffix(".log"), program=slow) as running:
        running.until(lambda: (out / "run.json").exists() and recorded(out)["state"] == "finished")
        running.ranks()[1].kill()
        running.wait(OUT_SECONDS)
    assert recorded(out)["state"] == "finished", running.stderr


# The watchdog of a run, with less patience.
WATCHED = """
import sys
from stream_pretrain.cli import main
from stream_pretrain.training.ranks.watchdog import Watchdog
Watchdog.__init__.__defaults__ = (3.0,)
sys.exit(main())
"""


@long
def test_a_rank_that_is_stopped_is_named_and_nothing_ends(corpus: Path, model: Path, out: Path) -> None:
    with job(2, tiny_options(corpus, model, out), out.with_suffix(".log")) as running:
        running.until(lambda: len(lines(out / "metrics.jsonl")) > 1)
        stopped = running.ranks()[1]
        stopped.suspend()
        running.until(lambda: "warning: rank 1 has no heartbeat, but its process exists" in running.stderr)
        stopped.resume()
        step = lines(out / "metrics.jsonl")[-1]["step"]
        running.until(lambda: lines(out / "metrics.jsonl")[-1]["step"] > step + 2)


@long
def test_a_stall_is_reported_with_rank_and_stage_and_ends_nothing(corpus: Path, model: Path, out: Path, tmp_path: Path) -> None:
    program = tmp_path / "watched.py"
    program.write_text(WATCHED)
    with job(2, tiny_options(corpus, model, out), out.with_suffix(".log"), program=[str(program)]) as running:
        running.until(lambda: len(lines(out / "metrics.jsonl")) > 1)
        stalled = data_worker(running.ranks()[1])
        stalled.suspend()
        running.until(lambda: "warning: rank 1 has been waiting for data for" in running.stderr)
        running.until(lambda: "warning: rank 0 has been waiting for the other ranks for" in running.stderr)
        stalled.resume()
        step = lines(out / "metrics.jsonl")[-1]["step"]
        running.until(lambda: lines(out / "metrics.jsonl")[-1]["step"] > step + 2)


# --- steps that are not finite


def write_bert(folder: Path) -> Path:
    """Weights whose last position overflows: finite themselves, the loss of a row with a document so long is not."""
    torch.manual_seed(0)
    write_tiny_bert(folder, dropout=0.0)
    bert = BertForMaskedLM(BertConfig.from_pretrained(folder))
    bert.bert.embeddings.position_embeddings.weight.data[63] = 3e38
    bert.save_pretrained(folder)
    return folder


def one_in_fifty_is_long(folder: Path) -> Path:
    folder.mkdir()
    for i in range(2):
        texts = [
            f"{text} {'lost ' * 80}" if n % 50 == 49 else text for n, text in enumerate(documents(400, seed=i, longest=20))
        ]
        write_shard(folder / f"s{i}", texts, "plain")
    return folder


def finite(path: Path) -> bool:
    return all(torch.isfinite(tensor).all() for tensor in load_file(path).values())


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all_and_its_documents_are_named(tmp_path: Path, out: Path) -> None:
    weights = write_bert(tmp_path / "model")
    corpus = one_in_fifty_is_long(tmp_path / "corpus")
    arguments = [
        *(f"--dataset={corpus}", f"--model={weights}", f"--output-dir={out}", "--sequence-length=64", "--lanes=4"),
        *("--global-batch-size=4", "--micro-batch-size=2", "--max-steps=60", "--log-every=1", "--save-every=1"),
        *("--run.keep-last=100", "--run.wandb=disabled", "--data.window-bytes=9000"),
    ]
    with job(2, arguments, out.with_suffix(".log")) as running:
        assert running.wait(START_SECONDS) == 0, running.stderr
    bad = lines(out / "bad_steps.jsonl")
    steps = {record["step"] for record in bad}
    assert 0 < len(steps) < 40
    assert len(steps) == len(bad)
    texts = {}
    for shard in corpus.iterdir():
        offset = 0
        for line in shard.read_bytes().splitlines(keepends=True):
            texts[shard.name, offset] = json.loads(line)["text"]
            offset += len(line)
    for record in bad:
        assert any(
            "lost lost lost" in texts[Path(document["shard"]).name, document["offset"]] for document in record["documents"]
        )
    assert checkpoints(out) == [step for step in range(1, 61) if step not in steps or step == 60]
    assert all(finite(path) for path in (out / "checkpoints").glob("*/*.safetensors"))
    assert [line["step"] for line in lines(out / "metrics.jsonl")] == list(range(1, 61))


@long
def test_a_run_that_diverges_ends_and_leaves_only_checkpoints_from_before(model: Path, corpus: Path, out: Path) -> None:
    arguments = tiny_options(
        corpus, model, out, "--train.learning-rate=1e30", "--save-every=1", "--run.keep-last=9", "--train.max-bad-steps=2"
    )
    with job(2, arguments, out.with_suffix(".log")) as running:
        running.until(lambda: "resolving the corpus…" in running.stderr)
        assert_failed(running, out, "not finite in 3 steps in a row, up to step 4")
    assert [record["step"] for record in lines(out / "bad_steps.jsonl")] == [2, 3, 4]
    assert checkpoints(out) == [1]
    assert all(finite(path) for path in (out / "checkpoints").glob("*/*.safetensors"))
    assert not (out / "model").exists()


# --- who speaks and who writes


@long
def test_the_first_rank_alone_writes_and_speaks(corpus: Path, model: Path, out: Path) -> None:
    with job(2, tiny_options(corpus, model, out, "--save-every=1", "--max-steps=40"), out.with_suffix(".log")) as running:
        held = set()
        while running.process.poll() is None:
            with suppress(psutil.NoSuchProcess, IndexError):
                other = running.ranks()[1]
                for process in (other, *other.children()):
                    held |= {file.path for file in process.open_files() if file.path.startswith(f"{out}/")}
            time.sleep(0.05)
        assert running.wait(START_SECONDS) == 0, running.stderr
    assert not held
    said = running.stderr.splitlines()
    for beginning in ("loading the model… ", "resolving the corpus… ", "step 40/40 ", "finished; "):
        assert len([line for line in said if line.startswith(beginning)]) == 1, beginning
    assert len(lines(out / "metrics.jsonl")) == 40


@pytest.mark.parametrize("lost", ["the folder", pytest.param("the lock", marks=long)])
@pytest.mark.parametrize("world", [1, pytest.param(2, marks=long)])
def test_a_run_whose_folder_is_taken_away_ends_and_does_not_make_it_anew(
    corpus: Path, model: Path, out: Path, world: int, lost: str
) -> None:
    arguments = tiny_options(corpus, model, out, "--save-every=1")
    alone = started([sys.executable, "-m", "stream_pretrain", *arguments], out.with_suffix(".log"), forked=True)
    with alone if world == 1 else job(world, arguments, out.with_suffix(".log")) as running:
        running.until(lambda: len(checkpoints(out)) > 2)
        if lost == "the folder":
            out.rename(out.with_name("elsewhere"))
        else:
            (out / "lock").unlink()
        assert running.wait(OUT_SECONDS) == 1
    said = f"error: {out} or its lock was removed or replaced during the run, which writes nothing more to it"
    assert len(running.errors()) == 1, running.stderr
    assert running.errors()[0].startswith(said)
    assert world > 1 or "Traceback" not in running.stderr  # that of the launcher is its own
    assert out.exists() == (lost == "the lock")
    kept = out if lost == "the lock" else out.with_name("elsewhere")
    for step in checkpoints(kept):
        verify(kept / "checkpoints" / f"step-{step:08d}")
    assert recorded(kept)["state"] == "running", "as after the loss of the process"
    out.with_name("elsewhere").rename(out) if lost == "the folder" else None
    assert_goes_on(arguments, out, checkpoints(out)[-1])
