"""What the benchmarks of the stream take on the command line. Imports nothing that takes time: `--help` answers at once."""

from __future__ import annotations

import argparse
import glob


def parser_of(description: str, quick: str) -> argparse.ArgumentParser:
    """quick: what --quick does."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def add_corpus(parser: argparse.ArgumentParser, default: str) -> None:
    """--corpus and --tokenizer, for `benchmarking.inputs_of`. default: the corpus, in words."""
    parser.add_argument("--corpus", metavar="GLOB", type=files, help=f"JSON lines to read (default: {default})")
    trained = "wordpiece (default) or bpe: one trained on the corpus"
    parser.add_argument("--tokenizer", default="wordpiece", metavar="FOLDER", help=f"of a tokenizer, or {trained}")


def files(pattern: str) -> str:
    """A glob of files that exist."""
    if not glob.glob(pattern):
        raise argparse.ArgumentTypeError(f"{pattern}: no such file")
    return pattern
