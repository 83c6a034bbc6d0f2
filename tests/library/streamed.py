"""A program on any number of ranks: the rows of a TokenStream, step by step, as files of this rank, and its last state.

python tests/library/streamed.py CORPUS OUT STEPS [STATE]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from stream_pretrain import TokenStream
from tests.corpora import word_tokenizer


def main(corpus: str, out: str, steps: str, state: str | None = None) -> None:
    dist.init_process_group("gloo")
    stream = TokenStream(
        corpus, word_tokenizer(), sequence_length=64, lanes=5, workers=1, global_batch_size=9, micro_batch_size=2, max_epochs=1
    )
    if state is not None:
        stream.load_state_dict(json.loads(Path(state).read_text()))
    stream.is_prepared = True  # no model sees them
    rows: list[torch.Tensor] = []
    with stream:
        for batch in stream:
            filled = batch["input_ids"][:, 0] != 0
            rows.append(batch["input_ids"][filled])
            if stream.step == int(steps):
                break
        saved = stream.state_dict()
    Path(out, f"{dist.get_rank()}-of-{dist.get_world_size()}.json").write_text(json.dumps([part.tolist() for part in rows]))
    if dist.get_rank() == 0:
        Path(out, "state.json").write_text(json.dumps(saved))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
