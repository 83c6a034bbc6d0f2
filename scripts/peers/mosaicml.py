"""MosaicML streaming: texts in MDS shards, tokenized when they are read, joined and cut to rows as LLM Foundry does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
from benchmarking import MICRO_BATCH
from contenders import Batches, Given, masked
from torch.utils.data import IterableDataset
from transformers import AutoTokenizer

# Imported by the package for its datasets of images alone. PyPI has no build for a torch without GPUs.
TORCHVISION = {
    "torchvision": SimpleNamespace(__spec__=None),
    "torchvision.datasets": SimpleNamespace(VisionDataset=object),
    "torchvision.transforms.functional": SimpleNamespace(to_tensor=None),
}
sys.modules.update(TORCHVISION)  # type: ignore[arg-type]
from streaming import MDSWriter, StreamingDataset  # noqa: E402

for name in TORCHVISION:
    del sys.modules[name]


def convert(given: Given, folder: Path) -> None:
    with MDSWriter(out=str(folder / "mds"), columns={"text": "str"}, compression="zstd") as shards:
        for document in datasets.load_dataset("json", data_files=given.files, split="train", streaming=True):
            shards.write({"text": document["text"]})


def read(given: Given, folder: Path, cache: Path) -> Batches:
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    texts = TokenizedTexts(tokenizer, remote=str(folder / "mds"), local=str(cache), shuffle=True, batch_size=MICRO_BATCH)
    return masked(JoinedRows(texts, given.sequence_length), tokenizer)


class TokenizedTexts(StreamingDataset):
    def __init__(self, tokenizer: Any, **options: Any) -> None:
        super().__init__(**options)
        self.tokenizer = tokenizer

    def __getitem__(self, index: int) -> Any:
        return self.tokenizer(super().__getitem__(index)["text"], return_special_tokens_mask=True, verbose=False)


class JoinedRows(IterableDataset):
    def __init__(self, texts: TokenizedTexts, sequence_length: int) -> None:
        self.texts = texts
        self.sequence_length = sequence_length

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        joined: dict[str, list[int]] = {"input_ids": [], "special_tokens_mask": []}
        for text in self.texts:
            for name, values in joined.items():
                values += text[name]
            end = len(joined["input_ids"]) // self.sequence_length * self.sequence_length
            for first in range(0, end, self.sequence_length):
                yield {name: values[first : first + self.sequence_length] for name, values in joined.items()}
            joined = {name: values[end:] for name, values in joined.items()}
