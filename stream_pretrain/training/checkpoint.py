"""Checkpoints: one folder per saved step, the same for every topology, whole or not there at all.

    step-00001000/
      config.json, model.safetensors, tokenizer*    what `from_pretrained` reads
      optimizer.safetensors                         optimizer state by parameter name
      stream.json, corpus.json, trainer.json        where the lanes stand, the pinned shards, steps and options
      MANIFEST.json                                 sizes and sha256 of all the others, written last

A folder is filled under a hidden name, flushed to the disk and renamed, so that a run that is killed, or a disk that
fills up, at any moment leaves every earlier checkpoint as it was. There is no pickle: safetensors and JSON only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from stream_pretrain.errors import CheckpointError
from stream_pretrain.training.disk import replace_file, sync
from stream_pretrain.training.records import sync_records

MANIFEST = "MANIFEST.json"
FORMAT = 1
REQUIRED = ("config.json", "model.safetensors", "optimizer.safetensors", "stream.json", "corpus.json", "trainer.json")


@dataclass(frozen=True)
class Snapshot:
    """Everything one checkpoint holds, on the host and detached from what the training thread goes on changing."""

    step: int
    model: dict[str, Tensor]
    """Contiguous CPU copies under the bare model's names, without tied duplicates."""
    model_config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    optimizer: dict[str, Tensor]
    """As `optimizer_tensors` gives it."""
    stream: dict[str, Any]
    corpus: bytes
    """What corpus.json holds: encoded once a run, since a corpus may have many shards."""
    trainer: dict[str, Any]


