"""Runs and streams of one process: none meets what another one has left there."""

from __future__ import annotations

import json
import logging
import pickle
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_pretrain.data.corpus.file_formats import Format
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.document import ReadOptions
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.lanes.readers import Readers
from stream_pretrain.data.lanes.row_layout import RowLayout
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.errors import SourceError
from tests.corpora import documents, write_shard, write_tiny_bert
from tests.integration.http_server import Server, serve
from tests.training.runs import run_here, run_to_end


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    write_shard(folder / "a", documents(60), "plain")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serve(folder) as server:
        yield server


def handlers_of_signals_and_loggers() -> tuple[object, ...]:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD)]
    loggers = [list(logging.getLogger(name).handlers) for name in (None, "stream_pretrain", "urllib3")]
    return handlers, loggers


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name != "read ahead"}


@pytest.mark.parametrize("wandb", ["disabled", pytest.param("offline", marks=pytest.mark.long)])
def test_a_run_is_not_refused_for_what_another_one_of_the_process_was(
    wandb: str, folder: Path, server: Server, tmp_path: Path
) -> None:
    model = write_tiny_bert(tmp_path / "model")
    options = [
        *(f"--dataset={server.url('a.jsonl')}", f"--model.config={model}", f"--model.tokenizer={model}", "--max-steps=2"),
        *("--sequence-length=32", "--global-batch-size=4", "--lanes=2", "--save-every=1", f"--run.wandb={wandb}"),
    ]
    run_to_end([*options, f"--output-dir={tmp_path}/first", "--train.precision=fp32"])
    before, running = handlers_of_signals_and_loggers(), threads()
    write_shard(folder / "a", documents(50, seed=1), "plain")
    run_to_end([*options, f"--output-dir={tmp_path}/second", "--train.precision=bf16"])
    third = run_here([*options, f"--output-dir={tmp_path}/first", "--train.precision=fp32", "--max-steps=3"])
    assert (third.returncode, "a.jsonl changed (it had " in third.stderr) == (1, True)
    assert handlers_of_signals_and_loggers() == before
    assert threads() <= running, "those of the first run's client may have ended meanwhile"
    for out in ("first", "second"):
        record = (tmp_path / out / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in record] == [1, 2]
    if wandb == "offline":
        assert (tmp_path / "first/wandb-id").read_text() != (tmp_path / "second/wandb-id").read_text()


# Streams


FORMATS: dict[str, tuple[Format, str | None]] = {
    "plain": ("jsonl", None),
    "parquet": ("parquet", None),
    "json": ("examples", "json"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_each_stream_holds_a_server_to_what_it_was_told_itself(kind: str, folder: Path, server: Server) -> None:
    style = "parquet" if kind == "parquet" else "plain"
    name = write_shard(folder / "b", documents(40), style).name
    shard = Shard(server.url(name), name, None, None, FORMATS[kind][0], "none", FORMATS[kind][1])
    read = ReadOptions("text", 1 << 20, 1 << 20, TransportOptions())
    layout = RowLayout(lanes=1, global_batch_size=1, sequence_length=32, packing="concat", seed=0)
    plan = SourcePlan(
        dataset="",
        revision=None,
        shards=(shard,),
        name="",
        window_bytes=1 << 20,
        bundles=(),
        group_rows=16,
        first_shard=0,
        layout=layout,
        heldout_fraction=0.0,
        max_epochs=None,
        read=read,
        skip_bad_shards=False,
        first_step_rows=0,
    )

    def texts(stream: Readers, epoch: int) -> list[str]:
        reader = stream.follow(0, epoch, Stripe(0), 0)
        try:
            found = reader.read(Stripe(0), 0, RestartPoint())
        finally:
            stream.leave(0, epoch, Stripe(0))
        assert found is not None
        return found.texts

    first = Readers(plan)
    assert texts(first, 0) == texts(first, 1) == documents(40)
    assert first.memory.seconds_waiting > 0
    write_shard(folder / "b", documents(30, seed=1), style)
    second = Readers(pickle.loads(pickle.dumps(plan)))
    assert second.memory.seconds_waiting == 0
    assert texts(second, 0) == documents(30, seed=1)
    with pytest.raises(SourceError, match=rf"{name}: was replaced since the run began to read it"):
        texts(first, 2)
