"""A stream on several ranks, whose lanes end at different times: the same rows of each step on any number of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

from stream_pretrain import TokenStream
from tests.corpora import documents, json_lines, word_tokenizer
from tests.integration.runs_on_ranks import train


def steps_of(out: Path, world: int) -> list[list[list[int]]]:
    """The rows of each step, of all ranks in their order."""
    of_ranks = [json.loads((out / f"{rank}-of-{world}.json").read_text()) for rank in range(world)]
    batches = math.ceil(math.ceil(9 / world) / 2)
    count = len(of_ranks[0]) // batches
    return [
        [row for rank in of_ranks for batch in rank[step * batches : (step + 1) * batches] for row in batch]
        for step in range(count)
    ]


def test_two_ranks_share_every_step_to_the_end_and_go_on_from_the_state_of_one(tmp_path: Path) -> None:
    for number, count in enumerate((7, 40, 25)):
        (tmp_path / f"{number}.jsonl").write_bytes(json_lines(documents(count, seed=number)))
    corpus = str(tmp_path / "*.jsonl")
    options = {"sequence_length": 64, "lanes": 5, "workers": 0, "global_batch_size": 9, "micro_batch_size": 9}
    alone = TokenStream(corpus, word_tokenizer(), max_epochs=1, **options)
    alone.is_prepared = True
    whole, states = [], []
    for batch in alone:
        whole.append([row for row in batch["input_ids"].tolist() if row[0]])
        states.append(alone.state_dict())
    assert [len(rows) for rows in whole[:-1]] == [9] * (len(whole) - 1)
    (tmp_path / "state.json").write_text(json.dumps(states[1]))
    for name, steps, state, expected in (
        ("all", "1000", [], whole),
        ("from the state of one rank", "1000", [str(tmp_path / "state.json")], whole[2:]),
    ):
        out = tmp_path / name
        out.mkdir()
        program = str(Path(__file__).with_name("streamed.py"))
        train(2, [corpus, str(out), steps, *state], out, (program,))
        assert steps_of(out, 2) == expected, name