@dataclass(frozen=True)
class Saved:
    """A checkpoint read back. The tensors are mapped from its files: copy what has to outlive them."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    stream: dict[str, Any]
    corpus: dict[str, Any]
    trainer: dict[str, Any]


def write(snapshot: Snapshot, directory: Path) -> Path:
    """Write the snapshot to `directory`/step-… and return that folder; one of this step that is whole stays as it is.

    Raises: CheckpointError when the disk refuses; all earlier checkpoints are untouched then.
    """
    final = directory / f"step-{snapshot.step:08d}"
    with suppress(CheckpointError):  # not there, or damaged and therefore replaced
        verify(final)
        return final

    def fill(folder: Path) -> None:
        _write_pretrained(folder, snapshot.model, snapshot.model_config, snapshot.tokenizer)
        _write_tensors(folder / "optimizer.safetensors", snapshot.optimizer)
        trainer = {"step": snapshot.step, **snapshot.trainer}
        for name, value in (("stream", snapshot.stream), ("trainer", trainer)):
            (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
        (folder / "corpus.json").write_bytes(snapshot.corpus)
        _flush(folder)
        files = {path.relative_to(folder).as_posix(): _fingerprint(path) for path in _files(folder)}
        (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=1), encoding="utf-8")

    _put_in_place(final, fill)
    return final


def write_model(
    model: Mapping[str, Tensor], model_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, directory: Path
) -> None:
    """Write the final model for `from_pretrained`; what `directory` held before is replaced in one go.

    Raises: CheckpointError when the disk refuses; what was there is untouched then.
    """
    _put_in_place(directory, lambda folder: _write_pretrained(folder, model, model_config, tokenizer))


def prune(directory: Path, *, keep_last: int, keep_every: int, cursors: Path) -> None:
    """Delete all but the newest `keep_last` checkpoints and those at multiples of `keep_every` (0: none of these).

    The stream.json of a deleted one stays as `cursors`/step-….json.
    Raises: CheckpointError when the disk refuses.
    """
    assert keep_last > 0
    try:
        for step, checkpoint in _checkpoints(directory)[:-keep_last]:
            if keep_every == 0 or step % keep_every != 0:
                cursors.mkdir(parents=True, exist_ok=True)
                replace_file(cursors / f"{checkpoint.name}.json", [(checkpoint / "stream.json").read_bytes()])
                checkpoint.rename(directory / f".old-{checkpoint.name}")
    except OSError as error:
        raise CheckpointError(f"{directory}: an old checkpoint could not be removed ({error})") from error
    for old in directory.glob(".old-*"):
        _delete(old)


def verify(checkpoint: Path) -> None:
    """Compare every file with the manifest. Raises CheckpointError naming the damaged or missing one."""
    manifest = checkpoint / MANIFEST
    try:
        content = json.loads(manifest.read_bytes())
        version, files = content["format"], {str(name): dict(expected) for name, expected in content["files"].items()}
    except OSError as error:
        raise CheckpointError(f"{manifest} cannot be read ({error.strerror}): use another checkpoint") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{manifest} is damaged: use another checkpoint") from error
    if version != FORMAT:
        raise CheckpointError(
            f"{manifest} has format {version}, this version reads format {FORMAT}: use the version it is from"
        )
    for name in REQUIRED:
        if name not in files:
            raise CheckpointError(f"{manifest} does not list {name}: use another checkpoint")
    for name, expected in files.items():
        try:
            found = _fingerprint(checkpoint / name)
        except OSError as error:
            raise CheckpointError(f"{checkpoint / name} cannot be read ({error.strerror}): use another checkpoint") from error
        if found != expected:
            wrong = next(key for key in found if found[key] != expected.get(key))
            raise CheckpointError(f"{checkpoint / name} is damaged ({wrong} is not that of {MANIFEST}): use another checkpoint")


def latest(directory: Path, report: Callable[[str], None]) -> Path | None:
    """Newest checkpoint that verifies, or None where there is none; only for the process that owns the run.

    Leftovers of a killed write are deleted. Each newer checkpoint that is damaged is reported in one line and moved to
    damaged-step-…, where it is neither counted by `prune` nor in the way of the step being written again.
    Raises: CheckpointError when there are checkpoints but all are damaged.
    """
    for leftover in (*directory.glob(".tmp-*"), *directory.glob(".old-*")):
        _delete(leftover)
    damaged: dict[Path, str] = {}
    for _, checkpoint in reversed(_checkpoints(directory)):
        try:
            verify(checkpoint)
        except CheckpointError as error:
            damaged[checkpoint] = str(error)
            continue
        for newer, reason in damaged.items():
            aside = newer.with_name(f"damaged-{newer.name}")
            _delete(aside)
            newer.rename(aside)
            report(f"{reason}; going back to {checkpoint.name}, the damaged one is now {aside.name}")
        return checkpoint
    if damaged:
        raise CheckpointError(f"{directory}: all checkpoints are damaged, the newest: {next(iter(damaged.values()))}")
    return None


def read(checkpoint: Path) -> Saved:
    """Verify a checkpoint, then read it. Raises: CheckpointError."""
    verify(checkpoint)
    stream, corpus, trainer = (
        json.loads((checkpoint / f"{name}.json").read_bytes()) for name in ("stream", "corpus", "trainer")
    )
    return Saved(
        step=trainer["step"],
        model=load_file(checkpoint / "model.safetensors"),
        optimizer=load_file(checkpoint / "optimizer.safetensors"),
        stream=stream,
        corpus=corpus,
        trainer=trainer,
    )


class BackgroundWriter:
    """Writes checkpoints, and prunes old ones, on one thread beside the training. A context manager.

    An error of the thread is raised in the training thread by the next call. Call `wait` before the next snapshot is
    taken, else two of them are in memory at once.
    """

    def __init__(self, out: Path, saved: Callable[[int], None], *, keep_last: int, keep_every: int) -> None:
        """saved: is told, in the thread, the step of each checkpoint that is whole."""
        self._out, self._saved, self._keep_last, self._keep_every = out, saved, keep_last, keep_every
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def submit(self, snapshot: Snapshot) -> None:
        """Start writing, after the previous write has ended. Raises: CheckpointError of the previous write."""
        self.wait()
        self._pending = self._thread.submit(self._save, snapshot)

    def prune(self) -> None:
        """Start pruning what a process that was killed has left to prune, after the previous write has ended."""
        self.wait()
        self._pending = self._thread.submit(self._prune)

    def check(self) -> None:
        """Raises: CheckpointError where the write that ended last has failed; does not wait for one that goes on."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until what was submitted is on the disk. Raises: CheckpointError."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def settle(self) -> None:
        """Wait as `wait` does, in another thread and raising nothing, where the one that trains hangs."""
        if (pending := self._pending) is not None:
            futures.wait([pending])

    def close(self) -> None:
        """Wait, then end the thread. Raises: CheckpointError."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _save(self, snapshot: Snapshot) -> None:
        directory = self._out / "checkpoints"
        sync_records(self._out)  # a checkpoint counts on the lines of the steps before it
        write(snapshot, directory)
        self._saved(snapshot.step)
        self._prune()

    def _prune(self) -> None:
        directory = self._out / "checkpoints"
        prune(directory, keep_last=self._keep_last, keep_every=self._keep_every, cursors=self._out / "cursors")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # what ended the training stays the error that is shown


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU copies that share no memory with the originals, also where these are on the CPU already."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def optimizer_tensors(optimizer: Optimizer, named_parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """State of the optimizer as host copies named `<state>.<parameter name>`, for example `exp_avg.encoder.weight`.

    Empty before the first update. `named_parameters` are those of the bare model; an Accelerate wrapper is unwrapped.
    """
    bare, names = _bare(optimizer), {id(parameter): name for name, parameter in named_parameters}
    parameters = _parameters(bare)
    assert all(id(parameter) in names for parameter in parameters), "the optimizer has parameters that the model has not"
    states = {names[id(parameter)]: bare.state.get(parameter) or {} for parameter in parameters}
    assert not any(states.values()) or all(states.values()), "some parameters have never been updated"
    return to_host({f"{key}.{name}": value for name, state in states.items() for key, value in state.items()})


def load_optimizer_tensors(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, Tensor]], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave, on each parameter's device; learning rates and the like stay as they are.

    Raises: CheckpointError when a parameter is not covered, unknown or of another shape.
    """
    bare, names = _bare(optimizer), {id(parameter): name for name, parameter in named_parameters}
    saved: dict[str, dict[str, Tensor]] = {}
    for flat_name, tensor in tensors.items():
        key, _, name = flat_name.partition(".")
        saved.setdefault(name, {})[key] = tensor
    state: dict[int, dict[str, Tensor]] = {}
    for index, parameter in enumerate(_parameters(bare)):
        name = names[id(parameter)]
        if tensors and name not in saved:
            raise CheckpointError(f"optimizer.safetensors has nothing for the parameter {name}: it belongs to another model")
        for key, tensor in saved.pop(name, {}).items():
            if tensor.ndim and tensor.shape != parameter.shape:
                shapes = f"{list(tensor.shape)} instead of {list(parameter.shape)}"
                raise CheckpointError(f"optimizer.safetensors: {key}.{name} has shape {shapes}: it belongs to another model")
            # A copy, since the tensor may be mapped from a file that gets pruned. The step count stays on the host, where
            # all but the fused and capturable kernels want it; for these `load_state_dict` moves it.
            device = parameter.device if tensor.ndim else tensor.device
            state.setdefault(index, {})[key] = tensor.to(device, copy=True)
    if saved:
        raise CheckpointError(
            f"optimizer.safetensors covers {next(iter(saved))}, which is no parameter: it belongs to another model"
        )
    bare.load_state_dict({**bare.state_dict(), "state": state})


