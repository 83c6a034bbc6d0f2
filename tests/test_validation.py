"""Values that no run can have."""

from __future__ import annotations

from typing import Any

import pytest

from stream_pretrain.arguments import parse
from stream_pretrain.config import Config, DataConfig, ModelConfig, SourceConfig, TrainConfig, WeightChange, validate
from stream_pretrain.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[{}", "--data.sources is not JSON: Expecting ',' delimiter: line 1 column 4 (char 3)"),
        ('{"name": "a"}', '--data.sources: a list of records is needed, such as [{"name": ..., "dataset": ...}]'),
        ('[{"name": "a"}]', "--data.sources: record 1: dataset is missing"),
        ('[{"name": "a", "dataset": "x", "wieght": 1}]', "--data.sources: record 1: unknown key wieght; did you mean weight?"),
        ('[{"name": "a", "dataset": "x", "weight": "much"}]', "--data.sources: record 1: weight: 'much' is not a number"),
        (
            '[{"name": "a", "dataset": "x", "max_epochs": 1.5}]',
            "--data.sources: record 1: max_epochs: 1.5 is not a whole number or none",
        ),
        (
            '[{"name": "a", "dataset": "x", "text_documents": "page"}]',
            "--data.sources: record 1: text_documents: 'page' is not one of line, blank-line, file or none",
        ),
        ('[{"name": "a", "dataset": "x", "text_field": 3}]', "--data.sources: record 1: text_field: 3 is not text or none"),
    ],
)
def test_a_wrong_record_of_a_mixture_is_named(value: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse([f"--data.sources={value}"])
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"learning_rate": 1e-4, "final_learning_rate": 2e-4},
            "--train.final-learning-rate 0.0002 must not be above --train.learning-rate 0.0001",
        ),
        (
            {"schedule": "constant", "final_learning_rate": 1e-5},
            "--train.final-learning-rate needs a --train.schedule that decays: wsd, cosine or linear",
        ),
    ],
)
def test_a_final_rate_that_no_decay_leads_to_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(Config(data=DataConfig(dataset="x"), model=ModelConfig(path="m"), train=TrainConfig(max_steps=1, **options)))
    assert str(error.value) == said


A = SourceConfig("a", "x")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (DataConfig(dataset="x", sources=(A,)), "give either --dataset or --data.sources, not both"),
        (DataConfig(sources=(A, A)), "--data.sources: the name 'a' must be unique, of letters"),
        (DataConfig(sources=(SourceConfig("a/b", "x"),)), "--data.sources: the name 'a/b' must be unique, of letters"),
        (DataConfig(sources=(SourceConfig("a", "x", -1),)), "--data.sources: a: weight must not be negative, not -1"),
        (DataConfig(sources=(SourceConfig("a", "x", 0),)), "--data.sources: no source has a weight"),
        (DataConfig(sources=(SourceConfig("a", "x", max_epochs=0),)), "--data.sources: a: max_epochs must be above 0, not 0"),
        (
            DataConfig(sources=(SourceConfig("a", "x", heldout_fraction=2),)),
            "--data.sources: a: heldout_fraction must be between 0 and 1, not 2",
        ),
        (
            DataConfig(sources=(A,), weight_schedule=(WeightChange(0, {"a": 1}),)),
            "--data.weight-schedule: from_step 0: must be above 0",
        ),
        (
            DataConfig(sources=(A,), weight_schedule=(WeightChange(5, {"b": 1}),)),
            "--data.weight-schedule: from_step 5: there is no source 'b', only a",
        ),
        (
            DataConfig(sources=(A,), weight_schedule=(WeightChange(5, {"a": 0}),)),
            "--data.weight-schedule: from_step 5: no source has a weight",
        ),
        (DataConfig(dataset="x", text_template="{title"), "--data.text-template '{title': expected '}' before end of string"),
        (DataConfig(dataset="x", text_template="title"), "--data.text-template 'title' names no field, as {title} would"),
        (
            DataConfig(dataset="x", text_template="{title!r}"),
            "--data.text-template '{title!r}': a field is its name in braces, {title}, and nothing else",
        ),
        (
            DataConfig(dataset="x", min_characters=9, max_characters=3),
            "--data.max-characters 3 is below --data.min-characters 9",
        ),
    ],
)
def test_a_corpus_that_cannot_be_is_refused(data: DataConfig, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(Config(data=data, model=ModelConfig(path="m"), train=TrainConfig(max_steps=1)))
    assert str(error.value).startswith(said)
