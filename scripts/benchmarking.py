"""What the benchmarks share: a corpus and a tokenizer made on the spot, and the two ways to read it."""

from __future__ import annotations

import glob
import gzip
import io
import itertools
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import demo_corpus
import numpy as np
import orjson
import torch
import zstandard
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stream_pretrain.config import Config, DataConfig, EngineName, ObjectiveConfig, TrainConfig
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus
from stream_pretrain.data.lanes.pinning import pin
from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.rows.batches import micro_batches
from stream_pretrain.data.rows.engine_choice import choose

VOCABULARY = 16_384
SHARDS = 8
MICRO_BATCH = 32
MASK_RATE = 0.3
ROWS = TrainConfig().global_batch_size
_SENTENCE_END = re.compile(r"(?<=[.\n])\s+")


def documents(megabytes: float) -> Iterator[str]:
    """So many megabytes of text: Python's own documentation, again and again with the sentences of a document shuffled."""
    texts = [_SENTENCE_END.split(text) for text in demo_corpus.documents()]
    generator = random.Random(0)
    left = megabytes * 1e6
    for sentences in itertools.cycle(texts):
        if left <= 0:
            return
        generator.shuffle(sentences)
        text = " ".join(sentences)
        left -= len(text)
        yield text


def made_corpus(folder: Path, megabytes: float, shards: int = SHARDS) -> str:
    """So many megabytes of documents in compressed shards in a folder. Returns their glob."""
    demo_corpus.write_shards(folder, "part", list(documents(megabytes)), shards)
    return f"{folder}/part-*.jsonl.zst"


def tokenizer_with_mask(tokenizer: str, texts: Iterable[str], folder: Path) -> str:
    """A folder with a tokenizer for masked models: one trained on some texts, or a given one with a mask token added.

    tokenizer: "wordpiece", "bpe" (byte-level), or the folder of one.
    """
    if tokenizer == "wordpiece":
        return demo_corpus.train_wordpiece(texts, VOCABULARY, folder)
    if tokenizer == "bpe":
        trained = ByteLevelBPETokenizer()
        trained.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
        loaded = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer)
    else:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
        if loaded.mask_token is not None:
            return tokenizer
    loaded.add_special_tokens({"mask_token": "<mask>", "pad_token": "<pad>"})
    loaded.save_pretrained(folder)
    return str(folder)


def tokenizer_of(tokenizer: str, corpus: str, folder: Path) -> str:
    """As `tokenizer_with_mask`, made below a folder for a corpus (a glob)."""
    return tokenizer_with_mask(tokenizer, texts_of(min(glob.glob(corpus))), folder / "tokenizer")


def inputs_of(options: Any, folder: Path, megabytes: float, shards: int = SHARDS) -> tuple[str, str]:
    """The glob of the corpus and the folder of the tokenizer that `add_corpus` takes, made where they are not given."""
    corpus = options.corpus or made_corpus(folder, megabytes, shards)
    return corpus, tokenizer_of(options.tokenizer, corpus, folder)


def texts_of(file: str) -> Iterator[str]:
    """The texts of a file of JSON lines: plain, .gz or .zst."""
    with open(file, "rb") as stored:
        lines: Any = stored
        if file.endswith(".gz"):
            lines = gzip.GzipFile(fileobj=stored)
        elif file.endswith(".zst"):
            reader = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(stored, read_across_frames=True)
            lines = io.BufferedReader(reader, 1 << 20)
        for line in lines:
            yield orjson.loads(line)["text"]


def plan_of_stream(
    files: str,
    tokenizer: PreTrainedTokenizerFast,
    sequence_length: int,
    *,
    engine: EngineName = "auto",
    rows: int = ROWS,
    epochs: int | None = 1,
    window_bytes: int | None = None,
    lanes: int | None = None,
) -> tuple[PinnedCorpus, StreamPlan]:
    """Some epochs of files (a path or glob) as a run with otherwise default options would read them.

    rows: of a step. epochs: None for any number. window_bytes, lanes: None for those of a run.
    """
    config = Config(
        data=DataConfig(
            dataset=files, sequence_length=sequence_length, window_bytes=window_bytes or "auto", lanes=lanes or "auto"
        ),
        objective=ObjectiveConfig(mask_rate=MASK_RATE),
        train=TrainConfig(max_epochs=epochs, global_batch_size=rows),
    )
    pinned = pin(config, world=1)
    plan = stream_plan(config, tokenizer, pinned)
    return pinned, replace(plan, encoder=replace(plan.encoder, engine=choose(engine, plan.encoder).name))


def tensors_of(step: StepRows, plan: StreamPlan) -> int:
    """Make the micro-batches of a step, as the training process does. Returns the tokens of documents in them."""
    count = -(-len(step.row_lane) // MICRO_BATCH)
    for _ in micro_batches(step.trained, MICRO_BATCH, count, plan.encoder.pad, torch.device("cpu")):
        pass
    framing = len(plan.encoder.prefix) + len(plan.encoder.suffix)
    return step.trained.tokens - framing * int(np.count_nonzero(step.trained.segment_tokens))


@dataclass
class Tokenize:
    """Texts to ids for `datasets.map`; without a tokenizer to as many zeros, which take no time."""

    tokenizer: PreTrainedTokenizerFast | None

    def __call__(self, examples: Mapping[str, list[Any]]) -> Mapping[str, Any]:
        if self.tokenizer is not None:
            return dict(self.tokenizer(examples["text"], return_special_tokens_mask=True, verbose=False))
        zeros = [[0] * (len(text) // 4) for text in examples["text"]]
        return dict.fromkeys(("input_ids", "token_type_ids", "attention_mask", "special_tokens_mask"), zeros)


def usual_recipe(documents: Any, columns: Sequence[str], tokenize: Tokenize, sequence_length: int) -> Any:
    """What transformers' own run_mlm example makes of a streaming dataset: tokenize, concatenate, cut to equal rows.

    columns: all that the documents have.
    """

    group = partial(grouped_texts, sequence_length=sequence_length)
    return documents.map(tokenize, batched=True, remove_columns=list(columns)).map(group, batched=True)


def grouped_texts(examples: Mapping[str, list[list[int]]], sequence_length: int) -> dict[str, list[list[int]]]:
    """run_mlm's `group_texts`: examples joined and cut to equal rows, without the rest."""
    joined = {name: list(itertools.chain.from_iterable(values)) for name, values in examples.items()}
    rows = range(0, len(joined["input_ids"]) // sequence_length * sequence_length, sequence_length)
    return {name: [values[row : row + sequence_length] for row in rows] for name, values in joined.items()}
