"""What the benchmarks share: a corpus and a tokenizer made on the spot, and the two ways to read it."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import demo_corpus
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from stream_pretrain.config import Config, DataConfig, ObjectiveConfig, TrainConfig
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus
from stream_pretrain.data.lanes.pinning import pin
from stream_pretrain.data.lanes.stream_plan import StreamPlan

VOCABULARY = 16_384
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


def train_tokenizer(texts: Iterable[str], folder: Path) -> Path:
    """A WordPiece tokenizer trained on some texts, saved to a folder."""
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
    BertTokenizerFast(tokenizer_object=trained._tokenizer).save_pretrained(folder)
    return folder


def plan_of_stream(files: str, tokenizer: PreTrainedTokenizerFast, sequence_length: int) -> tuple[PinnedCorpus, StreamPlan]:
    """One epoch of some files (a path or glob) as a run with default options would read it."""
    config = Config(
        data=DataConfig(dataset=files, sequence_length=sequence_length),
        objective=ObjectiveConfig(mask_rate=MASK_RATE),
        train=TrainConfig(max_epochs=1),
    )
    pinned = pin(config, world=1)
    return pinned, stream_plan(config, tokenizer, pinned)


@dataclass
class Tokenize:
    """Texts to ids for `datasets.map`; without a tokenizer to as many zeros, which take no time."""

    tokenizer: PreTrainedTokenizerFast | None

    def __call__(self, examples: Mapping[str, list[Any]]) -> Mapping[str, Any]:
        if self.tokenizer is not None:
            return dict(self.tokenizer(examples["text"], return_special_tokens_mask=True, verbose=False))
        zeros = [[0] * (len(text) // 4) for text in examples["text"]]
        return dict.fromkeys(("input_ids", "token_type_ids", "attention_mask", "special_tokens_mask"), zeros)


def usual_recipe(files: Sequence[str], columns: Sequence[str], tokenize: Tokenize, sequence_length: int) -> Any:
    """The streaming dataset of transformers' own run_mlm example: tokenize, concatenate, cut to equal rows.

    columns: all that the files have.
    """
    import datasets

    def group(examples: Mapping[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: list(itertools.chain.from_iterable(values)) for name, values in examples.items()}
        total = len(joined["input_ids"]) // sequence_length * sequence_length
        return {
            name: [values[i : i + sequence_length] for i in range(0, total, sequence_length)] for name, values in joined.items()
        }

    stream = datasets.load_dataset("json", data_files=list(files), split="train", streaming=True)
    return stream.map(tokenize, batched=True, remove_columns=list(columns)).map(group, batched=True)
