"""Checkpoints are whole or not there, and give back what was put in."""

import json
import os
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
)

from stream_pretrain.errors import CheckpointError
from stream_pretrain.model.loading import Export
from stream_pretrain.training.state import background_writer, checkpoint
from stream_pretrain.training.state.background_writer import BackgroundWriter
from stream_pretrain.training.state.checkpoint import Snapshot
from stream_pretrain.training.state.model_state import HostCopies, read_tensors
from tests.training.checkpoints import flip_a_bit, folders, run_beside, small_snapshot, tokenizer, trainer_of, unexpected


def test_a_checkpoint_gives_back_what_was_put_in(tmp_path: Path) -> None:
    written = checkpoint.write(small_snapshot(7), tmp_path)
    saved = checkpoint.read(written)
    assert written == tmp_path / "step-00000007"
    assert (saved.trainer.step, saved.stream, saved.corpus) == (7, {"lanes": [[0, 7]]}, {"shards": ["a.jsonl"]})
    assert saved.trainer == trainer_of(7)
    assert read_tensors(written / "model.safetensors")["weight"].tolist() == [7.0, 7.0, 7.0, 7.0]
    assert read_tensors(written / "optimizer.safetensors")["exp_avg.weight"].tolist() == [3.5, 3.5, 3.5, 3.5]
    assert folders(tmp_path) == ["step-00000007"]


def test_the_manifest_lists_every_other_file(tmp_path: Path) -> None:
    written = checkpoint.write(small_snapshot(7), tmp_path)
    listed = json.loads((written / "MANIFEST.json").read_text())["files"]
    assert sorted([*listed, "MANIFEST.json"]) == folders(written)
    assert set(checkpoint.REQUIRED) | {"tokenizer.json"} <= set(listed)
    assert listed["stream.json"] == {
        "size": 19,
        "sha256": "7744e38dcc6be6561570eca28c11ade4078be78a737c03ff2f398aec730adcec",
    }


def test_all_files_of_a_checkpoint_can_be_read_by_those_who_can_read_one(tmp_path: Path) -> None:
    written = checkpoint.write(small_snapshot(7), tmp_path)
    assert len({path.stat().st_mode for path in written.iterdir()}) == 1


def test_a_checkpoint_is_a_model_that_transformers_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=5, max_position_embeddings=8, architectures=["BertForMaskedLM"], **shape)
    model = BertForMaskedLM(config).eval()
    model.save_pretrained(tmp_path / "reference")
    with safe_open(tmp_path / "reference" / "model.safetensors", "pt") as file:
        untied = set(file.keys())
    weights = HostCopies().of({name: value for name, value in model.state_dict().items() if name in untied})
    assert len(weights) < len(model.state_dict())
    export = Export(weights, model.config, tokenizer())
    snapshot = Snapshot(export, {}, {}, b"{}", trainer_of(1))
    ids = torch.tensor([[3, 2, 4]])
    checkpoint.write_model(export, tmp_path / "model")
    for folder in (checkpoint.write(snapshot, tmp_path), tmp_path / "model"):
        loaded, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
        assert AutoTokenizer.from_pretrained(folder)("one two")["input_ids"] == [3, 4]


def test_writing_the_model_again_replaces_the_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    checkpoint.write_model(small_snapshot(1).export, tmp_path / "model")
    assert folders(tmp_path) == ["model"]
    assert "old" not in folders(tmp_path / "model")
    assert "model.safetensors" in folders(tmp_path / "model")


@pytest.mark.parametrize("name", [*checkpoint.REQUIRED, "tokenizer.json", "MANIFEST.json"])
def test_a_flipped_bit_is_found_and_its_file_named(tmp_path: Path, name: str) -> None:
    written = checkpoint.write(small_snapshot(7), tmp_path)
    flip_a_bit(written / name)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        checkpoint.verify(written)


