"""Checkpoints: one folder per saved step, written atomically, the same for any number of ranks.

    step-00001000/
      config.json, model.safetensors, tokenizer*    what `from_pretrained` reads
      optimizer.safetensors                         optimizer state by parameter name
      stream.json, corpus.json, trainer.json        cursors of the lanes, pinned shards, counters and options
      MANIFEST.json                                 size and SHA-256 of all other files, written last

A folder is filled under a hidden name, flushed to the disk and renamed: a kill or a full disk at any moment leaves every
earlier checkpoint as it was. safetensors and JSON only, no pickle.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from stream_pretrain.errors import CheckpointError, DamagedCheckpointError
from stream_pretrain.model.loading import Export
from stream_pretrain.training.files.atomic_files import replace_file, writing
from stream_pretrain.training.files.atomic_folders import delete, flush, put_in_place
from stream_pretrain.training.files.manifest import MANIFEST, check_manifest, file_of, json_of, write_manifest
from stream_pretrain.training.files.out_files import CHECKPOINTS
from stream_pretrain.training.state.trainer_state import TRAINER, TrainerState, read_trainer_state, step_of, write_trainer_state

RUN_STATE = {"optimizer.safetensors", "stream.json", "corpus.json", TRAINER, MANIFEST}
MODEL_FILES = ("config.json", "model.safetensors")
REQUIRED = (*MODEL_FILES, "optimizer.safetensors", "stream.json", "corpus.json", TRAINER)


@dataclass(frozen=True)
class Snapshot:
    """Everything in a checkpoint, in host memory that the training thread does not change."""

    export: Export
    optimizer: dict[str, Tensor]
    """As `optimizer_tensors` gives it."""
    stream: dict[str, Any]
    corpus: bytes
    """The content of corpus.json, encoded once a run, since a corpus may have many shards."""
    trainer: TrainerState
    untrained: frozenset[str] = frozenset()
    """Weights of `export` that no update changes."""
    folders: tuple[str, ...] = (CHECKPOINTS,)
    """The folders of OUT that it is written to, in this order."""

    @property
    def step(self) -> int:
        """The step that it is of."""
        return self.trainer.step


@dataclass(frozen=True)
class Saved:
    """A checkpoint without its tensors."""

    path: Path
    stream: dict[str, Any]
    corpus: dict[str, Any]
    trainer: TrainerState
    vocabulary: int | None
    """The size of the embedding, where config.json has it."""


def write(snapshot: Snapshot, directory: Path) -> Path:
    """Write the snapshot to `directory`/step-… and return that folder; an intact checkpoint of this step stays.

    Raises: CheckpointError when the disk fails, with all earlier checkpoints as they were.
    """
    final = directory / checkpoint_name(snapshot.step)
    with suppress(DamagedCheckpointError):  # missing, or damaged: written again
        verify(final)
        return final
    return write_again(snapshot, directory)


def write_again(snapshot: Snapshot, directory: Path) -> Path:
    """As `write`, but in place of a checkpoint of this step."""
    final = directory / checkpoint_name(snapshot.step)

    def fill(folder: Path) -> None:
        _write_export(folder, snapshot.export)
        _write_tensors(folder / "optimizer.safetensors", snapshot.optimizer)
        write_trainer_state(snapshot.trainer, folder)
        (folder / "stream.json").write_text(json.dumps(snapshot.stream), encoding="utf-8")
        (folder / "corpus.json").write_bytes(snapshot.corpus)
        flush(folder)
        write_manifest(folder)

    with writing(final):
        directory.mkdir(exist_ok=True)
        put_in_place(final, fill)
    return final


def write_model(export: Export, directory: Path) -> None:
    """Write the final model for `from_pretrained`; replaces `directory` atomically.

    Raises: CheckpointError when the disk fails, with `directory` as it was.
    """
    with writing(directory):
        put_in_place(directory, lambda folder: _write_export(folder, export))


def copy_model(checkpoint: Path, directory: Path) -> None:
    """Write the final model again, which is what a checkpoint holds besides the state of the run. Raises: CheckpointError."""

    def fill(folder: Path) -> None:
        for path in checkpoint.iterdir():
            if path.is_dir():
                shutil.copytree(path, folder / path.name, copy_function=shutil.copyfile)
            elif path.name not in RUN_STATE:
                shutil.copyfile(path, folder / path.name)

    with writing(directory):
        put_in_place(directory, fill)


def prune(
    directory: Path, *, newest: int, keep_last: int, keep_every: int, cursors: Path, report: Callable[[str], None]
) -> None:
    """Delete old checkpoints: keep the last `keep_last` up to step `newest`, and those at multiples of `keep_every` (0: none).

    The stream.json of a deleted checkpoint is kept as `cursors`/step-….json. A checkpoint that is damaged, or cannot be read
    or deleted now, is reported; it is not deleted, does not count towards `keep_last`, and does not end the run.
    """
    assert keep_last > 0
    intact: list[tuple[int, bytes, Path]] = []
    for step, checkpoint in checkpoints_in(directory):
        try:
            if step <= newest:
                intact.append((step, _complete(checkpoint), checkpoint))
        except (CheckpointError, OSError) as error:
            report(f"{checkpoint.name} is not pruned: {error}")
    for step, stream, checkpoint in intact[:-keep_last]:
        if keep_every == 0 or step % keep_every != 0:
            try:
                cursors.mkdir(exist_ok=True)
                replace_file(cursors / f"{checkpoint.name}.json", [stream])
            except OSError as error:
                report(f"{checkpoint.name} is not pruned: its cursors cannot be kept in {cursors} ({error.strerror})")
            else:
                delete_reported(checkpoint, report)


def prune_best(directory: Path, *, saved: int, report: Callable[[str], None]) -> None:
    """Keep the newest checkpoint, and the newest up to step `saved`, from which a killed run resumes."""
    found = checkpoints_in(directory)
    kept = {*found[-1:], *[one for one in found if one[0] <= saved][-1:]}
    for one in found:
        if one not in kept:
            delete_reported(one[1], report)


def verify(checkpoint: Path) -> None:
    """Compare every file with the manifest, and the step with the name of the folder, where it has one.

    Raises: DamagedCheckpointError for wrong content; CheckpointError for what cannot be read now, or is of another version.
    """
    check_manifest(checkpoint, REQUIRED)
    _refuse_other_name(checkpoint)


def verify_models(*places: str | None) -> None:
    """Compare models in checkpoints with their manifests; a Hub id, or a folder of a model, has none to compare it with.

    Raises: as `verify`.
    """
    for place in places:
        if place is not None and os.path.lexists(Path(place) / MANIFEST):
            check_manifest(Path(place), MODEL_FILES, without=RUN_STATE)


def latest(directory: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies, None where there are none. Called by the process that owns the run.

    Deletes leftovers of a killed write. A newer checkpoint that is damaged is reported and renamed to damaged-step-…: `prune`
    does not count it, and its step can be written again.
    Raises: CheckpointError when all checkpoints are damaged, or one cannot be read now.
    """
    delete_leftovers(directory, report)
    checkpoint, damaged = newest_intact(directory)
    for newer, reason in damaged.items():
        assert checkpoint is not None
        aside = newer.with_name(f"damaged-{newer.name}")
        delete(aside)
        try:
            newer.rename(aside)
        except OSError as error:
            raise CheckpointError(f"{reason}; it cannot be renamed ({error.strerror}): delete it") from error
        report(f"{reason}; falling back to {checkpoint.name}, the damaged one is now {aside.name}")
    return checkpoint


