"""Ways to read a corpus once, from its files to packed and masked batches of 32 rows, and the least that any of them must do.

Each takes what it is given, makes what a training script has made before its first batch (tokenizer, plan of the corpus), and
returns an iterator over what it reads: tokens of documents, without special tokens and padding, and positions of the batches.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import datasets
from benchmarking import MASK_RATE, MICRO_BATCH, Tokenize, plan_of_stream, tensors_of, texts_of, usual_recipe
from tokenizers import Tokenizer
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

from stream_pretrain.config import EngineName
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_state import first_cursors
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.engine_choice import choose

TEXTS_AT_ONCE = 1000
"""As many as `datasets.map` gives to a tokenizer."""
SHUFFLE_BUFFER = 10_000

Batches = Iterator[tuple[int, int]]
"""(tokens of documents, positions) of each batch."""


@dataclass(frozen=True)
class Given:
    """What every contender reads."""

    corpus: str
    """A glob of files of JSON lines, with the text in `text`."""
    tokenizer: str
    """Folder of a tokenizer with a mask token."""
    sequence_length: int = 512

    @property
    def files(self) -> list[str]:
        return sorted(glob.glob(self.corpus))


Contender = Callable[[Given], Batches]


# --- This package


def stream(given: Given, engine: EngineName = "auto", workers: int = 0) -> Batches:
    """The batches of this package, as the training process gets them."""
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    pinned, plan = plan_of_stream(given.corpus, tokenizer, given.sequence_length, engine=engine)
    plan.encoder.build()

    def read() -> Batches:
        with StepStream(plan, first_cursors(pinned.lanes), workers=workers) as steps:
            for step in steps:
                if len(step.row_lane) == 0:
                    return
                yield tensors_of(step, plan), len(step.row_lane) * given.sequence_length

    return read()


def engine_of(tokenizer: str, option: EngineName) -> EngineName:
    """The engine that a run would take, checked once for all that follow. Raises: ConfigError."""
    encoder = Encoder.of(AutoTokenizer.from_pretrained(tokenizer))
    name: EngineName = choose(option, encoder).name
    return name


# --- The usual recipe


def recipe(given: Given, workers: int = 0, shuffle: bool = False) -> Batches:
    """load_dataset(streaming), map(tokenize), map(group), DataCollatorForLanguageModeling, DataLoader."""
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    documents = datasets.load_dataset("json", data_files=given.files, split="train", streaming=True)
    columns = list(next(iter(documents)))
    if shuffle:
        documents = documents.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER)
    return masked(usual_recipe(documents, columns, Tokenize(tokenizer), given.sequence_length), tokenizer, workers)


def masked(rows: Any, tokenizer: Any, workers: int = 0) -> Batches:
    """Batches of a dataset of rows that have `input_ids` and `special_tokens_mask`, as transformers' examples make them."""
    collate = partial(_counted, DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASK_RATE))
    for count, batch in DataLoader(rows, batch_size=MICRO_BATCH, collate_fn=collate, num_workers=workers):
        yield count, batch["input_ids"].numel()


def _counted(collate: Any, examples: list[dict[str, list[int]]]) -> tuple[int, Any]:
    """A collated batch, with the tokens of documents in it."""
    return sum(example["special_tokens_mask"].count(0) for example in examples), collate(examples)


# --- What every pipeline has to do


def encode_batch_fast(given: Given) -> Batches:
    """The library `tokenizers` and nothing else, over texts that are in memory."""
    texts = [text for file in given.files for text in texts_of(file)]
    tokenizer = Tokenizer.from_file(f"{given.tokenizer}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def read() -> Batches:
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            encodings = tokenizer.encode_batch_fast(texts[first : first + TEXTS_AT_ONCE], add_special_tokens=False)
            tokens = sum(map(len, encodings))
            yield tokens, tokens

    return read()


def parts(given: Given, engine: EngineName = "auto") -> Batches:
    """Decompress, parse and tokenize, with an engine of `stream`: what is left without order, rows, masks and tensors."""
    encoder = Encoder.of(AutoTokenizer.from_pretrained(given.tokenizer))
    built = replace(encoder, engine=choose(engine, encoder).name).build()

    def read() -> Batches:
        for file in given.files:
            texts = list(texts_of(file))
            for first in range(0, len(texts), TEXTS_AT_ONCE):
                tokens = len(built.encode(texts[first : first + TEXTS_AT_ONCE])[0])
                yield tokens, tokens

    return read()
