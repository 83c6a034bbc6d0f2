"""Make the demo's corpus, tokenizer and model configuration from what every Python installation has: its own documentation.

    python scripts/demo_corpus.py FOLDER

writes FOLDER/corpus/*.jsonl.zst (the language reference and the docstrings of the standard library, about 2 MB),
FOLDER/tokenizer (WordPiece, trained on it) and FOLDER/model/config.json (a small BERT). Does nothing where they are already.
"""

from __future__ import annotations

import ast
import json
import random
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import zstandard
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertTokenizerFast

SHARDS = 4
VOCABULARY = 4096


def documents() -> list[str]:
    """Topics of the language reference and docstrings of at least 200 characters, in a fixed random order."""
    texts = [*topics.values(), *docstrings(Path(sysconfig.get_path("stdlib")))]
    texts = sorted({text.strip() for text in texts if len(text) >= 200})
    random.Random(0).shuffle(texts)
    return texts


def docstrings(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        if {"test", "tests", "site-packages", "lib2to3", "idlelib"} & set(path.relative_to(folder).parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old string escapes in other people's sources
            tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def write_shards(folder: Path, name: str, texts: Sequence[str], shards: int) -> None:
    """Write texts as compressed JSON lines, spread over some shards."""
    for shard in range(shards):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[shard::shards])
        path = folder / f"{name}-{shard:05d}-of-{shards:05d}.jsonl.zst"
        path.write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))


def train_wordpiece(texts: Iterable[str], vocabulary: int, folder: Path) -> str:
    """Train a WordPiece tokenizer and save it to a folder, whose path is returned."""
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(texts, vocab_size=vocabulary, show_progress=False)
    BertTokenizerFast(tokenizer_object=trained._tokenizer).save_pretrained(folder)
    return str(folder)


def main(folder: Path) -> None:
    if (folder / "model" / "config.json").exists():
        return
    texts = documents()
    for name in ("corpus", "tokenizer", "model"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_shards(folder / "corpus", "python-docs", texts, SHARDS)
    train_wordpiece(texts, VOCABULARY, folder / "tokenizer")
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.save_pretrained(folder / "model")
    print(f"{len(texts)} documents, {sum(map(len, texts)) / 1e6:.1f} MB of text, in {SHARDS} shards under {folder / 'corpus'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
