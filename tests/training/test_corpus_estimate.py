"""The tokens of a corpus are estimated from the windows that the first step is read from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stream_pretrain.config import SourceConfig
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import Interrupted
from stream_pretrain.training.steps.corpus_estimate import SampledStep, estimate, many_unknown, sample_of_all, unknown_id
from tests.corpora import documents, word_tokenizer, write_shard
from tests.training.runs import prepared, tiny_run


@pytest.mark.parametrize("kind", ["plain", "zst", "gz"])
def test_the_first_rows_tell_the_tokens_and_the_steps_of_a_corpus(kind: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for number in range(3):
        write_shard(tmp_path / "corpus" / str(number), documents(700, seed=number), kind)
    config = tiny_run(tmp_path / "corpus", model, tmp_path / "out", max_epochs=1)
    config = replace(config, data=replace(config.data, window_bytes="auto", lanes=4))
    with prepared(config) as setup, StepStream(setup.plan, setup.cursors) as stream:
        sample = sample_of_all(stream.peek(), setup.ranks, None, interrupted=False)
        steps: list[int] = []
        for rows in stream:
            if not len(rows.trained):
                break
            steps.append(rows.trained.tokens)
        found = estimate(config.train, setup.plan, sample)
    assert sample.tokens == steps[0], "what is looked at is read again"
    assert found.tokens == (pytest.approx(sum(steps), rel=0.05),)
    assert found.steps == pytest.approx(len(steps), rel=0.15)
    assert many_unknown(sample) is None
    assert many_unknown(SampledStep(8, 512, 100, ())) == (
        "the tokenizer does not know 19.5% of the tokens of the first rows: choose a model that was made for such text"
    )
    twice = replace(config.train, max_epochs=2, max_steps=50)
    assert estimate(twice, setup.plan, sample).steps == 50


def test_a_token_that_ends_documents_or_pads_is_not_unknown_text() -> None:
    tokenizer = word_tokenizer()
    assert unknown_id(tokenizer, Encoder.of(tokenizer)) == 1
    tokenizer.eos_token = "[UNK]"  # as in GPT-2
    assert unknown_id(tokenizer, Encoder.of(tokenizer)) is None
    tokenizer.eos_token, tokenizer.pad_token = "[SEP]", "[UNK]"
    assert unknown_id(tokenizer, Encoder.of(tokenizer)) is None


def test_a_source_that_gives_the_first_step_no_row_is_estimated_by_its_size(model: Path, tmp_path: Path) -> None:
    for name in "ab":
        write_shard(tmp_path / name, documents(300, seed=ord(name)), "plain")
    config = tiny_run(tmp_path, model, tmp_path / "out", max_steps=9)
    sources = (SourceConfig("a", str(tmp_path / "a.jsonl")), SourceConfig("b", str(tmp_path / "b.jsonl")))
    with prepared(replace(config, data=replace(config.data, dataset=None, sources=sources))) as setup:
        sizes = [source.bytes_of_epoch for source in setup.plan.sources]
        found = estimate(config.train, setup.plan, SampledStep(8, 512, 0, ((100.0, 300.0), (0.0, 0.0))))
    assert found.tokens == (sizes[0] / 3, sizes[1] / 4)
    assert (found.steps, found.fill) == (9, 1.0)


def test_a_corpus_whose_shards_tell_no_size_is_not_estimated(model: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(50), "plain")
    with prepared(tiny_run(tmp_path, model, tmp_path / "out", max_epochs=1)) as setup:
        [source] = setup.plan.sources
        unknown = replace(source, shards=(replace(source.shards[0], size=None),))
        found = estimate(setup.config.train, replace(setup.plan, sources=(unknown,)), SampledStep(8, 256, 0, ((100.0, 300.0),)))
    assert (found.tokens, found.steps, found.fill) == ((None,), None, 0.5)


def test_all_ranks_stop_where_one_was_asked_to(model: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(50), "plain")
    with (
        prepared(tiny_run(tmp_path, model, tmp_path / "out", max_steps=9)) as setup,
        StepStream(setup.plan, setup.cursors) as stream,
    ):
        with pytest.raises(Interrupted):
            sample_of_all(stream.nothing, Ranks(), None, interrupted=True)
        assert sample_of_all(stream.nothing, Ranks(), 3, interrupted=False) == SampledStep(0, 0, 0, ((0.0, 0.0),))