def test_a_short_or_missing_file_is_named(tmp_path: Path) -> None:
    written = checkpoint.write(small_snapshot(7), tmp_path)
    os.truncate(written / "optimizer.safetensors", 20)
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors is damaged \(its size differs"):
        checkpoint.verify(written)
    (written / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors cannot be read \(No such file"):
        checkpoint.verify(written)


def test_a_manifest_that_leaves_out_a_file_or_has_another_format_is_refused(tmp_path: Path) -> None:
    written = checkpoint.write(small_snapshot(7), tmp_path)
    manifest = json.loads((written / "MANIFEST.json").read_text())
    (written / "MANIFEST.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(CheckpointError, match="has format 2, this version reads format 1"):
        checkpoint.verify(written)
    del manifest["files"]["stream.json"]
    (written / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"does not list stream\.json"):
        checkpoint.verify(written)


def test_without_checkpoints_there_is_no_latest(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "checkpoints", unexpected) is None
    assert checkpoint.latest(tmp_path, unexpected) is None


def test_the_latest_is_the_highest_step_also_beyond_eight_digits(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 5):
        checkpoint.write(small_snapshot(step), tmp_path)
    assert checkpoint.latest(tmp_path, unexpected) == tmp_path / "step-100000000"


def test_a_damaged_newest_checkpoint_is_reported_and_put_aside_for_the_next_older(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.write(small_snapshot(step), tmp_path)
    flip_a_bit(tmp_path / "step-00000003" / "model.safetensors")
    lines: list[str] = []
    assert checkpoint.latest(tmp_path, lines.append) == tmp_path / "step-00000002"
    assert len(lines) == 1
    assert "step-00000003/model.safetensors is damaged" in lines[0]
    assert "falling back to step-00000002" in lines[0]
    assert folders(tmp_path) == ["damaged-step-00000003", "step-00000001", "step-00000002"]
    assert checkpoint.latest(tmp_path, unexpected) == tmp_path / "step-00000002"


def test_when_all_checkpoints_are_damaged_the_run_is_refused_and_nothing_moved(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.write(small_snapshot(step), tmp_path)
        flip_a_bit(tmp_path / f"step-{step:08d}" / "stream.json")
    with pytest.raises(CheckpointError, match=r"all checkpoints are damaged; the newest: .*step-00000002/stream\.json"):
        checkpoint.latest(tmp_path, unexpected)
    assert folders(tmp_path) == ["step-00000001", "step-00000002"]


def test_leftovers_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    checkpoint.write(small_snapshot(1), tmp_path)
    for name in (".tmp-step-00000002", ".old-step-00000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    checkpoint.latest(tmp_path, unexpected)
    assert folders(tmp_path) == ["step-00000001"]


def test_a_step_that_is_whole_is_not_written_again_and_a_damaged_one_is(tmp_path: Path) -> None:
    written = checkpoint.write(small_snapshot(1), tmp_path)
    identity = written.stat().st_ino
    checkpoint.write(small_snapshot(1), tmp_path)
    assert written.stat().st_ino == identity
    flip_a_bit(written / "model.safetensors")
    checkpoint.write(small_snapshot(1), tmp_path)
    assert written.stat().st_ino != identity
    checkpoint.verify(written)
    assert folders(tmp_path) == ["step-00000001"]


def test_pruning_keeps_the_newest_and_every_nth_and_the_cursors_of_the_others(tmp_path: Path) -> None:
    directory, cursors = tmp_path / "checkpoints", tmp_path / "cursors"
    for step in (1, 2, 3, 4, 5):
        checkpoint.write(small_snapshot(step), directory)
    checkpoint.prune(directory, newest=5, keep_last=2, keep_every=2, cursors=cursors, report=unexpected)
    assert folders(directory) == ["step-00000002", "step-00000004", "step-00000005"]
    assert folders(cursors) == ["step-00000001.json", "step-00000003.json"]
    assert json.loads((cursors / "step-00000003.json").read_text()) == {"lanes": [[0, 3]]}
    checkpoint.prune(directory, newest=5, keep_last=1, keep_every=0, cursors=cursors, report=unexpected)
    assert folders(directory) == ["step-00000005"]


def test_pruning_never_counts_a_checkpoint_that_was_put_aside(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    for step in (1, 3):
        checkpoint.write(small_snapshot(step), directory)
    flip_a_bit(directory / "step-00000003" / "model.safetensors")
    checkpoint.latest(directory, [].append)
    checkpoint.write(small_snapshot(2), directory)
    checkpoint.prune(directory, newest=5, keep_last=1, keep_every=0, cursors=tmp_path / "cursors", report=unexpected)
    assert folders(directory) == ["damaged-step-00000003", "step-00000002"]


def test_a_writer_killed_at_any_moment_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    killed_often = """
import json, os, signal, time
import torch
torch.set_num_threads(1)  # a forked child has none of its parent's pool of threads and would wait for them for ever
directory = Path(sys.argv[1])
for fraction in (0.1, 0.25, 0.4, 0.55, 0.7, 0.85):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        for step in range(int(1e6 * fraction), 10_000_000):
            checkpoint.write(small_snapshot(step, 300_000), directory)
            os.write(writer, step.to_bytes(4, "big"))
    os.read(reader, 4)
    began = time.monotonic()
    told = os.read(reader, 4)
    time.sleep(fraction * (time.monotonic() - began))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writer)
    while more := os.read(reader, 4):  # on a busy machine the child was ahead of this process
        told = more
    done = int.from_bytes(told, "big")
    half_written = len(list(directory.glob(".tmp-*")))
    damaged = []
    found = checkpoint.latest(directory, damaged.append)
    weights = read_tensors(found / "model.safetensors")["weight"]
    print(json.dumps([done, half_written, checkpoint.read(found).trainer.step, weights.unique().tolist(), damaged]))
"""
    lines = run_beside(killed_often, tmp_path)
    assert len(lines) == 6
    seen_half_written = 0
    for line in lines:
        done, half_written, found, weights, damaged = json.loads(line)
        assert done <= found <= done + 1
        assert weights == [found]
        assert damaged == []
        seen_half_written += half_written
    assert seen_half_written > 0
    assert all(name.startswith("step-") for name in folders(tmp_path))


def test_a_full_disk_is_one_line_and_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    checkpoint.write(small_snapshot(1), tmp_path)
    full = """
import resource
from stream_pretrain.errors import CheckpointError
for limit in (100, 10_000, 399_999):  # met in the first file, early in the weights, at their end
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        checkpoint.write(small_snapshot(2, 100_000), Path(sys.argv[1]))
    except CheckpointError as error:
        said = f"{error} {[path.name for path in Path(sys.argv[1]).iterdir()]}"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)  # what is printed lands in a file as well
        print(said, flush=True)
"""
    lines = run_beside(full, tmp_path)
    assert len(lines) == 3
    for line in lines:
        assert "step-00000002 cannot be written (" in line
        assert "File too large" in line
        assert "(ulimit -f), then run the same command again [" in line
        assert line.endswith("['step-00000001']")
    assert checkpoint.latest(tmp_path, unexpected) == tmp_path / "step-00000001"


def test_a_full_disk_while_the_tokenizer_is_written_is_the_same_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = small_snapshot(1)

    def full(folder: Path) -> None:
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(snapshot.export.tokenizer, "save_pretrained", full)
    with pytest.raises(CheckpointError, match="cannot be written \\(No space left on device\\)"):
        checkpoint.write(snapshot, tmp_path)
    assert folders(tmp_path) == []


def test_the_background_writer_writes_and_prunes(tmp_path: Path) -> None:
    saved: list[int] = []
    with BackgroundWriter(tmp_path, lambda _, step: saved.append(step), unexpected, keep_last=1, keep_every=0) as writer:
        for step in (1, 2, 3):
            writer.submit(partial(small_snapshot, step))
    assert saved == [1, 2, 3]
    assert folders(tmp_path / "checkpoints") == ["step-00000003"]
    assert folders(tmp_path / "cursors") == ["step-00000001.json", "step-00000002.json"]


def test_a_submit_waits_for_the_write_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, events = threading.Event(), []

    def slow(snapshot: Snapshot, directory: Path) -> Path:
        events.append(f"begin {snapshot.step}")
        assert go_on.wait(60)
        events.append(f"end {snapshot.step}")
        return directory

    monkeypatch.setattr(background_writer, "write", slow)
    with BackgroundWriter(tmp_path, lambda *_: None, unexpected, keep_last=1, keep_every=0) as writer:
        writer.submit(partial(small_snapshot, 1))
        writer.check()  # does not wait
        events.append("training")
        go_on.set()
        writer.submit(partial(small_snapshot, 2))
        assert "end 1" in events
    assert [event for event in events if event != "training"] == ["begin 1", "end 1", "begin 2", "end 2"]
    assert events.index("training") < events.index("end 1")


def test_a_checkpoint_is_told_once_it_is_whole_and_after_the_records_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def synced(out: Path) -> None:
        events.append(f"records of {out.name}, beside {list(out.iterdir())}")

    def saved(_: Path, step: int) -> None:
        events.append(f"{step}: {folders(tmp_path / 'checkpoints')}")

    monkeypatch.setattr(background_writer, "sync_records", synced)
    with BackgroundWriter(tmp_path, saved, unexpected, keep_last=1, keep_every=0) as writer:
        writer.submit(partial(small_snapshot, 1))
    assert events == [f"records of {tmp_path.name}, beside []", "1: ['step-00000001']"]


def failing_writer(tmp_path: Path) -> BackgroundWriter:
    (tmp_path / "checkpoints").touch()
    return BackgroundWriter(tmp_path, pytest.fail, unexpected, keep_last=1, keep_every=0)


def test_a_failed_write_is_raised_in_the_training_thread_once(tmp_path: Path) -> None:
    with failing_writer(tmp_path) as writer:
        writer.submit(partial(small_snapshot, 1))
        with pytest.raises(CheckpointError, match="step-00000001 cannot be written"):
            writer.submit(partial(small_snapshot, 2))
        writer.check()
    with pytest.raises(CheckpointError, match="step-00000003 cannot be written"), failing_writer(tmp_path) as writer:
        writer.submit(partial(small_snapshot, 3))


def test_a_failed_write_does_not_hide_what_ended_the_training(tmp_path: Path) -> None:
    writer = failing_writer(tmp_path)
    writer.submit(partial(small_snapshot, 1))
    with pytest.raises(ZeroDivisionError) as caught, writer:
        _ = 1 / 0
    assert "step-00000001 cannot be written" in caught.value.__notes__[0]
