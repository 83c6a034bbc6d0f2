"""A checkpoint whose files say what no run writes, with a manifest that fits them, ends the start with one line."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stream_pretrain import cli
from stream_pretrain.config import Config
from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.rows.tokenizer_probe import EngineRecord
from stream_pretrain.errors import CheckpointError, ConfigError
from stream_pretrain.model.loading import LoadedModel
from stream_pretrain.training.files.run_directory import RunDirectory
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import stop_on_signals
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.start import corpus as start_corpus
from stream_pretrain.training.start import model as start_model
from stream_pretrain.training.start import setup as start
from stream_pretrain.training.state.background_writer import BackgroundWriter
from stream_pretrain.training.state.parallelism import accelerate_for_one_run, accelerator_for
from stream_pretrain.training.steps.saving import begin_save
from tests.corpora import documents, write_shard, write_tiny_bert
from tests.training.checkpoints import signed, unexpected
from tests.training.runs import prepared, run_here, steps_of, tiny_run

Change = Callable[[Path], None]
NUMBERS = (-1, 2**64, 1.5, "1", None, True, [], {})


def json_with(file: str, *place: str | int, value: Any) -> Change:
    """Put a value at a place of a file; at no place it becomes the file."""

    def change(checkpoint: Path) -> None:
        path = checkpoint / file
        content = json.loads(path.read_text())
        holder = {"": content}
        steps: list[Any] = ["", *place]
        for step in steps[:-1]:
            holder = holder[step]
        holder[steps[-1]] = value
        path.write_text(json.dumps(holder[""] if len(steps) == 1 else content))

    return change


def json_without(file: str, *place: str | int) -> Change:
    def change(checkpoint: Path) -> None:
        path = checkpoint / file
        content = holder = json.loads(path.read_text())
        for step in place[:-1]:
            holder = holder[step]
        del holder[place[-1]]
        path.write_text(json.dumps(content))

    return change


def bytes_of(file: str, content: bytes) -> Change:
    return lambda checkpoint: (checkpoint / file).write_bytes(content) and None


def tensors_with(file: str, change_them: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def change(checkpoint: Path) -> None:
        tensors = load_file(checkpoint / file)
        change_them(tensors)
        save_file(tensors, checkpoint / file)

    return change


def cursor_with(value: Any, *fields: str) -> Change:
    """With a value in the first lane's cursor."""

    def change(checkpoint: Path) -> None:
        for field in fields:
            json_with("stream.json", "lanes", 0, "sources", 0, Cursor._fields.index(field), value=value)(checkpoint)

    return change


def moved_to(other: str, file: str) -> Change:
    """A file of another step."""
    return lambda checkpoint: shutil.copy(checkpoint.with_name(other) / file, checkpoint / file) and None


