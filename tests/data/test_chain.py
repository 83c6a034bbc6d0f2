"""The chain is as its documentation shows it."""

from __future__ import annotations

import doctest
import itertools
from pathlib import Path

from stream_pretrain.config import Config, DataConfig, ObjectiveConfig, TrainConfig
from stream_pretrain.data import chain
from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_state import first_cursors
from tests.corpora import WORDS, word_tokenizer


def test_the_worked_example_of_the_chain_gives_the_rows_and_cursors_it_shows(tmp_path: Path) -> None:
    shard = tmp_path / "shard.jsonl"
    shard.write_text("".join(f'{{"text": "doc {word}"}}\n'.rjust(26) for word in WORDS[:6]))
    names = {
        kind.__name__: kind
        for kind in (Config, DataConfig, ObjectiveConfig, TrainConfig, StepStream, Cursor, first_cursors, chain.stream_plan)
    }
    names |= {"itertools": itertools, "shard": str(shard), "tokenizer": word_tokenizer()}
    (example,) = doctest.DocTestFinder().find(chain.stream_plan, globs=names)
    assert doctest.DocTestRunner().run(example) == doctest.TestResults(0, 2)
