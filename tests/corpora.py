"""Small corpora and tokenizers, made on the spot: tests need no network and no data of others."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path

import zstandard
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = [a + b for a in ("ba", "co", "di", "fu", "ge", "ha", "lo", "mi", "no", "pu") for b in ("ra", "st", "ll", "mp", "nd")]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *WORDS, *"0123456789", *(f"##{digit}" for digit in "0123456789"), "doc"]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer: one token a word, one a digit; BERT's special tokens."""
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def documents(count: int, *, seed: int = 0, longest: int = 120) -> list[str]:
    """Texts that each begin with a number of their own, so that every one can be told from its tokens."""
    rng = random.Random(seed)
    return [
        f"doc {i:06d} " + " ".join(rng.choices(WORDS, k=rng.randint(1, longest)))
        for i in range(seed * 1000, seed * 1000 + count)
    ]


def json_lines(texts: Sequence[str]) -> bytes:
    return b"".join(json.dumps({"id": i, "text": text}).encode() + b"\n" for i, text in enumerate(texts))


def write_shard(path: Path, texts: Sequence[str], style: str) -> Path:
    """Write texts as a shard: plain, zst (one frame), zst-multi (frames cut anywhere), gz (members) or parquet."""
    lines = json_lines(texts)
    match style:
        case "plain":
            path = path.with_suffix(".jsonl")
            path.write_bytes(lines)
        case "zst":
            path = path.with_suffix(".jsonl.zst")
            path.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(lines))
        case "zst-multi":
            path = path.with_suffix(".jsonl.zst")
            pieces = [lines[i : i + 5_003] for i in range(0, len(lines), 5_003)]
            path.write_bytes(b"".join(zstandard.ZstdCompressor(write_checksum=True).compress(piece) for piece in pieces))
        case "gz":
            path = path.with_suffix(".jsonl.gz")
            buffer = io.BytesIO()
            for i in range(0, len(lines), 20_011):
                buffer.write(gzip.compress(lines[i : i + 20_011], mtime=0))
            path.write_bytes(buffer.getvalue())
        case "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            path = path.with_suffix(".parquet")
            pq.write_table(pa.table({"id": range(len(texts)), "text": list(texts)}), path, row_group_size=150)
        case _:
            raise AssertionError(style)
    return path


def write_tiny_bert(folder: Path, *, dropout: float = 0.1) -> Path:
    """The configuration of a BERT of a few thousand weights, with the tokenizer it is for, in one folder."""
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    config.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def write_tiny_bert_with_weights(folder: Path) -> Path:
    """The same, with random weights."""
    from transformers import BertConfig, BertForMaskedLM

    BertForMaskedLM(BertConfig.from_pretrained(write_tiny_bert(folder))).save_pretrained(folder)
    return folder