def kinds() -> Iterator[tuple[str, Change]]:
    for file in ("trainer.json", "stream.json", "corpus.json"):
        for content in (b"", b"[]", b"null", b"7", b"\xff\xfe", b"{", b"[" * 100_000, b'{"a": ' * 100_000, b"1" * 5000):
            yield f"{file} is {content[:10]!r}", bytes_of(file, content)
        yield f"{file} is empty", bytes_of(file, b"{}")
    for file in ("model.safetensors", "optimizer.safetensors"):
        for content in (b"", b"\0" * 7, b"\xff" * 64, b"\x08" + b"\0" * 7 + b"{}      ", b"\x02" + b"\0" * 7 + b"[]"):
            yield f"{file} is {content[:10]!r}", bytes_of(file, content)
        first = "bert.embeddings.LayerNorm.bias"
        name = first if file.startswith("model") else f"exp_avg.{first}"
        yield f"{file} lacks one", tensors_with(file, lambda tensors, name=name: tensors.pop(name))
        yield f"{file} has one more", tensors_with(file, lambda tensors: tensors.update(more=torch.zeros(1)))
        for kind, other in {
            "short": torch.zeros(3),
            "a scalar": torch.tensor(0.0),
            "of float16": torch.zeros(16, dtype=torch.float16),
            "of int64": torch.zeros(16, dtype=torch.int64),
        }.items():
            yield f"{file} has one {kind}", tensors_with(file, lambda tensors, n=name, o=other: tensors.update({n: o}))
    yield "NaN weights", tensors_with("model.safetensors", lambda tensors: tensors[first].fill_(float("nan")))
    for steps in (-1.0, 0.0, 4.0, float("nan"), float("inf")):
        change = tensors_with("optimizer.safetensors", lambda t, s=steps: t.update({f"step.{first}": torch.tensor(s)}))
        yield f"{steps} updates", change
    for name in ("step", "totals", "fixed", "tokenizer", "max_steps"):
        for value in (*NUMBERS, "x"):
            fine = (name == "max_steps" and value is None) or (name == "fixed" and value == {})
            if not fine:
                yield f"{name} is {value!r}", json_with("trainer.json", name, value=value)
        yield f"no {name}", json_without("trainer.json", name)
    for name in ("tokens", "documents", "read", "skipped", "empty", "filtered", "stripes", "bad_steps", "segments"):
        for value in NUMBERS:
            yield f"{name} are {value!r}", json_with("trainer.json", "totals", name, value=value)
    for name in ("source_tokens", "source_documents"):
        for value in (7, None, ["x"], [-1], [1, 2], [2**70]):
            yield f"{name} are {value!r}", json_with("trainer.json", "totals", name, value=value)
    yield "unknown totals", json_with("trainer.json", "totals", "mood", value=1)
    yield "more bad steps than steps", json_with("trainer.json", "totals", "bad_steps", value=4)
    yield "options of no mixture", json_with("trainer.json", "fixed", "data.sources", value=7)
    yield "options of a mixture", json_with("trainer.json", "fixed", "data.sources", value=[{"name": "a"}])
    yield "versions", json_with("trainer.json", "versions", value=7)
    for value in (7, [], {"name": "tokenizers"}, {"name": 1, "version": "", "texts": "", "ids": ""}):
        yield f"engine is {value!r}", json_with("trainer.json", "engine", value=value)
    for name in ("version", "fields", "lanes"):
        for value in (*NUMBERS, "x", [[]]):
            yield f"{name} of the stream is {value!r}", json_with("stream.json", name, value=value)
        yield f"no {name} of the stream", json_without("stream.json", name)
    yield "a lane less", json_without("stream.json", "lanes", 0)
    for value in (None, 7, [], {}, {"sources": []}, {"sources": 7}, {"sources": [7]}, {"sources": [[1, 2]]}):
        yield f"a lane is {value!r}", json_with("stream.json", "lanes", 0, value=value)
    for name in Cursor._fields:
        for value in (-1, 2**64, 1.5, "1", None, True, []):
            if (name, value) != ("credit", -1):
                yield f"{name} is {value!r}", cursor_with(value, name)
    for name in ("compressed", "uncompressed", "stripe", "window", "taken", "rows"):
        yield f"{name} is far off", cursor_with(10**9, name)
    yield "a place far off", cursor_with(10**9, "compressed", "uncompressed")
    for name in ("next_document", "piece", "token", "taken"):
        yield f"{name} is off", cursor_with(15 if name == "taken" else 10**6, name)
    yield "credit is far off", cursor_with(10**12, "credit")
    for file in ("stream.json", "trainer.json", "optimizer.safetensors"):
        yield f"{file} of another step", moved_to("step-00000009", file)
    for name in ("version", "lanes", "sources"):
        for value in (*NUMBERS, "x", 0, 7):
            yield f"{name} of the corpus is {value!r}", json_with("corpus.json", name, value=value)
        yield f"no {name} of the corpus", json_without("corpus.json", name)
    for name in ("name", "window_bytes", "dataset", "revision", "shards"):
        for value in (*NUMBERS, 0):
            if (name, value) not in (("name", "1"), ("revision", None), ("revision", "1"), ("dataset", "1")):
                yield f"{name} of the source is {value!r}", json_with("corpus.json", "sources", 0, name, value=value)
        yield f"no {name} of the source", json_without("corpus.json", "sources", 0, name)
    for value in (*NUMBERS, 0, [7], [[0]], [[0, 1]], [[1, 3]], [["a", 2]], [[0, 2**70]]):
        if value != []:  # which another corpus may have
            yield f"bundles of the source are {value!r}", json_with("corpus.json", "sources", 0, "bundles", value=value)
    yield "no bundles of the source", json_without("corpus.json", "sources", 0, "bundles")
    yield "another source", json_with("corpus.json", "sources", 0, "name", value="other")
    yield "a shard twice", json_with("corpus.json", "sources", 0, "shards", 0, "name", value="b.jsonl")
    yield "shards in another order", json_with("corpus.json", "sources", 0, "shards", 0, "name", value="c.jsonl")
    for name in ("url", "name", "size", "identity", "format", "compression", "builder"):
        for value in (-1, 1.5, [], {}, True):
            yield f"{name} of a shard is {value!r}", json_with("corpus.json", "sources", 0, "shards", 0, name, value=value)
    for name in ("format", "compression"):
        yield f"{name} of a shard is new", json_with("corpus.json", "sources", 0, "shards", 0, name, value="new")
    yield "a shard with more", json_with("corpus.json", "sources", 0, "shards", 0, "more", value=1)
    yield "a shard without a name", json_without("corpus.json", "sources", 0, "shards", 0, "name")


KINDS = dict(kinds())


