"""MFU counts the work that the loop does: one step against torch's own counter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stream_pretrain.model import packed_attention
from stream_pretrain.training.metrics import useful_flops
from tests.corpora import documents, write_shard, write_tiny_bert
from tests.training.runs import prepared, steps_of, tiny_run


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_the_work_of_a_step_is_what_mfu_takes_it_for(objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One call a document, in plain matrix products: as much attention as the kernel for packed rows computes on a GPU.
    monkeypatch.setattr(packed_attention, "LONGEST_MASKED_ROW", 0)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_shard(corpus / "s", documents(400, longest=40), "plain")
    model = write_tiny_bert(tmp_path / "model", dropout=0.0)
    config = tiny_run(corpus, model, tmp_path / "out", max_steps=1, global_batch_size=32, micro_batch_size=8)
    config = replace(config, objective=replace(config.objective, name=objective))
    config = replace(config, data=replace(config.data, lanes=2, window_bytes="auto"))
    with prepared(config) as setup, FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        (step,) = steps_of(setup)
        expected = useful_flops(setup.bare.model.config, [step])
    assert step.segments > 2 * step.rows
    filled = step.tokens / (step.rows * config.data.sequence_length)
    assert filled > 0.9
    # Padding is computed as well, and is no use to anyone: MFU leaves it out.
    assert expected / filled == pytest.approx(counter.get_total_flops(), rel=0.02)
