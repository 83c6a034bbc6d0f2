"""Checkpoints of a weight or two, and what tests do to them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from stream_pretrain.data.rows.tokenizer_probe import EngineRecord
from stream_pretrain.model.loading import Export
from stream_pretrain.training.files.manifest import write_manifest
from stream_pretrain.training.state.auto_learning_rate import Chosen
from stream_pretrain.training.state.checkpoint import Snapshot
from stream_pretrain.training.state.totals import Totals
from stream_pretrain.training.state.trainer_state import TrainerState
from tests.forks import ENVIRONMENT, trainers


def run_beside(program: str, directory: Path) -> list[str]:
    """Lines that a program prints in a process of its own."""
    header = """
import sys
from pathlib import Path
from tests.training.checkpoints import small_snapshot
from stream_pretrain.training.state import checkpoint
from stream_pretrain.training.state.model_state import read_tensors
"""
    done = trainers().run(["-c", header + program, str(directory)], ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def tokenizer() -> PreTrainedTokenizerBase:
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "[MASK]": 2, "one": 3, "two": 4}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]")


def trainer_of(step: int) -> TrainerState:
    return TrainerState(
        step=step,
        totals=Totals(step),
        fixed={},
        max_steps=100,
        max_epochs=None,
        tokenizer="words",
        engine=EngineRecord("tokenizers", "0.22.1", "of texts", "of ids", "0.22.1"),
        parent=None,
        world=1,
        defaults={},
        chosen=Chosen(1e-4, 6),
        versions={},
        commit=None,
    )


def small_snapshot(step: int, numbers: int = 4) -> Snapshot:
    return Snapshot(
        export=Export({"weight": torch.full((numbers,), float(step))}, BertConfig(), tokenizer()),
        optimizer={"exp_avg.weight": torch.full((numbers,), step / 2)},
        stream={"lanes": [[0, step]]},
        corpus=b'{"shards": ["a.jsonl"]}',
        trainer=trainer_of(step),
    )


def folders(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def unexpected(line: str) -> None:
    raise AssertionError(line)


def signed(folder: Path) -> Path:
    """With a manifest of what the files are now."""
    (folder / "MANIFEST.json").unlink()
    write_manifest(folder)
    return folder