@dataclass(frozen=True)
class Run:
    """A run that has saved steps 3 and 9, and what its start takes its time for."""

    config: Config
    loaded: LoadedModel
    engine: EngineRecord

    def saved(self, step: int) -> Path:
        return Path(str(self.config.run.output_dir)) / "checkpoints" / f"step-{step:08d}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    (folder / "corpus").mkdir()
    for number, name in enumerate("ab"):
        write_shard(folder / "corpus" / name, documents(300, seed=number), "plain")
    config = tiny_run(folder / "corpus", write_tiny_bert(folder / "model"), folder / "out", max_steps=9)
    with prepared(config) as setup:
        writer = BackgroundWriter(folder / "out", lambda *_: None, pytest.fail, keep_last=9, keep_every=0)
        with writer:
            for step in steps_of(setup):
                if step.step in (3, 9):
                    begin_save(setup, writer)
        return Run(config, setup.parallel.loaded, setup.engine)


def go_on(run: Run, checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a new run where the checkpoint stands, as far as the first rows."""
    # What has nothing to do with the checkpoint, and takes most of the time.
    monkeypatch.setattr(start, "load_on_all_ranks", lambda *_: copy.deepcopy(run.loaded))
    monkeypatch.setattr(start_corpus, "probed", lambda *_: run.engine)
    monkeypatch.setattr(start_model, "isolation_fault", lambda *_: None)
    config = replace(run.config, run=replace(run.config.run, output_dir=str(out), resume=str(checkpoint)))
    with accelerate_for_one_run(), stop_on_signals() as stop, RunDirectory.own(out, [], unexpected) as owned:
        setup = start.set_up(config, [], accelerator_for(config), Ranks(0, 1), Progress(None), stop, owned)
        with StepStream(setup.plan, setup.cursors) as stream:
            for _ in range(3):
                next(stream)


def copied(run: Run, folder: Path) -> Path:
    for step in (3, 9):
        shutil.copytree(run.saved(step), folder / f"step-{step:08d}")
    return folder / "step-00000003"


def test_a_checkpoint_that_nothing_has_happened_to_is_gone_on_from(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = copied(run, tmp_path)
    signed(checkpoint)
    go_on(run, checkpoint, tmp_path / "out", monkeypatch)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.long if number % 4 else ()) for number, kind in enumerate(KINDS)]
)
def test_what_no_run_writes_is_one_line(kind: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = copied(run, tmp_path)
    KINDS[kind](checkpoint)
    signed(checkpoint)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        go_on(run, checkpoint, tmp_path / "out", monkeypatch)
    said = str(caught.value)
    assert "\n" not in said or "options that must not change" in said
    assert len(said) < 600


@pytest.mark.parametrize(
    "kind",
    [
        "stream.json is b'[[[[[[[[[['",
        "token is off",
        "no totals",
        "model.safetensors has one a scalar",
        "optimizer.safetensors lacks one",
    ],
)
def test_the_command_ends_with_that_line_alone(kind: str, run: Run, tmp_path: Path) -> None:
    checkpoint = copied(run, tmp_path)
    KINDS[kind](checkpoint)
    signed(checkpoint)
    data, model, out = run.config.data, run.config.model, tmp_path / "out"
    done = run_here(
        [
            *(f"--dataset={data.dataset}", f"--model.config={model.config}", f"--model.tokenizer={model.tokenizer}"),
            *("--sequence-length=64", "--lanes=8", "--data.window-bytes=2048", "--objective.mask-rate=0.3"),
            *("--global-batch-size=8", "--train.precision=fp32", "--max-steps=9", "--run.wandb=disabled"),
            *(f"--output-dir={out}", f"--resume={checkpoint}"),
        ]
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert done.stderr.count("error: ") == 1


@pytest.mark.parametrize("given", ["--model", "--init-from", "evaluate"])
def test_no_command_takes_weights_of_a_checkpoint_that_differ_from_its_manifest(
    given: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = copied(run, tmp_path)
    weights = bytearray((checkpoint / "model.safetensors").read_bytes())
    weights[-200] ^= 1
    (checkpoint / "model.safetensors").write_bytes(weights)
    (checkpoint / "optimizer.safetensors").unlink()  # not what they are about
    data, model = run.config.data, run.config.model
    options = {
        "--model": [f"--model={checkpoint}", f"--output-dir={tmp_path / 'out'}", "--max-steps=1", "--run.wandb=disabled"],
        "--init-from": [
            *(f"--model.config={model.config}", f"--model.tokenizer={model.tokenizer}", f"--init-from={checkpoint}"),
            *(f"--output-dir={tmp_path / 'out'}", "--max-steps=1", "--run.wandb=disabled"),
        ],
        "evaluate": ["evaluate", str(checkpoint)],
    }[given]
    assert cli.main([*options, f"--dataset={data.dataset}", "--sequence-length=64", "--workers=0"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {checkpoint / 'model.safetensors'} is damaged (its sha256 differs from MANIFEST.json): use another checkpoint"
    )