def _bare(optimizer: Optimizer) -> Optimizer:
    return getattr(optimizer, "optimizer", optimizer)  # Accelerate keeps the torch optimizer there


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    """In the order in which torch numbers them in a state dict."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """(step, folder) of all checkpoints, oldest first."""
    found = ((re.fullmatch(r"step-(\d{8,})", path.name), path) for path in directory.glob("step-*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def _put_in_place(final: Path, fill: Callable[[Path], None]) -> None:
    """Fill a hidden folder, flush it to the disk and rename it to `final`; if anything fails `final` is as before."""
    temporary, old = final.with_name(f".tmp-{final.name}"), final.with_name(f".old-{final.name}")
    _delete(temporary)
    _delete(old)
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        _flush(temporary)
        if final.exists():
            final.rename(old)
        temporary.rename(final)
        sync(final.parent)
    except (OSError, SafetensorError) as error:
        _delete(temporary)
        raise CheckpointError(
            f"{final} could not be written ({error}): make room there and start the same command again"
        ) from error
    _delete(old)


def _delete(folder: Path) -> None:
    # What cannot go now (a network file system keeps a file that another rank still maps) goes at the next prune or start.
    shutil.rmtree(folder, ignore_errors=True)


def _write_pretrained(
    folder: Path, model: Mapping[str, Tensor], model_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    model_config.to_json_file(folder / "config.json")
    _write_tensors(folder / "model.safetensors", model)
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the tokenizers library raises nothing narrower when the disk is full
        raise OSError(f"tokenizer: {error}") from error


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors makes files that only their owner can read


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flush(folder: Path) -> None:
    """Bring every file of a folder, then the folders themselves, to the disk."""
    for path in (*_files(folder), *(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(path)
