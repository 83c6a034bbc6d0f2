"""LitData, as its page on pretraining has it: a corpus is tokenized to chunks of ids first; what is read has tokens in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarking import MASK_RATE, MICRO_BATCH, texts_of
from contenders import Batches, Given
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

CHUNK_ROWS = 8_000


def convert(given: Given, folder: Path) -> None:
    optimize(
        fn=partial(_tokenized, tokenizer=AutoTokenizer.from_pretrained(given.tokenizer)),
        inputs=given.files,
        output_dir=str(folder / "tokens"),
        chunk_size=given.sequence_length * CHUNK_ROWS,
        item_loader=TokensLoader(),
        num_workers=1,
        start_method="fork",
    )


def _tokenized(file: str, tokenizer: Any) -> Iterator[torch.Tensor]:
    for text in texts_of(file):
        yield torch.tensor(tokenizer(text, verbose=False)["input_ids"])


def read(given: Given, folder: Path, cache: Path) -> Batches:
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    collate = Masked(
        DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASK_RATE), torch.tensor(tokenizer.all_special_ids)
    )

    def batches() -> Batches:
        blocks = TokensLoader(block_size=given.sequence_length)
        rows = StreamingDataset(str(folder / "tokens"), str(cache), item_loader=blocks, shuffle=True, drop_last=True)
        for count, batch in StreamingDataLoader(rows, batch_size=MICRO_BATCH, collate_fn=collate, num_workers=0):
            yield count, batch["input_ids"].numel()

    return batches()


@dataclass
class Masked:
    """A batch, with the tokens of documents in it."""

    collate: Any
    special: torch.Tensor

    def __call__(self, rows: list[torch.Tensor]) -> tuple[int, Any]:
        is_special = torch.isin(torch.stack(rows), self.special)
        examples = [{"input_ids": row, "special_tokens_mask": mask} for row, mask in zip(rows, is_special, strict=True)]
        return int((~is_special).sum()), self.collate(examples)