def newest_intact(directory: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that verifies, None where there are none, and why newer ones do not. Changes nothing.

    Raises: as `latest`.
    """
    found = checkpoints_in(directory)
    others = sorted({path.name for path in directory.glob("step-*")} - {path.name for _, path in found})
    if others and not found:
        raise CheckpointError(f"{directory}: {others[0]} is not a checkpoint name, such as {checkpoint_name(5)}: rename it")
    damaged: dict[Path, str] = {}
    for _, checkpoint in reversed(found):
        try:
            verify(checkpoint)
        except DamagedCheckpointError as error:
            damaged[checkpoint] = str(error)
            continue
        return checkpoint, damaged
    if damaged:
        raise CheckpointError(f"{directory}: all checkpoints are damaged; the newest: {next(iter(damaged.values()))}")
    return None, {}


def delete_leftovers(directory: Path, report: Callable[[str], None]) -> None:
    """Delete what a killed write left; what cannot be deleted is reported."""
    for leftover in (*directory.glob(".tmp-*"), *directory.glob(".old-*"), *directory.glob(".gone-*")):
        delete_reported(leftover, report)


def delete_reported(folder: Path, report: Callable[[str], None]) -> bool:
    """Delete a folder; where some of it cannot be deleted now, that is reported, and False returned."""
    left = delete(folder)
    if left is not None:
        report(f"{left} cannot be deleted: delete it, or have its owner do so")
    return left is None


def newest(directory: Path) -> tuple[int, Path | None]:
    """Step and folder of the newest checkpoint by name, verified or not; 0 and None where there is none."""
    return max(checkpoints_in(directory), default=(0, None))


def read(checkpoint: Path) -> Saved:
    """Read a verified checkpoint. Raises: CheckpointError."""
    return Saved(
        path=checkpoint,
        stream=json_of(checkpoint / "stream.json"),
        corpus=json_of(checkpoint / "corpus.json"),
        trainer=read_trainer_state(checkpoint),
        vocabulary=json_of(checkpoint / "config.json").get("vocab_size"),
    )


def checkpoint_name(step: int) -> str:
    """The name of the folder of a step."""
    return f"step-{step:08d}"


def checkpoints_in(directory: Path) -> list[tuple[int, Path]]:
    """Step and folder of all checkpoints, oldest first."""
    found = ((re.fullmatch(r"step-([0-9]{8,18})", path.name), path) for path in directory.glob("step-*"))
    return sorted((int(match[1]), path) for match, path in found if match and path.name == checkpoint_name(int(match[1])))


def _refuse_other_name(checkpoint: Path) -> None:
    step = step_of(checkpoint)
    named = re.fullmatch(r"step-([0-9]+)", checkpoint.name)
    if named and int(named[1]) != step:
        raise DamagedCheckpointError(f"{checkpoint} holds step {step}: rename it to {checkpoint_name(step)}")


def _complete(checkpoint: Path) -> bytes:
    """The stream.json of a checkpoint that has its step and all files; contents are not compared with the manifest.

    Raises: CheckpointError, OSError.
    """
    _refuse_other_name(checkpoint)
    for name in REQUIRED:
        if not (checkpoint / name).is_file():
            raise DamagedCheckpointError(f"{checkpoint / name} is missing: delete this checkpoint")
    return file_of(checkpoint / "stream.json")


def _write_export(folder: Path, export: Export) -> None:
    export.settings.to_json_file(folder / "config.json")
    _write_tensors(folder / "model.safetensors", export.weights)
    try:
        export.tokenizer.save_pretrained(folder)
    except Exception as error:  # tokenizers raises nothing narrower when the disk is full
        raise OSError(f"tokenizer: {error}") from error
    for name, content in export.files.items():  # over the tokenizer's files too: transformers does not write all settings
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors writes files that only their owner can read
